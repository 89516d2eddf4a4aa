"""What training a LoRA and training a whole U-Net share: samples, what is drawn for each, loss, validation, previews.

A pass is x_t = alpha_t x0 + sigma_t eps for a fresh draw of the latent's posterior, of t and of eps, and the error of
what the U-Net predicts (Ho et al. 2020, arXiv 2006.11239, eq. 14). A share of the captions is replaced by the empty one
(classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598). What is drawn for a sample depends on (seed, step,
position in the step) only; timesteps are one from each stratum of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from sd_ext.models import Model
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.items import Item
from sd_ext.training.data.look import Sample
from sd_ext.training.data.order import Pass, StepOrder
from sd_ext.training.data.pictures import fingerprint
from sd_ext.training.data.texts import outside_training, texts_of
from sd_ext.training.diffusion.config import DiffusionConfig
from sd_ext.training.diffusion.previews import draw
from sd_ext.training.diffusion.samples import open_pictures
from sd_ext.training.encoding.encoded import Encoded
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.unet import prepare_unet
from sd_ext.training.objective.levels import NoiseLevels
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.objective.noise import draw_noise
from sd_ext.training.run.task import Task

PREVIEWS = 8  # captions of the data that previews are drawn of, where no prompts are given


@dataclass
class Drawn:
    """What was drawn for a pass, on the CPU.

    Args:
        noises: of the posterior, the target's, and the input's: (b, c, h, w) each.
        t: timesteps (b,).
        texts: indices of the texts; -1 for the empty one.
        flips: whether a sample is mirrored.
        crops: top and left of random crops; None for the centre.
        moments: mean and standard deviation of the latents (b, 2, c, h, w), or None with
        pixels: (b, 3, H, W), which a device has to encode first.
        mask: (b, 1, h, w).
    """

    noises: tuple[Tensor, Tensor, Tensor]
    t: Tensor
    texts: list[int]
    flips: list[bool]
    crops: list[tuple[int, int] | None]
    moments: Tensor | None = None
    pixels: Tensor | None = None
    mask: Tensor | None = None


class DiffusionTask(Task):
    """See the module; a subclass makes the U-Net trainable (`make_model`) and saves the result (`export`).

    Args:
        config: all settings.
        files: of the model.
        rephrase: the share of captions said in another way.

    Attributes:
        pictures, held_out: the samples to train on and to validate with; None for no validation.
        choices, texts: what is said about each sample, see `texts_of`.
        noise: the noise schedule as Diffusers' schedulers take it.
    """

    def __init__(self, config: DiffusionConfig, files: Model, rephrase: float = 0.0):
        self.config, self.files = config, files
        self.scale, self.channels = files.pixels_per_latent, files.setting("vae", "latent_channels", int, 4)
        self.pictures, self.held_out = open_pictures(config, self.scale, self.complete)
        self.sizes = self.pictures.sizes
        self.noise = self.noise_settings()
        self.levels = NoiseLevels(self.noise, config.loss, config.timesteps)
        class_pictures = [sample.item.prior for sample in self.pictures.samples]
        self.choices, self.texts = texts_of(
            config.captions, config.loop.seed, self.pictures.captions, class_pictures, rephrase
        )
        held_out = self.held_out.captions if self.held_out else []
        self.held_out_texts = [outside_training(config.captions, caption) for caption in held_out]
        wordings = [[self.texts[index] for index in indices] for indices in self.choices]
        self.parts = {
            "base": files.digest(*files.decisive),
            "samples": fingerprint(self.pictures, wordings, config.loss.masked_loss),
        }
        self.unet: Any = None
        if epochs := config.pictures.epochs:
            self.config = config.change(steps=epochs * self.steps_per_epoch(PartialState().num_processes))

    def steps_per_epoch(self, processes: int = 1) -> int:
        """Optimizer steps in which every sample is seen once."""
        loop = self.config.loop
        group = loop.batch_size * loop.accumulation * processes
        return StepOrder(self.sizes, loop.batch_size, group, loop.seed).steps_per_epoch

    def complete(self, items: list[Item]) -> list[Item]:
        """All that is trained on, from the pictures of the data."""
        return items

    @property
    def learnt(self) -> list[Sample]:
        """Samples of the data's own pictures."""
        return [sample for sample in self.pictures.samples if not sample.item.prior]

    def noise_settings(self) -> dict[str, Any]:
        """The noise schedule of the model, as Diffusers' schedulers take it, with what the settings change."""
        prediction, schedule = self.config.prediction, self.files.noise()
        if prediction.prediction_type != "auto":
            schedule["prediction_type"] = prediction.prediction_type
        schedule["rescale_betas_zero_snr"] = prediction.zero_snr or schedule["rescale_betas_zero_snr"]
        return schedule

    # What is encoded, and the model.

    def begin(self, accelerator: Accelerator) -> None:
        config, self.device, self.accelerator = self.config, accelerator.device, accelerator
        self.encoded = Encoded(
            config.cache, self.files, accelerator, out=config.folder.out, flip=config.data.flip,
            side=max(config.pictures.resolution), workers=config.machine.workers,
        )  # fmt: skip
        self.encoded.prepare([self.pictures, *([self.held_out] if self.held_out else [])], self.all_texts())
        self.model = self.make_model()
        self.unet = self.model.unet
        prepare_unet(self.unet, config.unet)

    def all_texts(self) -> list[str]:
        """Every text whose states are needed: of samples, of validation, of previews, and none."""
        more = [*self.prompts, self.config.previews.negative_prompt, ""]
        return list(dict.fromkeys([*self.texts, *self.held_out_texts, *more]))

    @property
    def prompts(self) -> list[str]:
        """The captions of the previews."""
        if self.config.previews.prompts:
            return list(self.config.previews.prompts)
        learnt = [c for s, c in zip(self.pictures.samples, self.pictures.captions, strict=True) if not s.item.prior]
        return [outside_training(self.config.captions, caption) for caption in dict.fromkeys(learnt)][:PREVIEWS]

    def make_model(self) -> DiffusionLoss:
        """The module that is minimised, with a U-Net of which some parameters are trained."""
        raise AssertionError("every diffusion task makes its own model")

    def conditions(self, texts: Sequence[str], time_ids: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """What the loss takes for texts, and SDXL's sizes: states, or tokens where text encoders are trained."""
        found = self.words(texts)
        if self.files.family == "sdxl":
            found["time_ids"] = torch.tensor(time_ids, dtype=torch.float32)
        return {name: value.to(self.device) for name, value in found.items()}

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """States of texts (b, n, d), and pooled (b, p)."""
        return self.encoded.states(texts)

    # What is drawn.

    def latent_shape(self, sample: int) -> tuple[int, int, int]:
        """Channels, height and width of a sample's latent."""
        height, width = self.pictures.sizes[sample]
        return self.channels, height // self.scale, width // self.scale

    def read(self, each: Pass) -> Drawn:
        """All that is drawn for a pass, and its pictures or their latents."""
        config, samples = self.config, [self.pictures.samples[s] for s in each.samples]
        generators = [
            stream_generator(config.loop.seed, Stream.SAMPLE, each.step, position) for position in each.positions
        ]
        # Five numbers a sample, whether they are used or not: mirrored, which text, no text, top, left.
        choices = torch.stack([torch.rand(5, generator=generator) for generator in generators]).tolist()
        shape = self.latent_shape(each.samples[0])
        posterior = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        drawn = Drawn(
            (posterior, *draw_noise(shape, generators, config.noise)),
            self.timesteps(each),
            texts=[self.choose_text(s, choice) for s, choice in zip(each.samples, choices, strict=True)],
            flips=[config.data.flip and choice[0] < 0.5 for choice in choices],
            crops=[self.corner(sample, choice) for sample, choice in zip(samples, choices, strict=True)],
        )
        places = list(zip(each.samples, drawn.flips, drawn.crops, strict=True))
        if config.cache.cache:
            drawn.moments = self.encoded.moments(self.pictures, each.samples, drawn.flips)
        else:
            drawn.pixels = torch.stack([self.pictures.pixels(*place) for place in places])
        if config.loss.masked_loss:
            masks = [self.pictures.mask(*place, self.scale) for place in places]
            drawn.mask = torch.stack(masks).clamp_min(config.loss.mask_floor)
        return drawn

    def timesteps(self, each: Pass) -> Tensor:
        """One from each stratum of the step, for the positions of a pass: (b,)."""
        generator = stream_generator(self.config.loop.seed, Stream.TIMESTEPS, each.step)
        return self.levels.draw(each.group, generator)[list(each.positions)]

    def choose_text(self, sample: int, choice: list[float]) -> int:
        """The index of the sample's text, -1 for the empty one."""
        indices = self.choices[sample]
        return -1 if choice[2] < self.config.captions.text_dropout else indices[int(choice[1] * len(indices))]

    def corner(self, sample: Sample, choice: list[float]) -> tuple[int, int] | None:
        """Where a random crop begins; None for the centre."""
        if self.config.pictures.crop != "random":
            return None
        top, left = (int(share * (room + 1)) for share, room in zip(choice[3:], sample.room, strict=True))
        return top, left

    def batch(self, each: Pass, read: Drawn, device: torch.device) -> tuple:
        """The arguments of `DiffusionLoss.forward`."""
        moments = read.moments
        if moments is None:
            assert read.pixels is not None
            moments = self.encoded.encode(read.pixels.to(device)).cpu()
        posterior, eps, eps_in_input = read.noises
        x0 = moments[:, 0].float() + moments[:, 1].float() * posterior
        samples = [self.pictures.samples[s] for s in each.samples]
        weight = self.levels.weight(read.t) * torch.tensor([sample.weight for sample in samples])
        x = self.levels.noised(x0, eps_in_input, read.t).to(device, memory_format=torch.channels_last)
        time_ids = [s.time_ids(flip, crop) for s, flip, crop in zip(samples, read.flips, read.crops, strict=True)]
        conditions = self.conditions([self.texts[n] if n >= 0 else "" for n in read.texts], time_ids)
        mask = None if read.mask is None else read.mask.to(device)
        wanted, delta = self.levels.target(x0, eps, read.t), self.levels.delta(read.t)
        return x, read.t.to(device), wanted.to(device), weight.to(device), delta.to(device), conditions, mask

    def names(self, each: Pass) -> str:
        return ", ".join(self.pictures.samples[s].item.name for s in each.samples)

    # What is looked at.

    def validate(self) -> dict[str, float]:
        """The mean squared error on the held-out pictures, with the same noise and timesteps each time."""
        if not self.held_out:
            return {}
        t = self.levels.spread(self.config.held_out.validation_times)
        total, ones = 0.0, torch.ones(1)
        for i in range(len(self.held_out)):
            moments = self.encoded.moments(self.held_out, [i], [False])
            generators = [stream_generator(0, Stream.VALIDATION, i, k) for k in range(len(t))]
            eps = torch.stack([torch.randn(moments.shape[2:], generator=generator) for generator in generators])
            x0 = moments[:, 0].float()
            x, wanted = self.levels.noised(x0, eps, t), self.levels.target(x0.expand_as(eps), eps, t)
            for k in range(len(t)):  # one at a time: validation takes no more memory than training
                conditions = self.conditions([self.held_out_texts[i]], [self.held_out.samples[i].time_ids()])
                batch = (x[k : k + 1], t[k : k + 1], wanted[k : k + 1], ones, ones)
                total += float(self.loss(*(b.to(self.device) for b in batch), conditions)["loss"])
        return {"validation_loss": total / len(t) / len(self.held_out)}

    @property
    def loss(self) -> DiffusionLoss:
        """The module that is minimised."""
        return self.model  # type: ignore[return-value]

    def draw_prompts(self, pipe: Any, towers: TextTowers | None = None) -> list[np.ndarray]:
        """A picture of each prompt, from seeds that follow one another.

        Args:
            pipe: a pipeline around the U-Net.
            towers: text encoders to take the words' states from; None for those that are at hand.

        Returns:
            (height, width, 3) uint8 each.
        """

        def states(text: str) -> dict[str, Tensor]:
            return towers(towers.tokenize([text]).to(self.device)) if towers else self.preview_words(text)

        settings, side = self.config.previews, self.config.pictures.resolution[0]
        negative, prompts = states(settings.negative_prompt), [states(prompt) for prompt in self.prompts]
        with self.accelerator.autocast():
            return [
                draw(pipe, prompt, negative, settings.preview_seed + number, side, settings)
                for number, prompt in enumerate(prompts)
            ]

    def preview_words(self, text: str) -> dict[str, Tensor]:
        """What a text is to the U-Net, on the device."""
        return {name: value.to(self.device) for name, value in self.encoded.states([text]).items()}

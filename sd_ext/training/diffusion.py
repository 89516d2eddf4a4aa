"""What training a LoRA and training a whole U-Net share: samples, what is drawn for each, loss, validation, previews.

A pass is x_t = alpha_t x0 + sigma_t eps for a fresh draw of the latent's posterior, of t and of eps, and the error of
what the U-Net predicts (Ho et al. 2020, arXiv 2006.11239, eq. 14). A share of the captions is replaced by the empty one
(classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598). What is drawn for a sample depends on (seed, step,
position in the step) only; timesteps are one from each stratum of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from sd_ext.schedulers import NoiseSchedule
from sd_ext.training.data import Item, Sample, random
from sd_ext.training.data.chosen import open_pictures, plain, texts_of
from sd_ext.training.data.order import Pass, StepOrder
from sd_ext.training.data.pictures import fingerprint
from sd_ext.training.encoding.encoded import Encoded
from sd_ext.training.model.files import ModelFiles
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.unet import prepare_unet
from sd_ext.training.objective import (
    check_range,
    check_terminal_snr,
    draw_noise,
    huber_delta,
    loss_weight,
    stratified_timesteps,
    target,
)  # fmt: skip
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.run.previews import draw
from sd_ext.training.run.task import Task
from sd_ext.training.settings import DiffusionConfig


@dataclass
class Drawn:
    """What was drawn for a pass, on the CPU.

    Args:
        noises: of the posterior, the target's, and the input's: (b, c, h, w) each.
        t: timesteps (b,).
        texts: numbers of the texts; -1 for the empty one.
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
    """See the module; a subclass makes the U-Net trainable (`make_model`) and saves the result (`export`)."""

    def __init__(self, config: DiffusionConfig, files: ModelFiles):
        self.config, self.files = config, files
        scale = files.pixels_per_latent
        self.pictures, self.held_out = open_pictures(config, scale, self.complete)
        self.sizes = self.pictures.sizes
        self.scale, self.channels = scale, files.setting("vae", "latent_channels", int, 4)
        self.noise = self.noise_settings()
        schedule = NoiseSchedule.from_config(self.noise)
        self.prediction = self.noise["prediction_type"]
        self.alpha, self.sigma = (torch.from_numpy(a).float() for a in (schedule.alpha, schedule.sigma))
        self.last_t = min(config.timestep_max, len(self.alpha))
        check_range(len(self.alpha), config.timestep_min, self.last_t)
        check_terminal_snr(self.prediction, self.alpha[config.timestep_min : self.last_t])
        self.choices, self.texts = texts_of(
            config, self.pictures.captions, [s.item.prior for s in self.pictures.samples]
        )
        self.told = [plain(config, caption) for caption in self.held_out.captions] if self.held_out else []
        said = [[self.texts[n] for n in numbers] for numbers in self.choices]
        self.parts = {
            "base": files.digest(*files.decisive),
            "samples": fingerprint(self.pictures, said, config.masked_loss),
        }
        self.unet: Any = None
        if config.epochs:
            self.config = replace(config, steps=config.epochs * self.steps_per_epoch(PartialState().num_processes))

    def steps_per_epoch(self, processes: int = 1) -> int:
        config = self.config
        group = config.batch_size * config.accumulation * processes
        return StepOrder(self.sizes, config.batch_size, group, config.seed).steps_per_epoch

    def complete(self, items: list[Item]) -> list[Item]:
        """All that is trained on, from the pictures of the data."""
        return items

    @property
    def learnt(self) -> list[Sample]:
        """Samples of the data's own pictures."""
        return [sample for sample in self.pictures.samples if not sample.item.prior]

    def noise_settings(self) -> dict[str, Any]:
        """The noise schedule of the model, as Diffusers' schedulers take it, with what the settings change."""
        config, settings = self.config, self.files.noise()
        if config.prediction_type != "auto":
            settings["prediction_type"] = config.prediction_type
        settings["rescale_betas_zero_snr"] = config.zero_snr or settings["rescale_betas_zero_snr"]
        return settings

    # What is encoded, and the model.

    def begin(self, accelerator: Accelerator) -> None:
        self.device, self.accelerator = accelerator.device, accelerator
        self.encoded = Encoded(self.config, self.files, accelerator)
        self.encoded.prepare([self.pictures, *([self.held_out] if self.held_out else [])], self.all_texts())
        self.model = self.make_model()
        self.unet = self.model.unet
        prepare_unet(self.unet, self.config)

    def all_texts(self) -> list[str]:
        """Every text whose states are needed: of samples, of validation, of previews, and none."""
        return list(dict.fromkeys([*self.texts, *self.told, *self.prompts, self.config.negative_prompt, ""]))

    @property
    def prompts(self) -> list[str]:
        """The captions of the previews."""
        if self.config.prompts:
            return list(self.config.prompts)
        learnt = [c for s, c in zip(self.pictures.samples, self.pictures.captions, strict=True) if not s.item.prior]
        return [plain(self.config, caption) for caption in dict.fromkeys(learnt)][:8]

    def make_model(self) -> DiffusionLoss:
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
        height, width = self.pictures.sizes[sample]
        return self.channels, height // self.scale, width // self.scale

    def read(self, each: Pass) -> Drawn:
        config, samples = self.config, [self.pictures.samples[s] for s in each.samples]
        generators = [random(config.seed, 2, each.step, position) for position in each.positions]
        choices = torch.stack([torch.rand(5, generator=generator) for generator in generators]).tolist()
        shape = self.latent_shape(each.samples[0])
        posterior = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        noises = draw_noise(
            shape, generators, config.offset_noise, config.pyramid_iterations, config.pyramid_discount,
            config.input_perturbation,
        )  # fmt: skip
        drawn = Drawn(
            (posterior, *noises),
            self.timesteps(each),
            texts=[self.choose_text(s, choice) for s, choice in zip(each.samples, choices, strict=True)],
            flips=[config.flip and choice[0] < 0.5 for choice in choices],
            crops=[self.corner(sample, choice) for sample, choice in zip(samples, choices, strict=True)],
        )
        placed = list(zip(each.samples, drawn.flips, drawn.crops, strict=True))
        if config.cache:
            drawn.moments = self.encoded.moments(self.pictures, each.samples, drawn.flips)
        else:
            drawn.pixels = torch.stack([self.pictures.pixels(*place) for place in placed])
        if config.masked_loss:
            masks = [self.pictures.mask(*place, self.scale) for place in placed]
            drawn.mask = torch.stack(masks).clamp_min(config.mask_floor)
        return drawn

    def timesteps(self, each: Pass) -> Tensor:
        """One from each stratum of the step, for the positions of a pass: (b,)."""
        config, generator = self.config, random(self.config.seed, 3, each.step)
        first, last, power = config.timestep_min, self.last_t, config.timestep_power
        return stratified_timesteps(each.group, len(self.alpha), generator, first, last, power)[list(each.positions)]

    def choose_text(self, sample: int, choice: list[float]) -> int:
        """The number of the sample's text, -1 for the empty one."""
        texts = self.choices[sample]
        return -1 if choice[2] < self.config.text_dropout else texts[int(choice[1] * len(texts))]

    def corner(self, sample: Sample, choice: list[float]) -> tuple[int, int] | None:
        """Where a random crop begins; None for the centre."""
        if self.config.crop != "random":
            return None
        top, left = (int(share * (room + 1)) for share, room in zip(choice[3:], sample.room, strict=True))
        return top, left

    def batch(self, each: Pass, read: Drawn, device: torch.device) -> tuple:
        moments = read.moments
        if moments is None:
            assert read.pixels is not None
            moments = self.encoded.encode(read.pixels.to(device)).cpu()
        posterior, eps, seen = read.noises
        x0 = moments[:, 0].float() + moments[:, 1].float() * posterior
        alpha, sigma = (c[read.t][:, None, None, None] for c in (self.alpha, self.sigma))
        wanted = target(self.prediction, x0, eps, alpha, sigma)
        snr = (alpha / sigma).square().flatten()
        config = self.config
        weight = loss_weight(config.loss_weighting, self.prediction, snr, config.gamma or None)
        weight = weight * torch.tensor([self.pictures.samples[s].weight for s in each.samples])
        delta = huber_delta(config.huber_schedule, config.huber_c, read.t, len(self.alpha), snr)
        x = (alpha * x0 + sigma * seen).to(device, memory_format=torch.channels_last)
        samples = [self.pictures.samples[s] for s in each.samples]
        time_ids = [s.time_ids(flip, crop) for s, flip, crop in zip(samples, read.flips, read.crops, strict=True)]
        conditions = self.conditions([self.texts[n] if n >= 0 else "" for n in read.texts], time_ids)
        mask = None if read.mask is None else read.mask.to(device)
        return x, read.t.to(device), wanted.to(device), weight.to(device), delta.to(device), conditions, mask

    def names(self, each: Pass) -> str:
        return ", ".join(self.pictures.samples[s].item.name for s in each.samples)

    # What is looked at.

    def validate(self) -> dict[str, float]:
        """The mean squared error on the held-out pictures, with the same noise and timesteps each time."""
        if not self.held_out:
            return {}
        times = self.config.validation_times
        strata = (torch.arange(times) + 0.5) / times * (self.last_t - self.config.timestep_min)
        total = 0.0
        for i in range(len(self.held_out)):
            moments = self.encoded.moments(self.held_out, [i], [False])
            eps = torch.stack([torch.randn(moments.shape[2:], generator=random(0, 7, i, k)) for k in range(times)])
            t = strata.long() + self.config.timestep_min
            alpha, sigma = (c[t][:, None, None, None] for c in (self.alpha, self.sigma))
            x0 = moments[:, 0].float()
            wanted = target(self.prediction, x0, eps, alpha, sigma)
            ones = torch.ones(1)
            for k in range(times):  # one at a time: validation takes no more memory than training
                conditions = self.conditions([self.told[i]], [self.held_out.samples[i].time_ids()])
                batch = ((alpha * x0 + sigma * eps)[k : k + 1], t[k : k + 1], wanted[k : k + 1], ones, ones)
                total += float(self.loss(*(b.to(self.device) for b in batch), conditions)["loss"])
        return {"validation_loss": total / times / len(self.held_out)}

    @property
    def loss(self) -> DiffusionLoss:
        return self.model  # type: ignore[return-value]

    def draw_prompts(self, pipe: Any, towers: TextTowers | None = None) -> list[np.ndarray]:
        """A picture of each prompt, from seeds that follow one another; words as `towers` have them, if given."""

        def words(text: str) -> dict[str, Tensor]:
            return towers(towers.tokenize([text]).to(self.device)) if towers else self.preview_words(text)

        negative, seed = words(self.config.negative_prompt), self.config.preview_seed
        told = [words(prompt) for prompt in self.prompts]
        with self.accelerator.autocast():
            return [draw(pipe, each, negative, seed + number, self.config) for number, each in enumerate(told)]

    def preview_words(self, text: str) -> dict[str, Tensor]:
        """What a text is to the U-Net, on the device."""
        return {name: value.to(self.device) for name, value in self.encoded.states([text]).items()}

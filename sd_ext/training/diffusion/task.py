"""The common part of LoRA training and U-Net training: samples, random draws, batches, validation, previews.

In each pass, every sample gets a fresh draw of its latent x0 from the autoencoder's posterior, a timestep t and noise
eps. The U-Net sees x_t = alpha_t x0 + sigma_t eps, and the error of its prediction is minimised (Ho et al. 2020, arXiv
2006.11239, eq. 14). A share of the captions is replaced by the empty one (classifier-free guidance, Ho & Salimans 2022,
arXiv 2207.12598). All draws for a sample depend on (seed, step, position in the step) only; the timesteps of a step are
stratified.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from sd_ext.errors import InputError
from sd_ext.models import Model
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.items import Item
from sd_ext.training.data.known import Known
from sd_ext.training.data.look import Sample
from sd_ext.training.data.order import Pass, StepOrder
from sd_ext.training.data.pictures import Pictures, fingerprint
from sd_ext.training.data.texts import outside_training, texts_of_pictures
from sd_ext.training.diffusion.base import check_clip_skip, noise_of
from sd_ext.training.diffusion.config import DiffusionConfig
from sd_ext.training.diffusion.drawn import Drawn
from sd_ext.training.diffusion.previews import draw
from sd_ext.training.diffusion.samples import gather
from sd_ext.training.diffusion.settings import Shot
from sd_ext.training.encoding.encoded import Encoded, settled
from sd_ext.training.model.chunked import told
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.unet import prepare_unet
from sd_ext.training.objective.levels import NoiseLevels
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.objective.noise import draw_noise
from sd_ext.training.run.task import Task

log = logging.getLogger(__name__)

PREVIEWS = 8  # if no prompts are given, previews show this many captions of the data


class DiffusionTask(Task):
    """Base of LoRA training and U-Net training. A subclass defines `make_model` and `export`.

    Args:
        config: all settings.
        files: the base model on disk.
        rephrase: probability that a sample gets a rephrased caption.

    Attributes:
        pictures: the samples to train on.
        held_out: the samples to validate with; None for no validation.
        choices, texts: the texts of each sample, see `texts_of`.
        noise: the noise schedule: keyword arguments of Diffusers' schedulers.
        levels: the noise levels of that schedule.

    Raises:
        InputError: there are no usable pictures, or the settings do not fit the model.
    """

    def __init__(self, config: DiffusionConfig, files: Model, rephrase: float = 0.0):
        self.config, self.files, self.early = config, files, config.stop
        check_clip_skip(config.captions.clip_skip, files)
        self.scale, self.channels = files.pixels_per_latent, files.setting("vae", "latent_channels", int, 4)
        self.known = Known(config.cache.folder(config.folder.out))
        data = gather(config, self.scale, self.complete, self.known)
        data.report()
        self.pictures, self.held_out = data.pictures, data.held_out
        self.sizes = self.pictures.sizes
        self.noise = self.noise_settings()
        self.levels = NoiseLevels(self.noise, config.loss, config.timesteps)
        self.choices, self.texts = texts_of_pictures(config.captions, config.loop.seed, self.pictures, rephrase)
        held_out = zip(self.held_out.samples, self.held_out.captions, strict=True) if self.held_out else []
        self.held_out_texts = [outside_training(config.captions, sample.item, said) for sample, said in held_out]
        wordings = [[self.texts[index] for index in indices] for indices in self.choices]
        self.parts = {
            "base": files.digest(*files.decisive),
            "samples": fingerprint(self.pictures, wordings, config.loss.masked_loss),
        }
        if self.early.patience:
            if not self.held_out:
                raise InputError("patience is set, and there are no held-out pictures to validate with")
            self.parts["held out"] = fingerprint(self.held_out, self.held_out_texts)
        self.unet: Any = None
        if epochs := config.pictures.epochs:
            self.config = config.change(steps=epochs * self.steps_per_epoch(PartialState().num_processes))

    def steps_per_epoch(self, processes: int = 1) -> int:
        """The number of optimizer steps in an epoch, in which every sample is seen once."""
        loop = self.config.loop
        group = loop.batch_size * loop.accumulation * processes
        return StepOrder(self.sizes, loop.batch_size, group, loop.seed).steps_per_epoch

    def complete(self, items: list[Item]) -> list[Item]:
        """The items to train on, given those of the data. A subclass may add items, such as class pictures."""
        return items

    @property
    def learnt(self) -> list[Sample]:
        """The samples of the data, without class pictures."""
        return [sample for sample in self.pictures.samples if not sample.item.prior]

    def noise_settings(self) -> dict[str, Any]:
        """The noise schedule that is trained with, as keyword arguments of Diffusers' schedulers."""
        return noise_of(self.files, self.config.prediction)

    # Encoding, and the model.

    def begin(self, accelerator: Accelerator) -> None:
        """Encode pictures and texts, then load the model (in this order, so that less is in memory at once)."""
        config, self.device, self.accelerator = self.config, accelerator.device, accelerator
        self.encoded = Encoded(
            config.cache, self.files, accelerator, out=config.folder.out, clip_skip=config.captions.clip_skip,
            chunks=config.captions.caption_chunks, side=max(config.pictures.resolution), workers=config.machine.workers,
            known=self.known,
        )  # fmt: skip
        if accelerator.is_main_process:
            self.say_cut()
            self.say_rounded()
        self.encoded.prepare(self.sets, self.all_texts())
        if accelerator.is_main_process:
            self.known.keep()
        self.model = self.make_model()
        self.unet = self.model.unet
        prepare_unet(self.unet, config.unet)

    @property
    def sets(self) -> list[Pictures]:
        """The pictures to encode."""
        return [self.pictures, *([self.held_out] if self.held_out else [])]

    def spelled(self, text: str) -> str:
        """A text as the tokenizer gets it; a subclass may replace words in it."""
        return text

    def say_cut(self) -> None:
        """Say how captions are read that have more tokens than a text encoder reads at once, and which are cut off."""
        texts = [self.spelled(text) for text in self.texts]
        lengths, most = self.encoded.lengths(texts)
        read, lost = told(texts, lengths, self.config.captions.caption_chunks, most)
        if read:
            self.accelerator.print(f"captions: {read}")
        if lost:
            log.warning("captions: %s", lost)

    def say_rounded(self) -> None:
        """Name the previews whose size is no multiple of a latent's pixels."""
        asked = [prompt for prompt in self.config.previews.prompts if prompt.width or prompt.height]
        if odd := [prompt for prompt in asked if (prompt.width or 0) % self.scale or (prompt.height or 0) % self.scale]:
            log.warning(
                "sizes of %d previews are rounded down to multiples of %d, e.g. of '%s'", len(odd), self.scale, odd[0]
            )

    def all_texts(self) -> list[str]:
        """Every text that must be encoded: those of samples, validation and previews, and the empty text."""
        more = [text for shot in self.shots for text in (shot.prompt, shot.negative)]
        return list(dict.fromkeys([*self.texts, *self.held_out_texts, *more, ""]))

    @property
    def prompts(self) -> list[str]:
        """The captions of the previews."""
        return [shot.prompt for shot in self.shots]

    @property
    def shots(self) -> list[Shot]:
        """The previews: those that the settings name, or of the data's first captions."""
        pairs = zip(self.pictures.samples, self.pictures.captions, strict=True)
        learnt = [outside_training(self.config.captions, s.item, c) for s, c in pairs if not s.item.prior]
        texts = list(dict.fromkeys(learnt))[:PREVIEWS]
        return self.config.previews.shots(texts, self.config.pictures.resolution[0], self.scale)

    def make_model(self) -> DiffusionLoss:
        """Build the module whose output is minimised; the U-Net's parameters that require gradients are trained."""
        raise AssertionError("every diffusion task makes its own model")

    def conditions(self, texts: Sequence[str], time_ids: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """The argument `conditions` of `DiffusionLoss.forward`, on the device.

        Args:
            texts: the text of each of the b samples.
            time_ids: SDXL's size conditions of each, see `Sample.time_ids`; not used for other families.
        """
        found = self.words(texts)
        if self.files.family == "sdxl":
            found["time_ids"] = torch.tensor(time_ids, dtype=torch.float32)
        return {name: value.to(self.device) for name, value in found.items()}

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The encoded texts: "states" (b, n, d) and for SDXL "pooled" (b, p).

        A subclass that trains text encoders returns "tokens" (b, towers, n) instead.
        """
        return self.encoded.states(texts)

    # Random draws and batches.

    def latent_shape(self, sample: int) -> tuple[int, int, int]:
        """Channels, height and width of a sample's latent."""
        height, width = self.pictures.sizes[sample]
        return self.channels, height // self.scale, width // self.scale

    def read(self, each: Pass) -> Drawn:
        """All random draws of a pass, and its pictures or cached latents; called in threads."""
        config, samples = self.config, [self.pictures.samples[s] for s in each.samples]
        generators = [
            stream_generator(config.loop.seed, Stream.SAMPLE, each.step, position) for position in each.positions
        ]
        # Always five numbers a sample, used or not, so that settings do not shift later draws: whether it is mirrored,
        # which text, whether the text is empty, top and left of the crop.
        choices = torch.stack([torch.rand(5, generator=generator) for generator in generators]).tolist()
        shape = self.latent_shape(each.samples[0])
        posterior = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        drawn = Drawn(
            (posterior, *draw_noise(shape, generators, config.noise)),
            self.timesteps(each),
            texts=[self.choose_text(s, choice) for s, choice in zip(each.samples, choices, strict=True)],
            flips=[s.item.flip and choice[0] < 0.5 for s, choice in zip(samples, choices, strict=True)],
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
        """The timesteps of a pass: those of its positions among the stratified timesteps of the step: (b,)."""
        generator = stream_generator(self.config.loop.seed, Stream.TIMESTEPS, each.step)
        return self.levels.draw(each.group, generator)[list(each.positions)]

    def choose_text(self, sample: int, choice: list[float]) -> int:
        """The index of a sample's text, -1 for the empty text; `choice` are its five random numbers, see `read`."""
        indices = self.choices[sample]
        return -1 if choice[2] < self.config.captions.text_dropout else indices[int(choice[1] * len(indices))]

    def corner(self, sample: Sample, choice: list[float]) -> tuple[int, int] | None:
        """Top and left of a sample's random crop, in pixels; None for the centre crop. `choice` as in `choose_text`."""
        if self.config.pictures.crop != "random":
            return None
        top, left = (int(share * (room + 1)) for share, room in zip(choice[3:], sample.room, strict=True))
        return top, left

    def batch(self, each: Pass, read: Drawn, device: torch.device) -> tuple:
        """The arguments of `DiffusionLoss.forward` for a pass, on the device, from the draws that `read` returned."""
        x0, (_, eps, eps_in_input) = self.latents(each, read), read.noises
        weight = self.levels.weight(read.t) * self.weights(each)
        x = self.levels.noised(x0, eps_in_input, read.t).to(device, memory_format=torch.channels_last)
        conditions = self.told(each, read)
        mask = None if read.mask is None else read.mask.to(device)
        wanted, delta = self.levels.target(x0, eps, read.t), self.levels.delta(read.t)
        return x, read.t.to(device), wanted.to(device), weight.to(device), delta.to(device), conditions, mask

    def latents(self, each: Pass, read: Drawn) -> Tensor:
        """The latents of a pass, drawn from the posterior of each: (b, c, h, w) float32, on the CPU."""
        moments = read.moments
        if moments is None:
            assert read.pixels is not None
            moments = self.encode_now(self.pictures, each, read.pixels)
        moments = settled(moments)
        return moments[:, 0].float() + moments[:, 1].float() * read.noises[0]

    def encode_now(self, pictures: Pictures, each: Pass, pixels: Tensor) -> Tensor:
        """Mean and standard deviation of the latents of pictures that are not cached: (b, 2, c, h, w), on the CPU."""
        moments = self.encoded.encode(pixels.to(self.device)).cpu()
        spreads = moments[:, 1].flatten(1).amax(1).tolist()
        names = [pictures.samples[s].item.name for s in each.samples]
        self.encoded.note_spreads(dict(zip(names, spreads, strict=True)))
        return moments

    def weights(self, each: Pass) -> Tensor:
        """The factor of the loss of each sample of a pass: (b,)."""
        return torch.tensor([self.pictures.samples[s].weight for s in each.samples])

    def said(self, read: Drawn) -> list[str]:
        """The text of each sample of a pass."""
        return [self.texts[n] if n >= 0 else "" for n in read.texts]

    def told(self, each: Pass, read: Drawn) -> dict[str, Tensor]:
        """The conditions of a pass, see `conditions`."""
        return self.conditions(self.said(read), self.time_ids(each, read))

    def time_ids(self, each: Pass, read: Drawn) -> list[tuple[int, ...]]:
        """SDXL's size conditions of each sample of a pass, see `Sample.time_ids`."""
        samples = [self.pictures.samples[s] for s in each.samples]
        return [s.time_ids(flip, crop) for s, flip, crop in zip(samples, read.flips, read.crops, strict=True)]

    def names(self, each: Pass) -> str:
        return ", ".join(self.pictures.samples[s].item.name for s in each.samples)

    # Validation and previews.

    def validate(self) -> dict[str, float]:
        """The mean error on the held-out pictures, with the same noise and timesteps each time.

        The error is of the kind that is trained, but without loss weighting and masks, and with delta 1 for huber and
        smooth_l1.

        Returns:
            "validation_loss"; empty without held-out pictures.
        """
        if not self.held_out:
            return {}
        t = self.levels.spread(self.config.held_out.validation_times)
        total = 0.0
        for i in range(len(self.held_out)):
            moments = self.encoded.moments(self.held_out, [i], [False])
            generators = [stream_generator(0, Stream.VALIDATION, i, k) for k in range(len(t))]
            eps = torch.stack([torch.randn(moments.shape[2:], generator=generator) for generator in generators])
            x0 = moments[:, 0].float()
            for k in range(len(t)):  # one at a time: validation takes no more memory than training
                total += self.measure(i, x0, eps[k : k + 1], t[k : k + 1])
        return {"validation_loss": total / len(t) / len(self.held_out)}

    def measure(self, i: int, x0: Tensor, eps: Tensor, t: Tensor) -> float:
        """The error on held-out sample i, with latent x0 and noise eps (1, c, h, w), at timestep t (1,)."""
        assert self.held_out
        ones = torch.ones(1)
        conditions = self.conditions([self.held_out_texts[i]], [self.held_out.samples[i].time_ids()])
        batch = (self.levels.noised(x0, eps, t), t, self.levels.target(x0, eps, t), ones, ones)
        return float(self.loss(*(b.to(self.device) for b in batch), conditions)["loss"])

    @property
    def loss(self) -> DiffusionLoss:
        """The module that is minimised."""
        return self.model  # type: ignore[return-value]

    def draw_prompts(
        self, pipe: Any, towers: TextTowers | None = None, shots: Sequence[Shot] | None = None
    ) -> list[np.ndarray]:
        """Draw a picture of each preview prompt.

        Args:
            pipe: a pipeline with the U-Net, from `make_pipeline`.
            towers: text encoders to encode the prompts with; None to use `preview_words`.
            shots: what to draw, and how; None for what the settings say.

        Returns:
            (height, width, 3) uint8 for each prompt.
        """

        def states(text: str) -> dict[str, Tensor]:
            return towers(towers.tokenize([text]).to(self.device)) if towers else self.preview_words(text)

        shots = self.shots if shots is None else shots
        read = {text: states(text) for shot in shots for text in (shot.prompt, shot.negative)}
        with self.accelerator.autocast():
            return [draw(pipe, read[shot.prompt], read[shot.negative], shot) for shot in shots]

    def preview_words(self, text: str) -> dict[str, Tensor]:
        """A preview's encoded text: "states" (1, n, d) and for SDXL "pooled" (1, p), on the device."""
        return {name: value.to(self.device) for name, value in self.encoded.states([text]).items()}

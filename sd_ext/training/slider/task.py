"""The task of a slider: LoRA training with the loss of `TextSliderLoss` or `SliderLoss`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sd_ext.errors import InputError
from sd_ext.models import Model
from sd_ext.training.data.order import Pass
from sd_ext.training.data.pictures import Pictures, fingerprint
from sd_ext.training.diffusion.drawn import Drawn
from sd_ext.training.encoding.encoded import settled
from sd_ext.training.lora.estimate import Workload
from sd_ext.training.lora.task import LoraTask
from sd_ext.training.slider.config import SliderConfig
from sd_ext.training.slider.loss import SliderLoss, TextSliderLoss
from sd_ext.training.slider.pairs import partners

PLACE = "{}"


class SliderTask(LoraTask):
    """Trains adapters that act both ways.

    Args:
        config: all settings.
        files: the base model on disk.

    Raises:
        InputError: there are no usable pictures, no ends, or a picture has no partner.
    """

    name = "slider"
    config: SliderConfig

    def __init__(self, config: SliderConfig, files: Model):
        self.by_text = config.slider.ends == "texts"
        super().__init__(config, files)
        self.less: Pictures | None = None
        if not self.by_text:
            if self.held_out:
                raise InputError("pairs of pictures are not validated on; leave out what holds pictures out")
            self.less = partners(self.pictures, config.slider.less_data, config, self.scale)
            self.parts["less"] = fingerprint(self.less, [()] * len(self.less))

    @property
    def workload(self) -> Workload:
        """The input of the memory estimate: a sample is seen at both strengths, and by the base with every text."""
        watched = 1 + 2 * max(1, len(self.config.slider.preserve)) if self.by_text else 0
        return replace(super().workload, copies=2, watched=watched)

    @property
    def sets(self) -> list[Pictures]:
        """The pictures to encode."""
        return [*super().sets, *([self.less] if self.less else [])]

    def make_loss(self, unet: Any) -> SliderLoss:
        kind = self.config.loss.loss
        return TextSliderLoss(unet, kind, self.config.slider.push) if self.by_text else SliderLoss(unet, kind)

    # Texts.

    def ends(self, caption: str) -> tuple[str, list[str], list[str]]:
        """The texts of a picture: of the concept, and of both ends with each thing to preserve."""
        given = self.config.slider
        ends = [
            [", ".join(filter(None, (end.replace(PLACE, caption), kept))) for kept in given.preserve or ("",)]
            for end in (given.positive, given.negative)
        ]
        return given.concept.replace(PLACE, caption), ends[0], ends[1]

    def all_texts(self) -> list[str]:
        """Every text that must be encoded; with the ends' for each caption."""
        texts = super().all_texts()
        if not self.by_text:
            return texts
        captions = dict.fromkeys([*self.texts, *self.held_out_texts, ""])
        told = [self.ends(caption) for caption in captions]
        return list(dict.fromkeys([*texts, *(text for each in told for text in [each[0], *each[1], *each[2]])]))

    # Batches.

    def batch(self, each: Pass, read: Drawn, device: torch.device) -> tuple:
        """The arguments of the loss for a pass, on the device."""
        x0, (_, eps, eps_in_input) = self.latents(each, read), read.noises
        weight, mask = self.levels.weight(read.t) * self.weights(each), read.mask
        if self.by_text:
            return self.arguments(x0, eps_in_input, read.t, weight, self.said(read), self.time_ids(each, read), mask)
        x0 = torch.cat([x0, self.less_latents(each, read)])
        eps, eps_in_input, t, weight = (
            eps.repeat(2, 1, 1, 1),
            eps_in_input.repeat(2, 1, 1, 1),
            read.t.repeat(2),
            weight.repeat(2),
        )
        x = self.levels.noised(x0, eps_in_input, t).to(device, memory_format=torch.channels_last)
        rest = (each.to(device) for each in (t, self.levels.target(x0, eps, t), weight, self.levels.delta(t)))
        conditions = {name: torch.cat([value, value]) for name, value in self.told(each, read).items()}
        return x, *rest, conditions, None if mask is None else torch.cat([mask, mask]).to(device)

    def less_latents(self, each: Pass, read: Drawn) -> Tensor:
        """The latents of the pictures at the other end, each drawn as its partner's is: (b, c, h, w)."""
        assert self.less
        if self.config.cache.cache:
            moments = self.encoded.moments(self.less, each.samples, read.flips)
        else:
            places = zip(each.samples, read.flips, read.crops, strict=True)
            moments = self.encode_now(self.less, each, torch.stack([self.less.pixels(*place) for place in places]))
        moments = settled(moments)
        return moments[:, 0].float() + moments[:, 1].float() * read.noises[0]

    def arguments(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        weight: Tensor,
        captions: Sequence[str],
        time_ids: Sequence[tuple[int, ...]],
        mask: Tensor | None = None,
    ) -> tuple:
        """The arguments of `TextSliderLoss.forward`, for latents and noise (b, c, h, w) at timesteps (b,)."""
        told = [self.ends(caption) for caption in captions]
        concept = self.conditions([each[0] for each in told], time_ids)
        positive, negative = (
            [self.conditions(texts, time_ids) for texts in zip(*(each[end] for each in told), strict=True)]
            for end in (1, 2)
        )
        x = self.levels.noised(x0, eps, t).to(self.device, memory_format=torch.channels_last)
        rest = (each.to(self.device) for each in (t, weight, self.levels.delta(t)))
        return x, *rest, concept, positive, negative, None if mask is None else mask.to(self.device)

    def measure(self, i: int, x0: Tensor, eps: Tensor, t: Tensor) -> float:
        """The loss on one held-out picture."""
        assert self.held_out
        time_ids = [self.held_out.samples[i].time_ids()]
        arguments = self.arguments(x0, eps, t, torch.ones(1), [self.held_out_texts[i]], time_ids)
        return float(self.model(*arguments)["loss"])

    # Pictures.

    def draw_at(self, strength: float) -> list[Image.Image]:
        """Draw each prompt at a strength of the slider."""
        with self.model.strengths.at(strength):
            return super().draw_trained()

    def draw_trained(self) -> list[Image.Image]:
        """Draw each prompt at strength 1."""
        return self.draw_at(1.0)

    def rows(self, drawn: list[Image.Image]) -> dict[str, list[Image.Image]]:
        """The pictures at each strength, in order; at 0 those of the base model."""
        made = {0.0: self.base_pictures, 1.0: drawn}
        strengths = sorted({0.0, *self.config.slider.shown})
        return {f"{each:+g}" if each else "0": made[each] if each in made else self.draw_at(each) for each in strengths}

"""The task of a few-step LoRA: LoRA training whose loss is that of consistency distillation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sd_ext.errors import InputError
from sd_ext.models import Model
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.order import Pass
from sd_ext.training.diffusion.drawn import Drawn
from sd_ext.training.diffusion.settings import Shot
from sd_ext.training.few_step.config import FewStepConfig
from sd_ext.training.few_step.loss import ConsistencyLoss
from sd_ext.training.few_step.teacher import TeacherSteps, place_of
from sd_ext.training.lora.estimate import Workload
from sd_ext.training.lora.task import LoraTask
from sd_ext.training.lora.teacher import base_alone
from sd_ext.training.objective.weights import loss_weight
from sd_ext.training.run.loop import Ema


class FewStepTask(LoraTask):
    """Trains adapters with which a few network calls do what many do without them.

    Args:
        config: all settings.
        files: the base model on disk.

    Raises:
        InputError: there are no usable pictures, the solver cannot be used, or the base is a consistency model.
    """

    name = "few-step"
    config: FewStepConfig

    def __init__(self, config: FewStepConfig, files: Model):
        if files.setting("unet", "time_cond_proj_dim", int | None):
            raise InputError(
                f"{files.name} reads the guidance scale from an embedding, so it has been distilled already; a "
                "few-step LoRA learns from a model that has not"
            )
        super().__init__(config, files)
        own = config.consistency
        self.steps = TeacherSteps(own.solver, own.skip, self.noise, own.timestep_scaling)
        self.grid = self.steps.t.clone()  # stays on the CPU

    @property
    def workload(self) -> Workload:
        """The input of the memory estimate: the teacher sees every sample with its text and without."""
        return replace(super().workload, watched=2)

    def make_loss(self, unet: Any) -> ConsistencyLoss:
        return ConsistencyLoss(unet, self.steps, self.config.loss.loss)

    def watch(self, ema: Ema | None) -> None:
        """Take the averaged adapters for the target of the loss."""
        self.model.averages = ema  # type: ignore[assignment]

    # Batches.

    def timesteps(self, each: Pass) -> Tensor:
        """The timesteps of a pass, each moved up to one of the teacher's: (b,)."""
        return self.grid[place_of(super().timesteps(each), self.grid)]

    def guidance(self, each: Pass) -> Tensor:
        """The teacher's guidance scale for each sample of a pass: (b,)."""
        least, most = (self.config.consistency.teacher_guidance * 2)[:2]
        generators = [stream_generator(self.config.loop.seed, Stream.GUIDANCE, each.step, n) for n in each.positions]
        share = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        return least + (most - least) * share

    def batch(self, each: Pass, read: Drawn, device: torch.device) -> tuple:
        """The arguments of `ConsistencyLoss.forward` for a pass, on the device."""
        x0, eps = self.latents(each, read), read.noises[2]
        told = self.told(each, read)
        return self.arguments(x0, eps, read.t, self.guidance(each), self.weights(each), told, read.mask)

    def arguments(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        guidance: Tensor,
        weight: Tensor,
        conditions: dict[str, Tensor],
        mask: Tensor | None = None,
    ) -> tuple:
        """The arguments of the loss for latents and noise (b, c, h, w) at timesteps of the teacher's (b,)."""
        delta = self.levels.delta(t)
        if self.config.loss.loss == "huber":  # as published: sqrt(d^2 + c^2) - c, while `error` is 2 c times this
            weight = weight / (2 * delta)
        x = self.levels.noised(x0, eps, t).to(self.device, memory_format=torch.channels_last)
        rest = (each.to(self.device) for each in (place_of(t, self.grid), guidance, weight * self.weight(t), delta))
        return x, *rest, conditions, self.nothing(conditions), None if mask is None else mask.to(self.device)

    def weight(self, t: Tensor) -> Tensor:
        """The factor of each sample's distance, which is one of x0: (b,)."""
        loss = self.config.loss
        return loss_weight(loss.loss_weighting, "sample", self.levels.snr(t), loss.gamma or None)

    def nothing(self, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The conditions of the same samples for no text, as pipelines have them: (b, ...) each."""
        if self.files.family == "sdxl" and self.files.zeros_for_no_prompt:
            return {n: value if n == "time_ids" else torch.zeros_like(value) for n, value in conditions.items()}
        empty = {name: value.to(self.device) for name, value in self.encoded.states([""]).items()}
        return {n: value if n == "time_ids" else empty[n].expand_as(value) for n, value in conditions.items()}

    def measure(self, i: int, x0: Tensor, eps: Tensor, t: Tensor) -> float:
        """The loss at the middle of the guidance scales."""
        assert self.held_out
        conditions = self.conditions([self.held_out_texts[i]], [self.held_out.samples[i].time_ids()])
        t, given = self.grid[place_of(t, self.grid)], self.config.consistency
        middle = (given.teacher_guidance[0] + given.teacher_guidance[-1]) / 2
        return float(self.model(*self.arguments(x0, eps, t, torch.tensor([middle]), torch.ones(1), conditions))["loss"])

    # Pictures.

    @property
    def own_shots(self) -> list[Shot]:
        """The same in few steps, and without guidance, which is in the LoRA."""
        return [replace(shot, steps=self.config.consistency.few_steps, guidance=1.0) for shot in self.shots]

    def draw_few(self) -> list[Image.Image]:
        """Draw each prompt in few steps."""
        from diffusers import LCMScheduler

        pipe = self.drawer(self.unet)
        pipe.scheduler = LCMScheduler(**self.noise)
        return [Image.fromarray(picture) for picture in self.draw_prompts(pipe, shots=self.own_shots)]

    def draw_trained(self) -> list[Image.Image]:
        return self.draw_few()

    def rows(self, drawn: list[Image.Image]) -> dict[str, list[Image.Image]]:
        """The base model in many steps and in few, and the LoRA in few."""
        calls, few = self.config.previews.preview_steps, self.config.consistency.few_steps
        with base_alone(self.unet):
            without = self.draw_few()
        return {f"base, {calls}": self.base_pictures, f"base, {few}": without, f"LoRA, {few}": drawn}

"""The loss of consistency distillation with guidance (Luo et al. 2023, arXiv 2310.04378, eq. 14 and algorithm 1).

The teacher, which is the base model without adapters, takes one step of its guided ODE from x_t to x_s. The jump to x0
from x_t, by the network with adapters, shall be where the jump from x_s goes; that is computed without gradients, by
the averaged adapters if there are any (Song et al. 2023, arXiv 2303.01469, eq. 7), else by the present ones. At the end
of the path the jump from x_s is x_s itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sd_ext.training.few_step.teacher import TeacherSteps
from sd_ext.training.lora.teacher import base_alone
from sd_ext.training.model.text_encoders import unet_arguments
from sd_ext.training.objective.error import error
from sd_ext.training.run.loop import Ema

Conditions = dict[str, Tensor]


class ConsistencyLoss(nn.Module):
    """The weighted distance of two jumps: see `forward`.

    Args:
        unet: the U-Net with adapters.
        steps: the teacher's steps.
        kind: kind of distance, one of `ERRORS`.

    Attributes:
        averages: has the averaged adapters as `average`, by parameter name in this module; None if there are none.
    """

    def __init__(self, unet: Any, steps: TeacherSteps, kind: str = "huber"):
        super().__init__()
        self.unet, self.steps, self.kind = unet, steps, kind
        self.averages: Ema | None = None

    def forward(
        self,
        x: Tensor,
        place: Tensor,
        guidance: Tensor,
        weight: Tensor,
        delta: Tensor,
        conditions: Conditions,
        nothing: Conditions,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            x: noisy latents (b, c, h, w).
            place: their places among the teacher's steps (b,).
            guidance: the teacher's guidance scale for each sample (b,).
            weight: factor of each sample's distance (b,).
            delta: see `error` (b,).
            conditions: "states" (b, n, d), for SDXL also "pooled" (b, p) and "time_ids" (b, 6).
            nothing: the same for the empty text.
            mask: see `error` (b, 1, h, w).

        Returns:
            "loss": a scalar, the mean over the batch.
        """
        wanted = self.target(x, place, guidance, conditions, nothing)
        prediction = self.unet(x, self.steps.times(place), **unet_arguments(conditions)).sample
        found = self.steps.jump(x, place, prediction)
        return {"loss": (weight * error(self.kind, found, wanted, delta, mask)).mean()}

    @torch.no_grad()
    def target(self, x: Tensor, place: Tensor, guidance: Tensor, conditions: Conditions, nothing: Conditions) -> Tensor:
        """Where the jump from the end of the teacher's step goes: (b, c, h, w). Arguments as for `forward`."""
        both = {name: torch.cat([value, nothing[name]]) for name, value in conditions.items()}
        scale = guidance[:, None, None, None]

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            seen = self.unet(x.repeat(2, 1, 1, 1), t.repeat(2), **unet_arguments(both)).sample
            said, unsaid = seen.to(x.dtype).chunk(2)
            return unsaid + scale * (said - unsaid)

        with base_alone(self.unet):
            x = self.steps.take(x, place, teacher)
        average = self.averages.average if self.averages else {}
        own = {name.removeprefix("unet."): value for name, value in average.items()}
        arguments = (x, self.steps.times(place + 1))
        prediction = functional_call(self.unet, own, arguments, unet_arguments(conditions)).sample
        return self.steps.jump(x, place + 1, prediction)

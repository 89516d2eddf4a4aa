"""The losses of sliders (Gandikota et al. 2023, arXiv 2311.12092).

TextSliderLoss   At strength +1 and -1 the network with the LoRA shall predict of a concept c what the base model
                 predicts of it, moved towards one end and away from the other by their difference:

                     e(x, c) +- push mean_p (e(x, (c+, p)) - e(x, (c-, p)))        (eq. 8; there a sum over p, for +)

                 p are what shall stay as it is, said at both ends, or nothing. Linear in predictions, it is the same
                 for eps, v and x0.
SliderLoss       Of pairs of pictures, with the same noise: at strength +1 the usual error on the one, at -1 on the
                 other (eq. 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.training.lora.teacher import base_alone
from sd_ext.training.model.text_encoders import unet_arguments
from sd_ext.training.objective.error import error
from sd_ext.training.slider.strengths import Strengths

Conditions = dict[str, Tensor]


class SliderLoss(nn.Module):
    """The mean of the weighted errors at strength +1 and -1: of pairs, see above.

    Args:
        unet: the U-Net with adapters.
        kind: kind of error, one of `ERRORS`.

    Attributes:
        strengths: of the adapters.
    """

    def __init__(self, unet: Any, kind: str = "l2"):
        super().__init__()
        self.unet, self.kind, self.strengths = unet, kind, Strengths(unet)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        wanted: Tensor,
        weight: Tensor,
        delta: Tensor,
        conditions: Conditions,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of 2b samples, the first b at strength +1; arguments as for `DiffusionLoss.forward`."""
        half = len(x) // 2
        self.strengths.now = torch.cat([torch.ones(half), -torch.ones(half)]).to(x.device)
        prediction = self.unet(x, t, **unet_arguments(conditions)).sample
        return {"loss": (weight * error(self.kind, prediction, wanted, delta, mask)).mean()}


class TextSliderLoss(SliderLoss):
    """See above: a slider between two texts.

    Args:
        unet, kind: see `SliderLoss`.
        push: how far strength 1 goes.
    """

    def __init__(self, unet: Any, kind: str = "l2", push: float = 1.0):
        super().__init__(unet, kind)
        self.push = push

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        weight: Tensor,
        delta: Tensor,
        concept: Conditions,
        positive: Sequence[Conditions],
        negative: Sequence[Conditions],
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            x: noisy latents (b, c, h, w).
            t: timesteps (b,).
            weight, delta: of each sample's error (b,), see `DiffusionLoss.forward`.
            concept: conditions of the concept: "states" (b, n, d), for SDXL also "pooled" and "time_ids".
            positive, negative: the same at the two ends, one for each p.
            mask: see `error` (b, 1, h, w).

        Returns:
            "loss": a scalar, the mean over the batch and both strengths.
        """
        texts = [concept, *positive, *negative]
        all_of = {name: torch.cat([each[name] for each in texts]) for name in concept}
        with base_alone(self.unet):
            seen = self.unet(x.repeat(len(texts), 1, 1, 1), t.repeat(len(texts)), **unet_arguments(all_of)).sample
        base, *ends = seen.float().chunk(len(texts))
        more, less = torch.stack(ends).chunk(2)
        move = self.push * (more - less).mean(0)
        wanted = torch.cat([base + move, base - move])
        doubled = {name: torch.cat([value, value]) for name, value in concept.items()}
        masks = None if mask is None else torch.cat([mask, mask])
        both = (torch.cat([x, x]), t.repeat(2), wanted, weight.repeat(2), delta.repeat(2), doubled, masks)
        return super().forward(*both)

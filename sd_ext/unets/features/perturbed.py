"""Perturbed-attention guidance (PAG, Ahn et al. 2024, arXiv 2403.17377), smoothed-energy guidance (SEG, Hong 2024,
arXiv 2408.00760) and skip-layer guidance (SLG, Stability AI 2024, github.com/Stability-AI/sd3.5; for U-Nets the spatial
part of STG, arXiv 2411.18664), built into the network, so that they work in every pipeline.

All move the prediction away from that of a network that is made worse in some layers: the self-attention map is
replaced by the identity (PAG, equation 15), its queries are blurred over the picture (SEG, equation 12), or whole
transformer blocks are left out (SLG):

    guided + scale (conditional - perturbed)

The network adds the same difference d to every branch of the batch. Classifier-free guidance of any weight w then
leaves it unchanged: (u + d) + w ((c + d) - (u + d)) = u + w (c - u) + d.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..inside import views
from ..inside.hooks import OfThread
from ..inside.host import Host
from .feature import PREDICTION, Options
from .guidance import Calls, Guidance
from .options import Option, interval
from .perturbations import (
    BlurredQueries,
    IdentityAttention,
    Skipped,
    find_self_attention,
    find_transformer_blocks,
)

TRAINED_STEPS = 1000  # timesteps that models of this architecture are trained on


class PerturbedGuidance(Guidance):
    """Adds a further call of the network, for the conditional samples, for each of the three guidances that is on.

    Classifier-free guidance may be off, or in one batch, which the pipeline says (see `inside/told.py`). If a
    pipeline calls the network separately for each prompt, each prediction is moved away from its own perturbed one. In
    training mode nothing is added. The perturbed network is a view, so other threads may run the model meanwhile.
    A pipeline with `guidance_rescale` measures the standard deviation after this
    guidance.

    Options:
        pag_scale, seg_scale, slg_scale: factors of the differences; 0 is off, the papers use 3, and 2.8 for SLG.
        pag_layers, seg_layers: where self-attention is perturbed: names of layers, or of blocks that contain them, such
            as "mid", "up_blocks.0" or "down_blocks.2.attentions.1".
        slg_layers: names of the transformer blocks that are left out, or of blocks that contain them.
        pag_interval, seg_interval, slg_interval: [start, stop) as fractions of the run's steps or, if the number of
            steps is not known, of the trained timesteps, from noise to picture.
        seg_sigma: the blur's standard deviation in tokens; None is infinite: every query becomes the mean of all.
    """

    name: ClassVar[str] = "perturbed guidance"
    options: ClassVar[dict[str, Option]] = {
        "pag_scale": Option(0.0, float, "perturbed-attention guidance (arXiv 2403.17377); the paper uses 3"),
        "pag_layers": Option(["mid"], list[str], 'blocks or layers that are perturbed, such as "mid" or "up_blocks.0"'),
        "pag_interval": interval("perturbed-attention guidance"),
        "seg_scale": Option(0.0, float, "smoothed-energy guidance (arXiv 2408.00760); the paper uses 3"),
        "seg_layers": Option(["mid"], list[str], "blocks or layers whose queries are blurred"),
        "seg_interval": interval("smoothed-energy guidance"),
        "seg_sigma": Option(
            10.0,
            float | None,
            "the blur's standard deviation in tokens; None is infinite",
            lambda value: value is None or value > 0,
            "above 0, or None for the mean of all",
        ),
        "slg_scale": Option(0.0, float, "skip-layer guidance (github.com/Stability-AI/sd3.5, arXiv 2411.18664)"),
        "slg_layers": Option(["mid"], list[str], "blocks that are left out, or what contains them"),
        "slg_interval": interval("skip-layer guidance; of its authors 0.01 to 0.2"),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        """Whether all scales are 0; the other options alone have no effect."""
        return not any(options[f"{kind}_scale"] for kind in FINDERS)

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.sigma = options["seg_sigma"]
        self.kinds = tuple(
            _Kind(
                kind,
                options[f"{kind}_scale"],
                tuple(find(host.network, f"{kind}_layers", options[f"{kind}_layers"])),
                tuple(options[f"{kind}_interval"]),
            )
            for kind, find in FINDERS.items()
            if options[f"{kind}_scale"]
        )
        self.now = _Now()

    def takes(self) -> Mapping[tuple[str, str], str]:
        """The prediction that other guidance starts from."""
        return {PREDICTION: f"{self.kinds[0].name}_scale"}

    def needs(self) -> Mapping[tuple[str, str], str]:
        """The blur needs the whole grid."""
        blurred = [kind.layers for kind in self.kinds if kind.name == "seg"]
        return {("grid of tokens", name): "seg_layers" for names in blurred for name in names}

    def guide(self, calls: Calls) -> torch.Tensor:
        """The prediction with scale (conditional - perturbed) added to each branch."""
        output = calls.plain()
        kinds = self._kinds_now()
        branches = calls.branches(f"{kinds[0].name}_scale") if kinds else None
        if branches is None:
            return output
        conditional, inputs = output.chunk(branches)[-1], calls.half("conditional", branches)
        push = torch.zeros_like(conditional)
        for kind in kinds:
            self.now.kind = kind.name
            try:
                with self._worse(kind, calls.sample):
                    push += kind.scale * (conditional - calls.further(inputs, "conditional"))
            finally:
                self.now.kind = None
        return output + torch.cat([push] * branches)

    def reuse_key(self) -> Hashable:
        """Which guidances are on, and which perturbation is being computed: each has features of its own.

        When a guidance begins or ends, all calls of the step run the whole network, since their difference makes sense
        only for features of the same step.
        """
        return tuple(kind.name for kind in self._kinds_now()), self.now.kind

    def _kinds_now(self) -> list[_Kind]:
        """The guidances that are on at this step."""
        call = self.host.call
        if call is None:
            return []
        share = call.step / call.total if call.total else 1 - (call.timestep + 1) / TRAINED_STEPS
        return [kind for kind in self.kinds if kind.interval[0] <= share < kind.interval[1]]

    def _worse(self, kind: _Kind, sample: torch.Tensor) -> AbstractContextManager[None]:
        """Context manager: the network is made worse."""
        if kind.name == "slg":
            return views.without(self.host, {name: Skipped() for name in kind.layers}, "slg_scale")
        height, width = sample.shape[-2:]
        worse = IdentityAttention() if kind.name == "pag" else BlurredQueries(self.sigma, height / width)
        return views.processed(self.host, kind.layers, worse)


FINDERS = {"pag": find_self_attention, "seg": find_self_attention, "slg": find_transformer_blocks}
"""Kind of guidance -> what finds the layers that it perturbs."""


@dataclass(frozen=True)
class _Kind:
    """A guidance that is on: its name, the factor of its difference, the names of its layers, and its interval."""

    name: str
    scale: float
    layers: tuple[str, ...]
    interval: tuple[float, float]


class _Now(OfThread):
    """Which perturbation a thread is computing; None if none."""

    kind: str | None = None

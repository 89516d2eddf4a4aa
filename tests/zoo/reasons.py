"""Why some pipelines cannot run with some samplers, where the reason lies in the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from . import ZOO
from .cell import Problem

WITNESS = "EulerDiscreteScheduler"
"""A scheduler of Diffusers' own that fails in every pipeline that refuses all but one class."""


@dataclass(frozen=True)
class Reason:
    """A known limit of some pipelines.

    Args:
        pipelines: where it is met.
        kind, part: the problem it shows as: its kind, and part of its message.
        text: the reason in words.
        witness: a scheduler of Diffusers' own that the same pipelines fail with.
        whole: it concerns fractional timesteps only: a grid of whole ones (`timestep_spacing="leading"`) goes round it,
            for samplers that call the network at the grid's timesteps and nowhere in between.
    """

    pipelines: tuple[str, ...]
    kind: str
    part: str
    text: str
    witness: str
    whole: bool = False

    def explains(self, pipeline: str, problem: Problem) -> bool:
        return pipeline in self.pipelines and problem.kind == self.kind and self.part in problem.message


LCM = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
REASONS = (
    Reason(
        LCM,
        "TypeError",
        "original_inference_steps",
        "hands `original_inference_steps` to `set_timesteps`, which schedulers for consistency models alone take",
        "DDIMScheduler",
    ),
    Reason(
        LCM,
        "ValueError",
        "not enough values to unpack",
        "takes from `step` a second value, the picture as a consistency model sees it, which LCM gives",
        "TCDScheduler",
    ),
    Reason(
        ("KandinskyImg2ImgPipeline", "KandinskyImg2ImgCombinedPipeline"),
        "IndexError",
        "tensors used as indices",
        "looks up its own table of noise levels by the timestep, which must be a whole number",
        "EulerDiscreteScheduler",
        whole=True,
    ),
    Reason(
        ("StableDiffusionSAGPipeline",),
        "ValueError",
        "does not support using a scheduler of type",
        "refuses timesteps that are not whole numbers",
        "EulerDiscreteScheduler",
        whole=True,
    ),
    Reason(
        ("TextToVideoZeroPipeline",),
        "TypeError",
        "slice indices must be integers",
        "takes a slice of the scheduler's `alphas` from one timestep to another, which must be whole numbers",
        "EulerDiscreteScheduler",
        whole=True,
    ),
    Reason(
        ("StableDiffusionPix2PixZeroPipeline",),
        "KeyError",
        "",
        "keeps attention maps by timestep and takes each out once: no timestep may come twice, as it does where a "
        "sampler calls the network at the end of one step and again at the start of the next",
        "HeunDiscreteScheduler",
    ),
)


UNSEEDED = ("StableDiffusionLatentUpscalePipeline", "LDMTextToImagePipeline")
"""Pipelines that keep their generator from the scheduler: noise comes from torch's own."""


OTHER_OUTPUT = {
    "StableDiffusionLatentUpscalePipeline": "hands `step` a prediction that it has computed from the network's output",
}
"""Pipelines in which the halves of the network's output are not those of what `step` gets, and why."""

NO_GUIDANCE = (
    "LDMTextToImagePipeline",
    "MarigoldDepthPipeline",
    "MarigoldNormalsPipeline",
    "MarigoldIntrinsicsPipeline",
)
"""Pipelines that use no guidance, or not unless they are told to."""


def explain(pipeline: str, problem: Problem) -> tuple[str, Reason | None]:
    """The reason in words, "" if it is not known, and the `Reason` if it is one of `REASONS`."""
    for reason in REASONS:
        if reason.explains(pipeline, problem):
            return reason.text, reason
    return ZOO[pipeline].refused, None

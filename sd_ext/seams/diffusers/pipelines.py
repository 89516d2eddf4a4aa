"""The pipeline that is calling a network, and what it is doing."""

from __future__ import annotations

from typing import Any

from ...errors import SeamError
from ..python import variables_of_caller
from ..seam import declare, seam

declare(
    f"{__name__}.running_pipeline",
    "self",
    "callback_on_step_end",
    seen="diffusers 0.41 to 0.42, variables of the pipelines' __call__",
    gone="guidance in the features of U-Nets, in pipelines that have not been attached",
    fallback="every row of a batch is a picture of its own",
)


def running_pipeline() -> Any:
    """The innermost pipeline whose call is running in this thread; None if there is none.

    Several pipelines may share a network, so only the calling function tells which of them the network runs for.
    """
    try:
        return variables_of_caller("callback_on_step_end").get("self")
    except SeamError:
        return None


def count_steps(pipe: Any, otherwise: int) -> int:
    """The number of steps of the pipeline's current run; `otherwise` if the pipeline does not say."""
    total = getattr(pipe, "_num_timesteps", None)
    return total if isinstance(total, int) and 0 < total <= otherwise else otherwise


declare(
    f"{__name__}.count_steps",
    "_num_timesteps",
    seen="diffusers 0.41 to 0.42, attributes of pipelines during a run",
    gone="knowing the steps that image-to-image leaves out",
    fallback="all of the scheduler's timesteps are the run",
)


@seam("do_classifier_free_guidance", seen="diffusers 0.41 to 0.42, properties of pipelines", gone="guidance intervals")
def is_guided(pipe: Any) -> bool:
    """Whether the pipeline's current run uses classifier-free guidance."""
    return bool(pipe.do_classifier_free_guidance)


def can_be_guided(pipe: Any) -> bool:
    """Whether this class of pipeline supports classifier-free guidance."""
    return hasattr(type(pipe), "do_classifier_free_guidance")


declare(
    f"{__name__}.has_three_branches",
    "image_guidance_scale",
    "set_pag_applied_layers",
    seen="diffusers 0.41 to 0.42, InstructPix2Pix and PAG pipelines",
    gone="refusing guidance intervals for pipelines of three branches",
)


def has_three_branches(pipe: Any) -> bool:
    """Whether guidance combines three predictions, as in InstructPix2Pix and perturbed-attention pipelines."""
    return hasattr(type(pipe), "image_guidance_scale") or hasattr(type(pipe), "set_pag_applied_layers")


def batch_parts(pipe: Any) -> tuple[str, ...] | None:
    """What the equal parts of the batch are that the pipeline calls its U-Net with; None if it does not say."""
    if not can_be_guided(pipe):
        return None
    guided = is_guided(pipe)
    if hasattr(type(pipe), "image_guidance_scale"):
        return ("conditional", "image", "unconditional") if guided else ("conditional",)
    parts = ("unconditional", "conditional") if guided else ("conditional",)
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        parts = (*parts, "perturbed")
    return parts

"""The pipeline that is calling a network, and what it is doing."""

from __future__ import annotations

from typing import Any

from ..python import variables_of_caller
from ..seam import declare, seam

declare(
    f"{__name__}.running_call",
    "self",
    "callback_on_step_end",
    seen="diffusers 0.41 to 0.42, variables of the pipelines' __call__",
    gone="guidance intervals",
)


def running_call() -> tuple[Any, Any]:
    """The innermost pipeline call that is running in this thread.

    Several pipelines may share a network, so only the calling function tells which of them the network runs for.

    Returns:
        The pipeline and its `callback_on_step_end`; each None if not found.
    """
    variables = variables_of_caller("callback_on_step_end")
    return variables.get("self"), variables.get("callback_on_step_end")


@seam("num_timesteps", seen="diffusers 0.41 to 0.42, properties of pipelines", gone="guidance intervals")
def count_steps(pipe: Any) -> int:
    """The number of steps of the pipeline's current run."""
    return pipe.num_timesteps


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

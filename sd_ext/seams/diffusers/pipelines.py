"""The pipeline that calls: what it is doing now."""

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
    """The innermost pipeline call in this thread: the pipeline and its `callback_on_step_end`; None for what is not.

    A network may be shared between pipelines, so that only the caller tells for which of them it runs.
    """
    variables = variables_of_caller("callback_on_step_end")
    return variables.get("self"), variables.get("callback_on_step_end")


@seam("num_timesteps", seen="diffusers 0.41 to 0.42, properties of pipelines", gone="guidance intervals")
def count_steps(pipe: Any) -> int:
    """Steps of the pipeline's run in progress."""
    return pipe.num_timesteps


@seam("do_classifier_free_guidance", seen="diffusers 0.41 to 0.42, properties of pipelines", gone="guidance intervals")
def is_guided(pipe: Any) -> bool:
    """Whether the pipeline's run in progress has classifier-free guidance."""
    return bool(pipe.do_classifier_free_guidance)


def can_be_guided(pipe: Any) -> bool:
    """Whether runs of such a pipeline may have classifier-free guidance."""
    return hasattr(type(pipe), "do_classifier_free_guidance")


declare(
    f"{__name__}.has_three_branches",
    "image_guidance_scale",
    "set_pag_applied_layers",
    seen="diffusers 0.41 to 0.42, InstructPix2Pix and PAG pipelines",
    gone="refusing guidance intervals for pipelines of three branches",
)


def has_three_branches(pipe: Any) -> bool:
    """Whether guidance stacks three predictions: of InstructPix2Pix, and of perturbed-attention guidance."""
    return hasattr(type(pipe), "image_guidance_scale") or hasattr(type(pipe), "set_pag_applied_layers")

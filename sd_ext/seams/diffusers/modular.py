"""The blocks of Modular SDXL, of which those of Stable Diffusion are made, and where Diffusers looks for others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

from ..seam import declare, seam

WANTED = {
    "before_denoise": (
        *("StableDiffusionXLSetTimestepsStep", "StableDiffusionXLPrepareLatentsStep"),
        *("StableDiffusionXLImg2ImgSetTimestepsStep", "StableDiffusionXLImg2ImgPrepareLatentsStep"),
        *("StableDiffusionXLInpaintPrepareLatentsStep", "StableDiffusionXLControlNetInputStep"),
    ),
    "denoise": (
        *("StableDiffusionXLDenoiseStep", "StableDiffusionXLInpaintDenoiseStep"),
        *("StableDiffusionXLControlNetDenoiseStep", "StableDiffusionXLInpaintControlNetDenoiseStep"),
    ),
    "modular_blocks_stable_diffusion_xl": (
        *("StableDiffusionXLAutoBlocks", "StableDiffusionXLAutoIPAdapterStep", "StableDiffusionXLAutoVaeEncoderStep"),
        *("StableDiffusionXLAutoControlNetInputStep", "StableDiffusionXLAutoDecodeStep"),
        *("StableDiffusionXLTextEncoderStep", "StableDiffusionXLInputStep", "StableDiffusionXLAutoBeforeDenoiseStep"),
    ),
}
"""Module of Modular SDXL -> the blocks that are taken from it."""


@seam(
    *(name for names in WANTED.values() for name in names),
    seen="diffusers 0.42, modular_pipelines.stable_diffusion_xl",
    gone="the blocks of sd_ext.modular",
)
def sdxl_blocks() -> Any:
    """The blocks by their name without "StableDiffusionXL", as attributes."""
    import importlib

    found = {}
    for module, names in WANTED.items():
        there = importlib.import_module(f"diffusers.modular_pipelines.stable_diffusion_xl.{module}")
        found |= {name.removeprefix("StableDiffusionXL"): getattr(there, name) for name in names}
    return SimpleNamespace(**found)


@seam(
    "_workflow_map",
    seen="diffusers 0.42, modular_pipelines.modular_pipeline",
    gone="the blocks of sd_ext.modular",
)
def workflows_of(blocks: type) -> dict[str, dict[str, bool]]:
    """What a class of blocks can be asked for by `get_workflow`: name -> the inputs that choose it."""
    return dict(blocks._workflow_map)


declare(
    f"{__name__}.offer_workflows",
    "_workflow_map",
    seen="diffusers 0.42, modular_pipelines.modular_pipeline",
    gone="workflows by name, of the blocks of sd_ext.modular",
)


def offer_workflows(blocks: type, workflows: dict[str, dict[str, bool]]) -> None:
    """Make `get_workflow` know these of a class of blocks; see `workflows_of`."""
    blocks._workflow_map = workflows  # type: ignore[attr-defined]


declare(
    f"{__name__}.Recorded",
    "_requirements",
    "__module__",
    seen="diffusers 0.42, ModularPipelineBlocks.save_pretrained",
    gone="folders with blocks of sd_ext.modular that load by themselves",
)

HOME = "sd_ext.modular"


class Recorded:
    """Mixin for blocks of this package: saved settings name the package as needed, and the file in the folder that
    says where the blocks are, so that files here may be moved.
    """

    _requirements: ClassVar[dict[str, str]] = {"sd_ext": ">=0.1"}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(f"{HOME}."):
            cls.__module__ = HOME


@seam(
    "MODULAR_PIPELINE_MAPPING",
    seen="diffusers 0.42, modular_pipelines.modular_pipeline",
    gone="ModularPipeline.from_pretrained for Stable Diffusion 1.x and 2.x",
)
def let_be_built(model_name: str, pipeline: type, blocks: type) -> None:
    """Make `init_pipeline` and `ModularPipeline.from_pretrained` find a pipeline and its blocks for a kind of model.

    Diffusers looks both up by name in its own namespace. What it should have one day by itself stays.

    Args:
        model_name: the kind, as Diffusers calls it.
        pipeline: the class of the pipeline.
        blocks: its usual blocks.
    """
    import diffusers
    from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING

    known: dict[str, Any] = MODULAR_PIPELINE_MAPPING  # type: ignore[assignment]
    if model_name not in known:
        known[model_name] = lambda config=None: pipeline.__name__
        for cls in (pipeline, blocks):
            setattr(diffusers, cls.__name__, cls)


@seam("_execution_device", seen="diffusers 0.41 to 0.42, ModularPipeline", gone="the blocks of sd_ext.modular")
def execution_device(components: Any) -> Any:
    """Where a pipeline computes, with offloading too."""
    return components._execution_device

"""sd_ext: a Diffusers extension package.

`import sd_ext` is cheap: names are imported when they are first used. It is also all that
`DiffusionPipeline.from_pretrained` needs to load pipelines saved with this package's classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AutoScheduler",
    "CachedUNet2DConditionModel",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolver2SAncestralScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "ERSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "GradientEstimationScheduler",
    "GuidanceInterval",
    "HeunDiscreteScheduler",
    "HeunPPDiscreteScheduler",
    "HighResUNet2DConditionModel",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "NoiseSchedule",
    "PNDMScheduler",
    "RESMultistepScheduler",
    "RESSinglestepScheduler",
    "RestartScheduler",
    "SASolverScheduler",
    "SEEDSScheduler",
    "SamplerInfo",
    "TCDScheduler",
    "Table",
    "TableScheduler",
    "TokenReducedUNet2DConditionModel",
    "UniPCMultistepScheduler",
    "VariantUNet2DConditionModel",
    "__version__",
    "attention_report",
    "list_grids",
    "list_samplers",
    "make_scheduler",
    "pretrained_path",
    "set_attention",
]

_ELSEWHERE = {
    "pretrained_path": "sd_ext.pretrained",
    "CachedUNet2DConditionModel": "sd_ext.unets",
    "GuidanceInterval": "sd_ext.unets",
    "HighResUNet2DConditionModel": "sd_ext.unets",
    "TokenReducedUNet2DConditionModel": "sd_ext.unets",
    "VariantUNet2DConditionModel": "sd_ext.unets",
    "attention_report": "sd_ext.unets",
    "set_attention": "sd_ext.unets",
    # Diffusers looks these up on the module a saved pipeline names.
    "SchedulerMixin": "diffusers",
    "ModelMixin": "diffusers",
}

if TYPE_CHECKING:
    from .pretrained import pretrained_path
    from .schedulers import *  # noqa: F403
    from .unets import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _ELSEWHERE:
        raise AttributeError(f"module 'sd_ext' has no attribute {name!r}")
    value = getattr(importlib.import_module(_ELSEWHERE.get(name, "sd_ext.schedulers")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Samplers, U-Nets, prompts, LoRAs and training for Stable Diffusion in Diffusers.

    import sd_ext                                     # cheap: names are imported when they are first used
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m karras", pipe.scheduler.config)
    pipe("red apple", num_inference_steps=20).images[0].save("red-apple.png")

Samplers
    make_scheduler(name, config)      a scheduler by any of its names, for the model with this scheduler config
    list_samplers(), list_grids()     the samplers, as `SamplerInfo`, and the grids of timesteps
    DDIMScheduler, ...Scheduler       their classes, named as in Diffusers; each says order, calls and paper
    Table, NoiseSchedule              what a sampler is made of, and what a model was trained on
    attach, detach                    let a U-Net leave its unconditional predictions, for samplers with CFG++
    calibrate(pipe, prompts)          fit samplers of few calls to a model of your own

U-Nets
    VariantUNet2DConditionModel       Diffusers' U-Net with features; also Cached..., TokenReduced..., HighRes...
    set_attention, attention_report   kernels of attention, and which are used
    DeepCacheConfig                   for unet.enable_cache(...), which Diffusers' own U-Net lacks
    GuidanceInterval                  guidance in a part of the steps only, with `with`
    guided_by(pipe, guider)           guidance by one of Diffusers' guiders, with `with`
    publishable(pipe, folder)         save a pipeline that loads without this package, as the plain one
    regional(pipe, regions)           parts of a picture with prompts of their own, with `with`
    sampling(pipe)                    tell U-Nets and samplers what a pipeline does, with `with`

Prompts and LoRAs
    encode_prompt(pipe, text)         prompts as AUTOMATIC1111 reads them, of any length
    use_embedding, use_lora           learned words and LoRA files of any kind, with `with`

Packages
    lora, prompts, unets, schedulers  all of what the names above belong to, and more: sd_ext.lora.read_lora(...)
    models, hub, training, errors     models on disk, publishing, training, and every exception raised on purpose
    calibration                       what calibrate() does, step by step
    modular                           blocks for Modular pipelines, of Stable Diffusion 1.x and 2.x too

The command `sd-ext` draws, trains, converts and publishes: `sd-ext --help`. `import sd_ext` is also all that
`DiffusionPipeline.from_pretrained` needs to load pipelines saved with this package's classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

_ROOMS = {"Scheduler": "sd_ext.schedulers", "UNet2DConditionModel": "sd_ext.unets"}
"""End of a class's name -> its package. Saved pipelines record classes as `sd_ext.NAME`, so each must be found here."""

_OTHERS = {
    "DeepCacheConfig": "sd_ext.unets",
    "GuidanceInterval": "sd_ext.unets",
    "NoiseSchedule": "sd_ext.schedulers",
    "SamplerInfo": "sd_ext.schedulers",
    "Table": "sd_ext.schedulers",
    "attach": "sd_ext.attaching",
    "attention_report": "sd_ext.unets",
    "calibrate": "sd_ext.calibration",
    "detach": "sd_ext.attaching",
    "encode_prompt": "sd_ext.prompts",
    "guided_by": "sd_ext.unets",
    "list_grids": "sd_ext.schedulers",
    "list_samplers": "sd_ext.schedulers",
    "make_scheduler": "sd_ext.schedulers",
    "pretrained_path": "sd_ext.pretrained",
    "publishable": "sd_ext.unets",
    "regional": "sd_ext.unets",
    "sampling": "sd_ext.unets",
    "set_attention": "sd_ext.unets",
    "use_embedding": "sd_ext.prompts",
    "use_lora": "sd_ext.lora",
}
"""Every other public name -> its package."""

_PACKAGES = ("calibration", "errors", "hub", "lora", "models", "modular", "prompts", "schedulers", "training", "unets")
"""Packages that are reached as attributes, and imported then."""

if TYPE_CHECKING:
    from . import calibration as calibration
    from . import errors as errors
    from . import lora as lora
    from . import models as models
    from . import modular as modular
    from . import prompts as prompts
    from . import schedulers as schedulers
    from . import unets as unets
    from .attaching import attach as attach
    from .attaching import detach as detach
    from .calibration import calibrate as calibrate
    from .lora import use_lora as use_lora
    from .pretrained import pretrained_path as pretrained_path
    from .prompts import encode_prompt as encode_prompt
    from .prompts import use_embedding as use_embedding
    from .schedulers import *  # noqa: F403
    from .unets import *  # noqa: F403


def _all() -> list[str]:
    """The value of `__all__`: every public name, with the classes as their packages list them."""
    classes = {
        name for end, room in _ROOMS.items() for name in importlib.import_module(room).__all__ if name.endswith(end)
    }
    return sorted({*classes, *_OTHERS, "__version__"})


def _room(name: str) -> str | None:
    """The module that a public name is imported from; None if there is no such name."""
    by_end = (room for end, room in _ROOMS.items() if name.endswith(end) and not name.startswith("_"))
    found = _OTHERS.get(name) or next(by_end, None)
    if found is None:
        from .seams.diffusers.records import LOOKED_UP

        found = "diffusers" if name in LOOKED_UP else None
    return found


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")  # which sets the attribute, too
    room = _room(name)
    if name == "__all__":
        value = _all()
    elif room is not None and hasattr(module := importlib.import_module(room), name):
        value = getattr(module, name)
    else:
        raise AttributeError(f"module 'sd_ext' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    special = {name for name in globals() if name.startswith("__")}
    return sorted({*special, *_PACKAGES, *_all()})

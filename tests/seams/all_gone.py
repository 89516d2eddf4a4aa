"""A program: take private parts away that the libraries themselves can do without, then import and use everything."""

from __future__ import annotations

import importlib
import pkgutil

PARTS = (
    "diffusers.loaders.peft._SET_ADAPTER_SCALE_FN_MAPPING",
    "diffusers.models.attention.BasicTransformerBlock",
    "diffusers.models.attention_processor.Attention",
    "diffusers.models.attention_processor.AttnProcessor",
    "diffusers.models.attention_processor.SlicedAttnProcessor",
    "diffusers.models.attention_processor.XFormersAttnProcessor",
    "diffusers.models.downsampling.Downsample2D",
    "diffusers.models.upsampling.Upsample2D",
    "diffusers.loaders.unet.UNet2DConditionLoadersMixin._load_ip_adapter_weights",
    "accelerate.optimizer.AcceleratedOptimizer",
    "peft.tuners.lycoris_utils.LycorisLayer",
    "peft.utils.other.get_pattern_key",
    "torch._foreach_lerp_",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.native_group_norm",
    "torch.utils._python_dispatch.TorchDispatchMode",
)


def take_away() -> None:
    """With what uses them imported first: the libraries are whole, as after a release that moved the parts."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch._dynamo  # noqa: F401
    from diffusers import StableDiffusionPipeline, StableDiffusionXLAutoBlocks  # noqa: F401

    owners = {part: pkgutil.resolve_name(part.rpartition(".")[0]) for part in PARTS}
    for part, owner in owners.items():
        delattr(owner, part.rpartition(".")[2])


def import_all() -> None:
    import sd_ext

    for file in pkgutil.walk_packages(sd_ext.__path__, "sd_ext."):
        if "__main__" not in file.name and "pretrained." not in file.name:
            importlib.import_module(file.name)
    for name in sd_ext.__all__:
        getattr(sd_ext, name)


def draw() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    import sd_ext

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m", pipe.scheduler.config)
    pipe.unet = sd_ext.CachedUNet2DConditionModel.from_unet(pipe.unet, cache_interval=2)
    assert torch.isfinite(pipe("red apple", num_inference_steps=3, output_type="latent").images).all()


take_away()
import_all()
print("all imported;", end=" ")
draw()
print("drawn")

"""All blocks together: text to image, image to image, inpainting, ControlNet, IP-Adapter, by what is given."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.modular_pipelines import AutoPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import OutputParam

from ..seams.diffusers.modular import offer_workflows, workflows_of
from . import loop
from .loop import SDXL
from .saving import Saved
from .text import NAME, InputStep, TextEncoderStep

WORKFLOWS = workflows_of(SDXL.AutoBlocks)
Blocks = list[Any]

# ---- the loop --------------------------------------------------------------------------------------------------------


class ControlNetDenoise(AutoPipelineBlocks):
    """The loops with ControlNet."""

    block_classes: ClassVar[Blocks] = [
        loop.InpaintControlNetLoop,
        loop.ControlNetLoop,
    ]
    block_names: ClassVar[list[str]] = ["inpaint_controlnet_denoise", "controlnet_denoise"]
    block_trigger_inputs: ClassVar[Blocks] = ["mask", "controlnet_cond"]


class Denoise(AutoPipelineBlocks):
    """The loop for what is given."""

    block_classes: ClassVar[Blocks] = [
        ControlNetDenoise,
        loop.InpaintLoop,
        loop.DenoiseLoop,
    ]
    block_names: ClassVar[list[str]] = ["controlnet_denoise", "inpaint_denoise", "denoise"]
    block_trigger_inputs: ClassVar[Blocks] = ["controlnet_cond", "mask", None]


# ---- SDXL ------------------------------------------------------------------------------------------------------------


class CoreXL(SequentialPipelineBlocks):
    """From text states to latents, for SDXL."""

    block_classes: ClassVar[Blocks] = [
        SDXL.InputStep,
        SDXL.AutoBeforeDenoiseStep,
        SDXL.AutoControlNetInputStep,
        Denoise,
    ]
    block_names: ClassVar[list[str]] = ["input", "before_denoise", "controlnet_input", "denoise"]


class StableDiffusionXLBlocks(Saved, SequentialPipelineBlocks):
    """Diffusers' blocks for SDXL with our loop: `StableDiffusionXLAutoBlocks` otherwise."""

    block_classes: ClassVar[Blocks] = [
        SDXL.TextEncoderStep,
        SDXL.AutoIPAdapterStep,
        SDXL.AutoVaeEncoderStep,
        CoreXL,
        SDXL.AutoDecodeStep,
    ]
    block_names: ClassVar[list[str]] = ["text_encoder", "ip_adapter", "vae_encoder", "denoise", "decode"]

    @property
    def description(self) -> str:
        return "Text to image, image to image, inpainting, ControlNet and IP-Adapter with Stable Diffusion XL."

    @property
    def outputs(self) -> list[OutputParam]:
        return [OutputParam.template("images")]


# ---- Stable Diffusion 1.x and 2.x ------------------------------------------------------------------------------------


class BeforeDenoise(SequentialPipelineBlocks):
    """Timesteps and noise."""

    block_classes: ClassVar[Blocks] = [SDXL.SetTimestepsStep, SDXL.PrepareLatentsStep]
    block_names: ClassVar[list[str]] = ["set_timesteps", "prepare_latents"]


class Img2ImgBeforeDenoise(SequentialPipelineBlocks):
    """Timesteps, and a picture with noise."""

    block_classes: ClassVar[Blocks] = [SDXL.Img2ImgSetTimestepsStep, SDXL.Img2ImgPrepareLatentsStep]
    block_names: ClassVar[list[str]] = ["set_timesteps", "prepare_latents"]


class InpaintBeforeDenoise(SequentialPipelineBlocks):
    """Timesteps, a picture with noise, and a mask."""

    block_classes: ClassVar[Blocks] = [SDXL.Img2ImgSetTimestepsStep, SDXL.InpaintPrepareLatentsStep]
    block_names: ClassVar[list[str]] = ["set_timesteps", "prepare_latents"]


class AutoBeforeDenoise(AutoPipelineBlocks):
    """Timesteps and latents, for what is given."""

    block_classes: ClassVar[Blocks] = [InpaintBeforeDenoise, Img2ImgBeforeDenoise, BeforeDenoise]
    block_names: ClassVar[list[str]] = ["inpaint", "img2img", "text2img"]
    block_trigger_inputs: ClassVar[Blocks] = ["mask", "image_latents", None]


class ControlNetInput(AutoPipelineBlocks):
    """The picture that a ControlNet sees, if there is one."""

    block_classes: ClassVar[Blocks] = [SDXL.ControlNetInputStep]
    block_names: ClassVar[list[str]] = ["controlnet"]
    block_trigger_inputs: ClassVar[Blocks] = ["control_image"]


class Core(SequentialPipelineBlocks):
    """From text states to latents."""

    block_classes: ClassVar[Blocks] = [InputStep, AutoBeforeDenoise, ControlNetInput, Denoise]
    block_names: ClassVar[list[str]] = ["input", "before_denoise", "controlnet_input", "denoise"]


class StableDiffusionBlocks(Saved, SequentialPipelineBlocks):
    """Blocks for Stable Diffusion 1.x and 2.x, named as those of SDXL are."""

    model_name = NAME  # type: ignore[assignment]
    block_classes: ClassVar[Blocks] = [
        TextEncoderStep,
        SDXL.AutoIPAdapterStep,
        SDXL.AutoVaeEncoderStep,
        Core,
        SDXL.AutoDecodeStep,
    ]
    block_names: ClassVar[list[str]] = ["text_encoder", "ip_adapter", "vae_encoder", "denoise", "decode"]

    @property
    def description(self) -> str:
        return "Text to image, image to image, inpainting, ControlNet and IP-Adapter with Stable Diffusion 1.x and 2.x."

    @property
    def outputs(self) -> list[OutputParam]:
        return [OutputParam.template("images")]


offer_workflows(StableDiffusionXLBlocks, WORKFLOWS)
offer_workflows(StableDiffusionBlocks, {name: given for name, given in WORKFLOWS.items() if "union" not in name})

"""What Stable Diffusion 1.x and 2.x are given of a prompt: the steps in which they differ from SDXL."""

from __future__ import annotations

import logging
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import InputError
from ..seams.diffusers.modular import execution_device

NAME = "stable-diffusion"
"""What Diffusers calls this kind of model."""
FIELDS = "denoiser_input_fields"
"""What the loop hands to the guider, by Diffusers' name."""

log = logging.getLogger("sd_ext.modular")


def guider() -> ComponentSpec:
    """The guider that a pipeline has unless it is given another one."""
    scale = FrozenDict({"guidance_scale": 7.5})
    return ComponentSpec("guider", ClassifierFreeGuidance, config=scale, default_creation_method="from_config")


def _embeds(place: str) -> list[OutputParam]:
    return [
        OutputParam(f"{half}prompt_embeds", type_hint=torch.Tensor, kwargs_type=place, description=what)
        for half, what in (("", "text states, (batch, tokens, width)"), ("negative_", "those to be led away from"))
    ]


class TextEncoderStep(ModularPipelineBlocks):
    """Prompts, or text states that are given in their place, become text states `(prompts, tokens, width)`."""

    model_name = NAME

    @property
    def description(self) -> str:
        return "Encodes prompts as StableDiffusionPipeline does; text states may be given in their place."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("text_encoder", CLIPTextModel), ComponentSpec("tokenizer", CLIPTokenizer), guider()]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("prompt", type_hint=str | list[str], description="what is drawn"),
            InputParam("negative_prompt", type_hint=str | list[str], description="what guidance leads away from"),
            InputParam("prompt_embeds", type_hint=torch.Tensor, description="text states in place of the prompt"),
            InputParam("negative_prompt_embeds", type_hint=torch.Tensor, description="in place of the negative one"),
            InputParam("cross_attention_kwargs", type_hint=dict, description="its `scale` is the LoRAs' strength"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _embeds(FIELDS)

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> Any:
        """See Diffusers' `ModularPipelineBlocks`."""
        block: Any = self.get_block_state(state)
        if (block.prompt is None) == (block.prompt_embeds is None):
            raise InputError("give a prompt or prompt_embeds, and not both")
        guided = components.guider.num_conditions > 1
        if not guided and (block.negative_prompt or block.negative_prompt_embeds is not None):
            log.warning(
                "the negative prompt is not used: %s does not guide by one now", type(components.guider).__name__
            )
        block.prompt_embeds, block.negative_prompt_embeds = components.encode_prompt(
            block.prompt,
            execution_device(components),
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=None if block.negative_prompt_embeds is not None else block.negative_prompt,
            prompt_embeds=block.prompt_embeds,
            negative_prompt_embeds=block.negative_prompt_embeds,
            lora_scale=(block.cross_attention_kwargs or {}).get("scale"),
        )
        self.set_block_state(state, block)
        return components, state


class InputStep(ModularPipelineBlocks):
    """One row for each picture, and the size of the batch."""

    model_name = NAME

    @property
    def description(self) -> str:
        return "Repeats text states and IP-Adapter's pictures for several pictures of a prompt."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("unet", UNet2DConditionModel), guider()]

    @property
    def inputs(self) -> list[InputParam]:
        pictures = "IP-Adapter's pictures for the prompt, (pictures, ...) each"
        return [
            InputParam("num_images_per_prompt", default=1, type_hint=int, description="pictures of each prompt"),
            InputParam("prompt_embeds", required=True, type_hint=torch.Tensor, description="text states"),
            InputParam("negative_prompt_embeds", type_hint=torch.Tensor, description="those to be led away from"),
            InputParam("ip_adapter_embeds", type_hint=list[torch.Tensor], description=pictures),
            InputParam("negative_ip_adapter_embeds", type_hint=list[torch.Tensor], description="those of no picture"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        pictures = [
            OutputParam(f"{half}ip_adapter_embeds", type_hint=list[torch.Tensor], kwargs_type=FIELDS)
            for half in ("", "negative_")
        ]
        return [
            OutputParam("batch_size", type_hint=int, description="the number of prompts"),
            OutputParam("dtype", type_hint=torch.dtype, description="of the text states"),
            OutputParam(
                "timestep_cond", type_hint=torch.Tensor, description="strength of guidance, of distilled models"
            ),
            *_embeds(FIELDS),
            *pictures,
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> Any:
        """See Diffusers' `ModularPipelineBlocks`."""
        block: Any = self.get_block_state(state)
        _check_kind(components)
        times = block.num_images_per_prompt
        block.batch_size, block.dtype = len(block.prompt_embeds), block.prompt_embeds.dtype
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if (states := getattr(block, name)) is not None:
                if len(states) != block.batch_size:
                    raise InputError(f"{name} has {len(states)} rows, and there are {block.batch_size} prompts")
                setattr(block, name, states.repeat_interleave(times, 0))
        for name in ("ip_adapter_embeds", "negative_ip_adapter_embeds"):
            if (pictures := getattr(block, name)) is not None:
                rows = times * block.batch_size
                setattr(block, name, [each.repeat_interleave(rows // len(each), 0) for each in pictures])
        block.timestep_cond = _strength(components, times * block.batch_size, block.dtype)
        self.set_block_state(state, block)
        return components, state


def _check_kind(components: Any) -> None:
    """Raise `InputError` for networks of other families, which need more than a text, and for guiders that rest."""
    unet = components.unet
    if unet.config.time_cond_proj_dim is None and not components.guider.get_state()["enabled"]:
        raise InputError(
            "the guider is disabled, and Diffusers' loop would enable it: call guider.enable(), or give it "
            "a guidance_scale of 1 for none"
        )
    if unet.config.addition_embed_type not in (None, "text"):
        raise InputError(
            "these blocks are for Stable Diffusion 1.x and 2.x, and this U-Net is SDXL's: use StableDiffusionXLBlocks"
        )


def _strength(components: Any, rows: int, dtype: torch.dtype) -> torch.Tensor | None:
    """The strength of guidance as networks distilled with it are given it, `(rows, width)`; None for others."""
    width = components.unet.config.time_cond_proj_dim
    if width is None:
        return None
    weight = torch.tensor(components.guider.guidance_scale - 1).repeat(rows)
    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    return embed(components, weight, embedding_dim=width).to(execution_device(components), dtype)

"""unCLIP, Versatile Diffusion and BLIP-Diffusion."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from . import components as c
from . import controlnet
from .deepfloyd import SIDE, UNET
from .entry import Broken, Entry, assemble, entry, tensor
from .kandinsky import image_list
from .stable_diffusion import prior

FAMILY = "unCLIP"


def deprecated(module: str) -> Any:
    return importlib.import_module(f"diffusers.pipelines.deprecated.{module}")


@c.shared
def decoder() -> diffusers.UNet2DConditionModel:
    changes = {
        "class_embed_type": "identity",
        "addition_embed_type": None,
        "encoder_hid_dim": None,
        "cross_attention_norm": None,
    }
    return diffusers.UNet2DConditionModel(**{**c.UNET, **UNET, **changes})


@c.shared
def text_projection() -> torch.nn.Module:
    return deprecated("unclip").UnCLIPTextProjModel(
        clip_embeddings_dim=c.WIDTH,
        time_embed_dim=4 * UNET_WIDTH,
        cross_attention_dim=UNET["cross_attention_dim"],
    )


UNET_WIDTH = c.UNET["block_out_channels"][0]


@c.shared
def super_resolution() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=2 * SIDE,
        in_channels=6,
        out_channels=3,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )


def unclip_scheduler(**changes: Any) -> diffusers.UnCLIPScheduler:
    return diffusers.UnCLIPScheduler(**{"prediction_type": "epsilon", **changes})


POOL = {
    "prior": prior,
    "decoder": decoder,
    "text_encoder": c.text_encoder_with_projection,
    "tokenizer": c.tokenizer,
    "text_proj": text_projection,
    "super_res_first": super_resolution,
    "super_res_last": super_resolution.fresh,
    "feature_extractor": c.feature_extractor,
    "image_encoder": c.image_encoder,
    "prior_scheduler": lambda: unclip_scheduler(variance_type="fixed_small_log", prediction_type="sample"),
    "decoder_scheduler": lambda: unclip_scheduler(variance_type="learned_range"),
    "super_res_scheduler": lambda: unclip_scheduler(variance_type="fixed_small_log"),
}
REASON = (
    "hands `prev_timestep` to `step`, which UnCLIPScheduler alone takes: the pipeline, and not the scheduler, says "
    "where a step ends"
)
"""True of both: their samplers are tied to one class."""


def run(first: dict[str, Any]) -> Any:
    """A run of all stages; only the decoder is counted."""

    def both(pipe: Any, steps: int, seed: int) -> torch.Tensor:
        stages = {"super_res_num_inference_steps": 2, "output_type": "pt"}
        if "prompt" in first:
            stages["prior_num_inference_steps"] = 2
        own = {key: value() if callable(value) else value for key, value in first.items()}
        generator = torch.Generator().manual_seed(seed)
        return tensor(pipe(**own, **stages, decoder_num_inference_steps=steps, generator=generator, return_dict=False))

    return both


# ---- Versatile Diffusion ---------------------------------------------------------------------------------------------


@c.seeded
def text_unet() -> torch.nn.Module:
    blocks = {
        "down_block_types": ("CrossAttnDownBlockFlat", "DownBlockFlat"),
        "up_block_types": ("UpBlockFlat", "CrossAttnUpBlockFlat"),
        "mid_block_type": "UNetMidBlockFlatCrossAttn",
    }
    return deprecated("versatile_diffusion.modeling_text_unet").UNetFlatConditionModel(**{**c.UNET, **blocks})


VERSATILE = {
    **c.SD,
    "image_unet": c.unet.fresh,  # the pipelines swap blocks between the two U-Nets
    "text_unet": text_unet,
    "text_encoder": c.text_encoder_with_projection,
    "image_encoder": c.image_encoder,
    "image_feature_extractor": c.feature_extractor,
}
LATENT = {"height": 64, "width": 64, "output_type": "latent"}
BY_IMAGE = {"networks": ("image_unet",)}


def text_to_image(pipe: Any, steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pipe._progress_bar_config = {"disable": True}
    return tensor(pipe.text_to_image("a b", num_inference_steps=steps, generator=generator, **LATENT))


def two_guides() -> Any:
    pipe = assemble("VersatileDiffusionDualGuidedPipeline", VERSATILE)
    return pipe(prompt="a b", image=image_list(), num_inference_steps=2, **LATENT)


# ---- BLIP-Diffusion --------------------------------------------------------------------------------------------------


@c.shared
def qformer() -> torch.nn.Module:
    """Its tokenizer is loaded from a folder, for want of a constructor that takes one."""
    part = {"hidden_size": c.WIDTH, "intermediate_size": c.WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
        Path(folder, "vocab.txt").write_text("\n".join(words))
        transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
        config = transformers.Blip2Config(
            vision_config={**part, "image_size": 224, "patch_size": 112, "hidden_act": "quick_gelu"},
            qformer_config={
                **part,
                "vocab_size": 16,
                "max_position_embeddings": 32,
                "cross_attention_frequency": 1,
                "encoder_hidden_size": c.WIDTH,
            },
            num_query_tokens=4,
            tokenizer=folder,
        )
        return deprecated("blip_diffusion.modeling_blip2").Blip2QFormerModel(config)


@c.shared
def text_encoder_with_context() -> torch.nn.Module:
    return deprecated("blip_diffusion.modeling_ctx_clip").ContextCLIPTextModel(c.clip_text_config())


BLIP = {
    **c.SD,
    "text_encoder": text_encoder_with_context,
    "qformer": qformer,
    "image_processor": lambda: deprecated("blip_diffusion.blip_image_processing").BlipImageProcessor(),
    "controlnet": controlnet.controlnet,
}
SUBJECT = {
    "prompt": ["a b"],
    "reference_image": image_list,
    "source_subject_category": ["a"],
    "target_subject_category": ["b"],
    "height": 64,
    "width": 64,
    "output_type": "pt",
}


def blip(name: str, more: dict[str, Any]) -> torch.Tensor:
    subject = entry(name, "BLIP-Diffusion", BLIP, SUBJECT | more)
    return subject.run(subject.build(), 2, 0)


ENTRIES: list[Entry | Broken] = [
    *(
        Entry(
            name,
            FAMILY,
            lambda name=name: assemble(name, POOL),
            run(first),
            lambda steps: steps,
            networks=("decoder",),
            scheduler="decoder_scheduler",
            refused=REASON,
        )
        for name, first in (
            ("UnCLIPPipeline", {"prompt": "a b"}),
            ("UnCLIPImageVariationPipeline", {"image": image_list}),
        )
    ),
    Entry(
        "VersatileDiffusionPipeline",
        "Versatile Diffusion",
        lambda: assemble("VersatileDiffusionPipeline", VERSATILE),
        text_to_image,
        lambda steps: steps,
        **BY_IMAGE,
    ),
    entry(
        "VersatileDiffusionTextToImagePipeline",
        "Versatile Diffusion",
        VERSATILE,
        {"prompt": "a b"} | LATENT,
        **BY_IMAGE,
    ),
    entry(
        "VersatileDiffusionImageVariationPipeline",
        "Versatile Diffusion",
        VERSATILE,
        {"image": image_list} | LATENT,
        **BY_IMAGE,
    ),
    Broken(
        "VersatileDiffusionDualGuidedPipeline",
        "Versatile Diffusion",
        two_guides,
        "its DualTransformer2DModel does not take the encoder_attention_mask that Diffusers' own blocks hand it",
        "encoder_attention_mask",
    ),
    *(
        Broken(
            name,
            "BLIP-Diffusion",
            lambda name=name, more=more: blip(name, more),
            "its Q-Former calls `invert_attention_mask`, which Transformers 5 no longer has",
            "invert_attention_mask",
        )
        for name, more in (
            ("BlipDiffusionPipeline", {}),
            ("BlipDiffusionControlNetPipeline", {"condtioning_image": image_list}),
        )
    ),
]

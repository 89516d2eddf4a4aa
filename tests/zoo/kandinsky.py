"""Kandinsky 2.1 and 2.2: a U-Net that also predicts a variance, conditioned on a picture's embedding."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from . import components as c
from .entry import Entry, entry, share
from .stable_diffusion import prior

OLD, NEW = "Kandinsky 2.1", "Kandinsky 2.2"
SIZE = {"height": 64, "width": 64}
EMBEDS = {
    "image_embeds": lambda: c.embedding(1, c.WIDTH),
    "negative_image_embeds": lambda: -c.embedding(1, c.WIDTH),
    "output_type": "pt",
}
UNET = {
    "sample_size": 8,
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim": c.WIDTH,
    "resnet_time_scale_shift": "scale_shift",
}


def unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    return c.unet(**{**UNET, "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", **changes})


def unet_with_text(**changes: Any) -> diffusers.UNet2DConditionModel:
    return unet(addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj", **changes)


@c.shared
def movq() -> diffusers.VQModel:
    """Downsamples by 8."""
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        num_vq_embeddings=4,
        vq_embed_dim=4,
    )


@c.shared
def multilingual_clip() -> MultilingualCLIP:
    config = MCLIPConfig(
        transformerDimSize=c.WIDTH,
        imageDimSize=c.WIDTH,
        hidden_size=c.WIDTH,
        intermediate_size=c.WIDTH,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=len(c.tokenizer()),
        max_position_embeddings=80,
    )
    return MultilingualCLIP(config)


def scheduler() -> diffusers.DDPMScheduler:
    return diffusers.DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)


def prior_parts(*suffixes: str) -> dict[str, Any]:
    return {
        "prior_prior": prior(),
        "prior_image_encoder": c.image_encoder(),
        "prior_text_encoder": c.text_encoder_with_projection(),
        "prior_tokenizer": c.tokenizer(),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        "prior_image_processor": c.feature_extractor(),
    }


def image_list() -> Any:
    """A picture as Pillow knows it, for processors that know no other."""
    return diffusers.image_processor.VaeImageProcessor.numpy_to_pil(c.picture().permute(0, 2, 3, 1).numpy())[0]


def hint() -> torch.Tensor:
    return c.picture()


POOL_21 = {
    "text_encoder": multilingual_clip,
    "tokenizer": c.tokenizer,
    "unet": unet_with_text,
    "movq": movq,
    "scheduler": scheduler,
}
POOL_22 = {"unet": unet, "movq": movq, "scheduler": scheduler}
TEXT = {"prompt": "a b"}
PICTURE = {"image": image_list, "strength": 0.6}
MASKED = {"image": image_list, "mask_image": lambda: c.mask()[0, 0].numpy()}
COMBINED = {"scheduler": "decoder_pipe.scheduler", "parts": prior_parts}
FEW = {"prior_num_inference_steps": 2, "output_type": "pt"}

ENTRIES: list[Entry] = [
    entry("KandinskyPipeline", OLD, POOL_21, TEXT | EMBEDS | SIZE),
    entry("KandinskyImg2ImgPipeline", OLD, POOL_21, TEXT | EMBEDS | SIZE | PICTURE, share(0.6)),
    entry(
        "KandinskyInpaintPipeline",
        OLD,
        POOL_21,
        TEXT | EMBEDS | SIZE | MASKED,
        parts=lambda: {"unet": unet_with_text(in_channels=9)},
    ),
    entry("KandinskyCombinedPipeline", OLD, POOL_21, TEXT | SIZE | FEW, **COMBINED),
    entry("KandinskyImg2ImgCombinedPipeline", OLD, POOL_21, TEXT | SIZE | PICTURE | FEW, share(0.6), **COMBINED),
    entry(
        "KandinskyInpaintCombinedPipeline",
        OLD,
        POOL_21,
        TEXT | SIZE | MASKED | FEW,
        **{**COMBINED, "parts": lambda: {**prior_parts(), "unet": unet_with_text(in_channels=9)}},
    ),
    entry("KandinskyV22Pipeline", NEW, POOL_22, EMBEDS | SIZE),
    entry("KandinskyV22Img2ImgPipeline", NEW, POOL_22, EMBEDS | SIZE | PICTURE, share(0.6)),
    entry(
        "KandinskyV22InpaintPipeline",
        NEW,
        POOL_22,
        EMBEDS | SIZE | MASKED,
        parts=lambda: {"unet": unet(in_channels=9)},
    ),
    entry(
        "KandinskyV22ControlnetPipeline",
        NEW,
        POOL_22,
        EMBEDS | SIZE | {"hint": hint},
        parts=lambda: {"unet": unet(in_channels=8, addition_embed_type="image_hint")},
    ),
    entry(
        "KandinskyV22ControlnetImg2ImgPipeline",
        NEW,
        POOL_22,
        EMBEDS | SIZE | PICTURE | {"hint": hint},
        share(0.6),
        parts=lambda: {"unet": unet(in_channels=8, addition_embed_type="image_hint")},
    ),
    entry("KandinskyV22CombinedPipeline", NEW, POOL_22, TEXT | SIZE | FEW, **COMBINED),
    entry("KandinskyV22Img2ImgCombinedPipeline", NEW, POOL_22, TEXT | SIZE | PICTURE | FEW, share(0.6), **COMBINED),
    entry(
        "KandinskyV22InpaintCombinedPipeline",
        NEW,
        POOL_22,
        TEXT | SIZE | MASKED | FEW,
        **{**COMBINED, "parts": lambda: {**prior_parts(), "unet": unet(in_channels=9)}},
    ),
]

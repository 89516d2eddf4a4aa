"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

import functools

import diffusers
import transformers

from . import components as c
from .entry import IMAGE, PROMPT, Entry, entry, share

FAMILY = "Stable Diffusion"


@c.shared
def depth_estimator() -> transformers.DPTForDepthEstimation:
    return transformers.DPTForDepthEstimation(
        transformers.DPTConfig(
            backbone_config=None,
            is_hybrid=False,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
        )
    )


@functools.cache
def depth_feature_extractor() -> transformers.DPTImageProcessor:
    return transformers.DPTImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=16)


@c.shared
def upscaler_autoencoder() -> diffusers.AutoencoderKL:
    """Downsamples by 4."""
    return c.autoencoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
    )


def upscaler() -> dict:
    """The noise level of the small picture goes in as a class."""
    return {
        "vae": upscaler_autoencoder(),
        "unet": c.unet(in_channels=7, num_class_embeds=1000),
        "low_res_scheduler": diffusers.DDPMScheduler(),
        "max_noise_level": 350,
    }


def latent_upscaler() -> dict:
    """Reads the picture as channels, and with the time 128 numbers for its noise level and the pooled text."""
    return {
        "unet": c.unet(in_channels=8, time_cond_proj_dim=128 + c.WIDTH, time_embedding_type="fourier", out_channels=5),
        "scheduler": diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    }


def unclip() -> dict:
    return {
        "unet": c.unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * c.WIDTH),
        "image_noising_scheduler": diffusers.DDPMScheduler(),
        "image_normalizer": c.seeded(StableUnCLIPImageNormalizer)(embedding_dim=c.WIDTH),
        "feature_extractor": c.feature_extractor(),
        "image_encoder": c.image_encoder(),
        "prior_tokenizer": c.tokenizer(),
        "prior_text_encoder": c.text_encoder_with_projection(),
        "prior": prior(),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000
        ),
    }


def StableUnCLIPImageNormalizer(**options):
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(**options)


@c.shared
def prior() -> diffusers.PriorTransformer:
    """From a text's embedding to a picture's, for unCLIP and Kandinsky."""
    return diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=c.WIDTH,
        num_embeddings=c.WORDS,
    )


def image_variation() -> dict:
    return {"image_encoder": c.image_encoder(), "feature_extractor": c.feature_extractor()}


ENTRIES: list[Entry] = [
    entry("StableDiffusionPipeline", FAMILY, c.SD, PROMPT | {"height": 64, "width": 64}),
    entry("StableDiffusionImg2ImgPipeline", FAMILY, c.SD, IMAGE | {"strength": 0.6}, share(0.6)),
    entry(
        "StableDiffusionInpaintPipeline (9 channels)",
        FAMILY,
        c.SD,
        IMAGE | {"mask_image": c.mask, "height": 64, "width": 64},
        parts=lambda: {"unet": c.unet(in_channels=9)},
    ),
    entry(
        "StableDiffusionInpaintPipeline (4 channels)",
        FAMILY,
        c.SD,
        IMAGE | {"mask_image": c.mask, "height": 64, "width": 64, "strength": 0.6},
        share(0.6),
    ),
    entry(
        "StableDiffusionDepth2ImgPipeline",
        FAMILY,
        c.SD,
        IMAGE | {"strength": 0.6},
        share(0.6),
        parts=lambda: {
            "unet": c.unet(in_channels=5),
            "depth_estimator": depth_estimator(),
            "feature_extractor": depth_feature_extractor(),
        },
    ),
    entry(
        "StableDiffusionInstructPix2PixPipeline",
        FAMILY,
        c.SD,
        IMAGE,
        parts=lambda: {"unet": c.unet(in_channels=8)},
    ),
    entry(
        "StableDiffusionImageVariationPipeline",
        FAMILY,
        c.SD,
        {"image": c.picture, "height": 64, "width": 64, "output_type": "latent"},
        parts=image_variation,
    ),
    entry(
        "StableDiffusionUpscalePipeline",
        FAMILY,
        c.SD,
        PROMPT | {"image": lambda: c.picture()[..., :16, :16]},
        parts=upscaler,
    ),
    entry(
        "StableDiffusionLatentUpscalePipeline",
        FAMILY,
        c.SD,
        PROMPT | {"image": lambda: c.embedding(1, 4, 4, 4)},
        parts=latent_upscaler,
    ),
    entry(
        "StableUnCLIPPipeline",
        FAMILY,
        c.SD,
        PROMPT | {"prior_num_inference_steps": 2, "height": 64, "width": 64},
        parts=unclip,
    ),
    entry(
        "StableUnCLIPImg2ImgPipeline",
        FAMILY,
        c.SD,
        IMAGE | {"height": 64, "width": 64},
        parts=unclip,
    ),
    entry(
        "LatentConsistencyModelPipeline",
        FAMILY,
        c.SD,
        PROMPT | {"height": 64, "width": 64},
        parts=lambda: {"unet": c.unet(time_cond_proj_dim=32), "scheduler": c.lcm()},
    ),
    entry(
        "LatentConsistencyModelImg2ImgPipeline",
        FAMILY,
        c.SD,
        IMAGE | {"strength": 0.6},
        parts=lambda: {"unet": c.unet(time_cond_proj_dim=32), "scheduler": c.lcm()},
    ),
]

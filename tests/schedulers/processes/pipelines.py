"""Tiny pipelines of flow models, whose transformers know the one picture that there is, all ones.

Prompts are given as embeddings. A transformer answers with the exact velocity at the timestep that the pipeline tells
it, so that a run ends at ones only if sigmas, timesteps and calls fit together in the pipeline as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)


@dataclass
class Flow:
    """A pipeline of a flow model.

    Args:
        build: makes it.
        arguments: of a call.
        sigma: the transformer's timestep to sigma.
        sign: -1 where the transformer predicts x0 - eps.
        output: the attribute of the result.
        calls: of the last run.
        watch: is shown what each call is given.
    """

    build: Callable[[], Any]
    arguments: dict[str, Any]
    sigma: Callable[[torch.Tensor], torch.Tensor] = lambda t: t / 1000
    sign: float = 1.0
    output: str = "images"
    calls: list[int] = field(default_factory=list)
    watch: Callable[[torch.Tensor, torch.Tensor], Any] = lambda x, t: None

    def run(self, pipe: Any, scheduler: Any, steps: int) -> torch.Tensor:
        """The latents of a run, its calls noted in `calls`."""
        self.calls.clear()
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        pipe.transformer.forward = self.forward(pipe)
        generator = torch.Generator().manual_seed(1)
        return getattr(
            pipe(**self.arguments, num_inference_steps=steps, output_type="latent", generator=generator), self.output
        )

    def forward(self, pipe: Any) -> Callable[..., Any]:
        names = list(inspect.signature(type(pipe.transformer).forward).parameters)[1:]

        def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
            given = dict(zip(names, args, strict=False)) | kwargs
            x, t = given["hidden_states"], given["timestep"]
            sigma = self.sigma(t.double()).reshape(-1, *[1] * (x.dim() - 1))
            self.calls.append(1)
            self.watch(x, t)
            return ((self.sign * (x - 1) / sigma).to(x.dtype),)

        return forward


def autoencoder(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def euler(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**options)


def sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    texts = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=euler(shift=3.0), vae=autoencoder(4), **texts)


def flux(**options: Any) -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(transformer=transformer, scheduler=euler(**options), vae=autoencoder(1), **texts)


def aura() -> Any:
    transformer = AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    return AuraFlowPipeline(
        transformer=transformer, scheduler=euler(shift=1.73), vae=autoencoder(4), text_encoder=None, tokenizer=None
    )


def lumina() -> Any:
    transformer = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=1, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, axes_dim_rope=[4, 2, 2], cap_feat_dim=8,
    )  # fmt: skip
    return Lumina2Pipeline(
        transformer=transformer, scheduler=euler(shift=6.0), vae=autoencoder(4), text_encoder=None, tokenizer=None
    )


def qwen() -> Any:
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = euler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
    return QwenImagePipeline(transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None)


def ltx() -> Any:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    scheduler = euler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)
    return LTXPipeline(transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None)


def wan() -> Any:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=16, ffn_dim=32, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return WanPipeline(transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None)


def words(dim: int, name: str = "prompt_embeds") -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1, 7, dim)}


MASK = {"prompt_attention_mask": torch.ones(1, 7, dtype=torch.long)}
SIZE = {"height": 32, "width": 32}

PIPELINES: dict[str, Flow] = {
    "SD3": Flow(sd3, {**SIZE, **words(32), "pooled_prompt_embeds": torch.zeros(1, 64), "guidance_scale": 1.0}),
    "Flux": Flow(
        lambda: flux(shift=3.0, use_dynamic_shifting=True),
        {**SIZE, **words(32), "pooled_prompt_embeds": torch.zeros(1, 32)},
        lambda t: t,
    ),
    "Flux schnell": Flow(flux, {**SIZE, **words(32), "pooled_prompt_embeds": torch.zeros(1, 32)}, lambda t: t),
    "AuraFlow": Flow(aura, {**SIZE, **words(32), **MASK, "guidance_scale": 1.0}, lambda t: t),
    "Lumina": Flow(lumina, {**SIZE, **words(8), **MASK, "guidance_scale": 1.0}, lambda t: 1 - t, -1.0),
    "Qwen-Image": Flow(qwen, {**SIZE, **words(16), "prompt_embeds_mask": MASK["prompt_attention_mask"]}, lambda t: t),
    "LTX": Flow(ltx, {**SIZE, "num_frames": 9, **words(32), **MASK, "guidance_scale": 1.0}, output="frames"),
    "Wan": Flow(wan, {"height": 16, "width": 16, "num_frames": 5, **words(32), "guidance_scale": 1.0}, output="frames"),
}


@lru_cache
def built(name: str) -> Any:
    torch.manual_seed(0)
    return PIPELINES[name].build()

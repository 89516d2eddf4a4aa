"""What a `.safetensors` file is, told from the names of its tensors and from its header.

what = tell(Path("file.safetensors"))
what.kind, what.sentence        # "lora", "a LoRA"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..header import Header, read_header
from .families import UNET, VAE

CHECKPOINT, VAE_ALONE = "checkpoint", "vae"


@dataclass(frozen=True)
class Sign:
    """How a kind of file is recognised.

    Args:
        kind: one word for the kind.
        title: what the file is, as in "... is a LoRA".
        words: the file is of this kind if the name of a tensor contains one of them.
        use: what to do with it, as the end of a sentence; "" if nothing here uses it.
        adapted: how the names of modules begin in a LoRA for such a model, where they have none of `words`.
    """

    kind: str
    title: str
    words: tuple[str, ...]
    use: str = ""
    adapted: tuple[str, ...] = ()


WITH_A_MODEL = "use it together with a model"
SIGNS = (  # the first that fits decides
    Sign("adapter", "an image prompt adapter (IP-Adapter)", ("ip_adapter.", "image_proj.")),
    Sign("lllite", "a ControlNet-LLLite, which draws after pictures in ComfyUI and kohya's scripts", ("lllite_unet_",)),
    Sign("numbered", "a LoRA of the first trainer (cloneofsimo's), which numbers modules in place of naming them",
         (":0:up", ":0:down")),
    Sign("lora", "a LoRA, which changes a model", (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.",
         ".lora.up.", ".hada_w1_a", ".lokr_w1", ".oft_blocks", ".oft_diag", ".oft_R.", ".oft_r", ".boft_", ".ia3_l",
         "_lora.down.", ".diff_b"), WITH_A_MODEL),
    Sign("controlnet", "a ControlNet", ("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.",
         "input_hint_block.", "lora_controlnet", "control_all_x_embedder.", "controlnet_blocks."), WITH_A_MODEL),
    Sign("t2i", "a T2I-Adapter", ("adapter.body.", "body.0.in_conv.", "body.0.block1.")),
    Sign("hypernetwork", "a hypernetwork", ("hypernetwork.", "768.0.linear.", "320.0.linear.")),
    Sign("enlarger", "an upscaler of pictures (ESRGAN or its kind)", ("RRDB_trunk.", "rdb1.conv1.", ".RDB1.conv1.",
         "conv_before_upsample.", "relative_position_bias_table")),
    Sign("safety", "a safety checker", ("special_care_embeds",)),
    Sign("eye", "an image encoder (CLIP or its kind)", ("vision_model.", "visual_projection.", "visual.transformer.")),
    Sign("motion", "a motion module (AnimateDiff)", ("motion_modules.", "temporal_transformer.")),
    Sign("video", "a video model", ("temporal_", "time_stack.", "time_mix_", "head.modulation",
         "individual_token_refiner.", "attn.qkv_x.", "patchify_proj.", "vace_blocks.", "blocks.0.cross_attn.k"),
         adapted=("diffusion_model.blocks.", "lora_unet_blocks_", "transformer.blocks.")),
    Sign("sd3", "Stable Diffusion 3", ("joint_blocks.", "context_embedder.", "joint_transformer_blocks.")),
    Sign("flux2", "FLUX.2", ("single_stream_modulation.", "double_stream_modulation_img.")),
    Sign("hidream", "HiDream", ("double_stream_blocks.",)),
    Sign("flux", "FLUX or one of its descendants", ("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    Sign("auraflow", "AuraFlow", ("double_layers.", "single_layers.")),
    Sign("pixart", "PixArt", ("y_embedder.y_embedding", "adaln_single.", "t_block.1")),
    Sign("cascade", "Stable Cascade", ("clip_txt_mapper.", "effnet_mapper.", "channelwise.", "attention.attn."),
         adapted=("lora_prior_unet_",)),
    Sign("lumina", "Lumina or Z-Image", ("cap_embedder.", "context_refiner.", "noise_refiner."),
         adapted=("diffusion_model.layers.", "transformer.layers.", "lora_unet_layers_")),
    Sign("qwen", "Qwen-Image", ("txt_norm.", "text_norm.", "txt_mlp.", "img_mlp.", "txt_mod.", "img_mod.")),
    Sign("llm", "a language model", ("model.embed_tokens.", "lm_head.", "model.layers.0.", "transformer.wte.",
         "language_model.", "transformer.h.0.", "self_attention.query_key_value."),
         adapted=("model.layers.", "base_model.model.model.layers.", "base_model.model.transformer.h.")),
    Sign("t5", "a T5 text encoder, as Stable Diffusion 3 and FLUX have", ("encoder.block.0.layer.0.SelfAttention.",),
         adapted=("text_encoders.t5xxl.", "lora_te3_", "text_encoder_3.")),
    Sign("upscaler", "the upscaler of Stable Diffusion", ("low_scale_model.",)),
    Sign("depth", "the depth-guided model of Stable Diffusion 2", ("depth_model.",)),
    Sign("playground", "Playground v2.5, whose noise schedule (EDM) is another than Stable Diffusion XL's",
         ("edm_mean", "edm_std")),
    Sign("cosxl", "CosXL, which predicts v on another noise schedule (EDM) than Stable Diffusion XL's",
         ("edm_vpred.sigma_max", "edm_vpred.sigma_min")),
)  # fmt: skip
EMBEDDING = "emb_params", "string_to_param", "clip_l", "clip_g", "string_to_token"
PARTS = {
    "unet": ("a U-Net in Diffusers' layout", ("down_blocks.", "up_blocks.", "mid_block.")),
    "text": ("a text encoder", ("text_model.", "transformer.resblocks.", "encoder.block.", "embeddings.")),
    VAE_ALONE: ("an autoencoder (VAE)", ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", VAE)),
}
"""Kinds of file whose every tensor, or nearly, is of one part; their titles; how the names begin."""


@dataclass(frozen=True)
class Told:
    """What a file is.

    Args:
        kind: one word: "checkpoint" for a whole Stable Diffusion in the original layout, "lora", "vae", "embedding",
            "flux", ...; "unknown" if nothing fits.
        title: what the file is, as in "... is a LoRA".
        use: what to do with it, as the end of a sentence; "" if it is of no use here.
        header: its header.
    """

    kind: str
    title: str
    use: str
    header: Header

    @property
    def sentence(self) -> str:
        """What the file is and what to do with it, without a full stop."""
        return f"{self.header.path} is {self.title}{f'; {self.use}' if self.use else ''}"


def tell(path: Path) -> Told:
    """Tell what a `.safetensors` file is. Only its header is read, and torch is not imported.

    Raises:
        ModelError: it is no such file, such as a pickle under a wrong name.
    """
    header = read_header(path)
    kind, title, use = what_is(header.tensors, header.metadata)
    return Told(kind, title, use, header)


def what_is(names: Mapping[str, object], metadata: Mapping[str, str]) -> tuple[str, str, str]:
    """What a file with these tensors is: its kind, title and use, as in `Told`.

    Args:
        names: the tensors, by name.
        metadata: the texts in its header.
    """
    if not names:
        return "empty", "a file without tensors", ""
    for sign in SIGNS:
        if any(word in name for name in names for word in sign.words):
            return sign.kind, sign.title, sign.use
    if f"{UNET}input_blocks.0.0.weight" in names:
        return CHECKPOINT, "a Stable Diffusion checkpoint", ""
    if any(name in EMBEDDING for name in names) and len(names) <= 8:
        return "embedding", "an embedding (textual inversion)", WITH_A_MODEL
    if "input_blocks.0.0.weight" in names:
        return "unet", "a U-Net alone, without the beginning model.diffusion_model. of its names", WITH_A_MODEL
    if any(name.startswith(UNET) for name in names):
        return "other", f"a model of another architecture ({_architecture(metadata)})", ""
    for kind, (title, beginnings) in PARTS.items():
        if _mostly(names, beginnings):
            use = "give it to `sd-ext convert checkpoint` with --vae" if kind == VAE_ALONE else WITH_A_MODEL
            return kind, f"{title} alone", use
    return "unknown", f"of a kind that is not known here (its first tensor is {min(names)[:80]})", ""


def _architecture(metadata: Mapping[str, str]) -> str:
    return metadata.get("modelspec.architecture", "its header does not say which")[:80]


def _mostly(names: Iterable[str], beginnings: tuple[str, ...]) -> bool:
    counted = [name.startswith(beginnings) for name in names]
    return sum(counted) > 0.9 * len(counted)

"""Any `.safetensors` file is told by name, and what is no checkpoint is refused in one sentence."""

from __future__ import annotations

import json

import pytest

from sd_ext.errors import ModelError
from sd_ext.models import describe, find_model, tell
from tests.models import original_layout as original

# Names as they are in published files.
FILES = {
    "flux": ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "img_in.weight"],
    "sd3": ["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "first_stage_model.a"],
    "video": ["model.diffusion_model.head.modulation", "model.diffusion_model.blocks.0.self_attn.q.weight"],
    "auraflow": ["model.double_layers.0.attn.w1k.weight", "model.single_layers.0.attn.w1k.weight"],
    "pixart": ["y_embedder.y_embedding", "blocks.0.attn.qkv.weight"],
    "cascade": ["clip_txt_mapper.weight", "down_blocks.0.0.channelwise.0.weight"],
    "vae": ["decoder.conv_in.weight", "encoder.conv_in.weight", "post_quant_conv.weight", "quant_conv.weight"],
    "lora": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_text_model.alpha"],
    "numbered": ["unet:0:up", "unet:0:down", "text_encoder:0:up"],
    "embedding": ["clip_g", "clip_l"],
    "controlnet": ["control_model.input_hint_block.0.weight", "control_model.time_embed.0.weight"],
    "upscaler": ["low_scale_model.betas", "model.diffusion_model.input_blocks.0.0.weight"],
    "depth": ["depth_model.model.pretrained.model.cls_token", "model.diffusion_model.input_blocks.0.0.weight"],
    "cosxl": ["edm_vpred.sigma_max", "edm_vpred.sigma_min", "model.diffusion_model.input_blocks.0.0.weight"],
    "playground": ["edm_mean", "edm_std", "model.diffusion_model.input_blocks.0.0.weight"],
    "motion": ["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
    "unet": ["down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight"],
    "text": ["text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"],
    "adapter": ["ip_adapter.1.to_k_ip.weight", "ip_adapter.0.to_q_lora.down.weight", "image_proj.norm.weight"],
    "lllite": ["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight",
               "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"],
    "t2i": ["adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"],
    "enlarger": ["conv_first.weight", "body.0.rdb1.conv1.weight"],
    "safety": ["special_care_embeds", "vision_model.vision_model.pre_layrnorm.weight"],
    "eye": ["vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"],
    "llm": ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"],
    "t5": ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
    "qwen": ["transformer_blocks.0.txt_mlp.net.0.proj.weight", "txt_norm.weight"],
    "lumina": ["cap_embedder.0.weight", "noise_refiner.0.attention.qkv.weight"],
    "hidream": ["double_stream_blocks.0.block.attn1.to_q.weight"],
    "other": ["model.diffusion_model.x_embedder.weight"],
    "unknown": ["something.weight"],
}  # fmt: skip
TITLES = {
    "flux": "FLUX", "sd3": "Stable Diffusion 3", "video": "a video model", "auraflow": "AuraFlow", "pixart": "PixArt",
    "cascade": "Stable Cascade", "vae": "an autoencoder", "lora": "a LoRA", "embedding": "an embedding",
    "numbered": "a LoRA of the first trainer",
    "controlnet": "a ControlNet", "upscaler": "the upscaler", "depth": "the depth-guided model",
    "playground": "Playground v2.5", "cosxl": "CosXL", "motion": "a motion module",
    "unet": "a U-Net in Diffusers' layout",
    "adapter": "an image prompt adapter", "lllite": "a ControlNet-LLLite", "t2i": "a T2I-Adapter",
    "enlarger": "an upscaler of pictures", "safety": "a safety checker", "eye": "an image encoder",
    "llm": "a language model", "t5": "a T5 text encoder", "qwen": "Qwen-Image", "lumina": "Lumina or Z-Image",
    "hidream": "HiDream",
    "text": "a text encoder", "other": "a model of another architecture", "unknown": "of a kind that is not known here",
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_named(kind, tmp_path):
    path = original.write_sparse(tmp_path / "a.safetensors", dict.fromkeys(FILES[kind], (4, 4)))
    assert tell(path).kind == kind
    with pytest.raises(ModelError, match=rf"a\.safetensors is {TITLES[kind]}"):
        find_model(path)
    assert describe(path)["what"].startswith(TITLES[kind])


def spoiled(header=b"{}", tail=b"", length=None):
    return (len(header) if length is None else length).to_bytes(8, "little") + header + tail


DISGUISED = {
    "empty": (b"", "is empty; download it anew"),
    "gguf": (b"GGUF" + bytes(30), "is a GGUF file"),
    "pickle": (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(9), "is a pickle, which can run any code"),
    "old pickle": (b"\x80\x02}" + bytes(30), "is a pickle, which can run any code"),
    "zip": (b"PK\x03\x04" + bytes(26) + b"style.safetensors" + bytes(9), r"is an archive \(zip\)"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), r"is an archive \(gzip\)"),
    "tar": (bytes([65]) * 257 + b"ustar" + bytes(250), r"is an archive \(tar\)"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n", "is a git-LFS pointer"),
    "html": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is an HTML page"),
    "json": (
        b'{"error": "Unauthorized", "message": "log in"}',
        r"is a JSON text, .* \(Unauthorized\); download",
    ),
    "list": (b"[1, 2]", "is a JSON text"),
    "text": (b"Entry not found", "is a text, which begins with 'Entry not found'"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(30), r"is a picture \(PNG\)"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(30), r"is a picture \(JPEG\)"),
    "webp": (b"RIFF\x01\x00\x00\x00WEBPVP8 " + bytes(30), r"is a picture \(WebP\)"),
    "hdf": (b"\x89HDF\r\n\x1a\n" + bytes(30), "is an HDF5 file"),
    "zeros": (bytes(5000), "begins with zeros"),
}
"""Files of the right name and the wrong contents: their first bytes, and what is said."""

ENTRY = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (spoiled(length=2**40), "is not a complete safetensors file"),
        (spoiled(b"not JSON"), "the header of .* is not valid JSON"),
        (spoiled(b"[]"), "the header of .* must be an object"),
        (spoiled(b"{}"), "a file without tensors"),
        (spoiled(json.dumps({"a": ENTRY}).encode()), "is damaged or cut off: .* tensor 'a'"),
        (spoiled(json.dumps({"a": {**ENTRY, "shape": [-2]}}).encode(), bytes(4)), "is damaged or cut off"),
        (spoiled(json.dumps({"a": {**ENTRY, "dtype": 16}}).encode(), bytes(4)), "is damaged or cut off"),
        (spoiled(json.dumps({"a": 3}).encode(), bytes(4)), "is damaged or cut off"),
        (b"\x07", "is not a complete safetensors file"),
        *DISGUISED.values(),
    ],
)
def test_files_that_are_none(content, sentence, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=sentence) as caught:
        find_model(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_described(tmp_path):
    listed = {**original.shapes("sdxl", tiny=False), "model_ema.decay": ()}
    lacking = {key: shape for key, shape in listed.items() if not key.startswith("first_stage_model.")}
    header = {"modelspec.title": "Mine", "modelspec.license": "MIT"}
    said = describe(original.write_sparse(tmp_path / "a.safetensors", lacking, "BF16", header))
    assert said["family"] == "Stable Diffusion XL, for StableDiffusionXLPipeline"
    assert said["parts"] == "unet, text_encoder, text_encoder_2"
    assert said["missing"] == "autoencoder (vae)"
    assert said["tensors"] == f"{len(lacking)} in bfloat16"
    assert said["copies"].startswith("averaged ones (model_ema.*, 1 tensors)")
    assert (said["title"], said["license"]) == ("Mine", "MIT")
    of_2 = describe(original.write_sparse(tmp_path / "b.safetensors", original.shapes("sd21", tiny=False)))
    assert of_2["predicts"].startswith("not said")

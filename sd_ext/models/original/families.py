"""The families of Stable Diffusion, and what the shapes of their tensors do not tell.

The numbers are in families.json, as the models' makers published them: the blocks of the U-Net (`blocks`), attention
heads (`heads`, or where that is 0, 64 channels each), the width of the text states (`context`), the layers of the text
encoders and the last of them that the U-Net was not trained with, the autoencoder's scaling factor, the pipeline for
each number of the U-Net's input channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...reading import read_json
from .shapes import Shapes, clip_config, open_clip_config, unet_config, vae_config

HEAD = 64  # channels of an attention head where the number of heads is not fixed
CUT = 23  # layers of OpenCLIP H in files that Diffusers' own script wrote, without the one that is not used
WORDS, END = 49408, 49407  # CLIP's vocabulary, and its last entry, which ends a text
NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
}  # fmt: skip
"""The noise schedule of all of them, as keyword arguments of Diffusers' schedulers."""
UNET, VAE = "model.diffusion_model.", "first_stage_model."
KNOWN = "Stable Diffusion 1.x, 2.x and XL"


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a family.

    Args:
        style: "clip" or "open_clip": whose names its tensors have.
        layers: how many it has in such files.
        beginnings: how their names begin; the first is written, all are read.
    """

    style: str
    layers: int
    beginnings: tuple[str, ...]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a family's U-Net.

    Args:
        widths: channels of each level of the way down.
        depths: transformer blocks in each attention block of a level; 0 for a level without attention.
        middle: the same of the middle block.
        linear: whether attention blocks begin and end with linear layers; else with 1 x 1 convolutions.
        layers: residual blocks of each level of the way down; the way up has one more.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    linear: bool
    layers: int = 2


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: "sd15", "sd21", "sdxl" or "sdxl-refiner".
        title: its name in a sentence.
        context: the width of the text states that the U-Net attends to.
        heads: attention heads of the U-Net; 0 for one for every 64 channels.
        unused_layers: last layers of OpenCLIP that the U-Net was not trained with, and Diffusers does not keep.
        blocks: those of the U-Net.
        text: part -> text encoder.
        pipelines: input channels of the U-Net -> class of the pipeline.
        index, unet, vae, scheduler: further entries of model_index.json and of the parts' configs.
    """

    name: str
    title: str
    context: int
    heads: int
    unused_layers: int
    blocks: Blocks
    text: Mapping[str, TextEncoder]
    pipelines: Mapping[str, str]
    index: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def beginnings(self) -> dict[str, tuple[str, ...]]:
        """Part -> how the names of its tensors begin in a file."""
        text = {part: encoder.beginnings for part, encoder in self.text.items()}
        return {"unet": (UNET,), "vae": (VAE,), **text}

    def config(self, part: str, shapes: Shapes, pooled: int = 0) -> dict[str, Any]:
        """The config of a network.

        Args:
            part: "unet", "vae" or a text encoder.
            shapes: the part's tensors, their names without the part's beginning.
            pooled: for the U-Net of SDXL, the width of the pooled text; 0 is the usual one.

        Raises:
            ModelError: the end of a sentence: what the tensors are not.
        """
        if part == "unet":
            return self._unet(unet_config(shapes), pooled)
        if part == "vae":
            return {**vae_config(shapes), "act_fn": "silu", "norm_num_groups": 32, **self.vae}
        return self._text(part, shapes)

    def _unet(self, made: dict[str, Any], pooled: int) -> dict[str, Any]:
        own = dict(self.unet)
        usual, ids = own.pop("pooled", 0), own.pop("time_ids", 0)
        heads = [self.heads or max(1, width // HEAD) for width in made["block_out_channels"]]
        made |= {"attention_head_dim": self.heads or heads, "norm_num_groups": 32, "act_fn": "silu", **own}
        if bool(ids) != ("projection_class_embeddings_input_dim" in made):
            raise ModelError(f"has a U-Net that is not that of {self.title}")
        if ids:
            made["addition_time_embed_dim"] = (made["projection_class_embeddings_input_dim"] - (pooled or usual)) // ids
        return made

    def _text(self, part: str, shapes: Shapes) -> dict[str, Any]:
        clip = self.text[part].style == "clip"
        made = clip_config(shapes) if clip else open_clip_config(shapes)
        if made["num_hidden_layers"] != CUT:
            made["num_hidden_layers"] -= self.unused_layers
        if made["vocab_size"] < WORDS:
            raise ModelError(f"has a text encoder for {made['vocab_size']:,} words, and CLIP's tokenizer has {WORDS:,}")
        projected = shapes.get("text_projection", (0, made["hidden_size"]))[-1]
        return made | {
            "architectures": ["CLIPTextModel" if part == "text_encoder" else "CLIPTextModelWithProjection"],
            "model_type": "clip_text_model",
            "hidden_act": "quick_gelu" if clip else "gelu",
            "num_attention_heads": max(1, made["hidden_size"] // HEAD),
            "projection_dim": projected,
            "bos_token_id": END - 1,
            "eos_token_id": END,
            "pad_token_id": 1,
        }


@cache
def families() -> dict[str, Family]:
    """All families by their names, those with more text encoders first."""
    listed = read_json(Path(__file__).with_name("families.json"), dict[str, Any])
    made = {}
    for name, values in listed.items():
        text = {
            part: TextEncoder(each["style"], each["layers"], tuple(each["beginnings"]))
            for part, each in values.pop("text").items()
        }
        blocks = values.pop("blocks")
        blocks |= {key: tuple(blocks[key]) for key in ("widths", "depths")}
        made[name] = Family(name, text=text, blocks=Blocks(**blocks), **values)
    return made


def find_family(shapes: Shapes) -> Family:
    """Which family a checkpoint with a U-Net is of, by its text encoders, or without them by what its U-Net attends to.

    Args:
        shapes: all tensors of the file.

    Raises:
        ModelError: the end of a sentence: it is of none.
    """
    key = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    for family in sorted(families().values(), key=lambda family: -len(family.text)):
        if all(any(name.startswith(e.beginnings) for name in shapes) for e in family.text.values()):
            return family
    width = shapes[key][-1] if len(shapes.get(key, ())) == 2 else 0
    for family in families().values():
        if family.context == width:
            return family
    raise ModelError(f"holds a U-Net that attends to texts {width} wide, which is none of {KNOWN}")

"""A U-Net: its config with the options of its features, with or without weights, over a base model on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError
from ...model_configs import read_config
from ..card import literal
from ..content import Content
from .card import base_of, licence_lines, licence_of, python, write_card
from .tree import check_weights, copy_part, may_go, others

OWN = (
    *("VariantUNet2DConditionModel", "CachedUNet2DConditionModel"),
    *("TokenReducedUNet2DConditionModel", "HighResUNet2DConditionModel"),
)
"""The classes of this package; their folders hold the same weights and options."""
PLAIN = "UNet2DConditionModel"
STRANGER = """
from diffusers import UNet2DConditionModel
if {weights}:
    UNet2DConditionModel.from_pretrained(sys.argv[1], local_files_only=True, use_safetensors=True)
else:
    import torch
    with torch.device("meta"):
        UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(sys.argv[1], local_files_only=True))
"""


def unet(
    source: Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    weights: bool = True,
    licence: str | None = None,
    licence_link: str | None = None,
    online: bool = False,
) -> Content:
    """What is published of a U-Net.

    Args:
        source: its folder, or that of a pipeline.
        repo_id: `owner/name`.
        base_model: the model on the Hub that it is a U-Net for.
        weights: whether the weights go too. Without them it is a set of options for the base model's.
        licence, licence_link: see `licence_of`.
        online: whether the base model's card may be read from the Hub.

    Raises:
        InputError: it is no U-Net of Stable Diffusion, or the base model or licence is missing.
    """
    base = base_of(base_model, online, "a U-Net")
    folder = source / "unet" if (source / "model_index.json").is_file() else source
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json; give the folder of a U-Net, or of a pipeline that has one")
    config = read_config(folder / "config.json")
    if config.get("_class_name") not in (*OWN, PLAIN):
        raise InputError(f"{folder} is of {config.get('_class_name')!r}, not a {PLAIN}")
    if weights:
        check_weights(folder, "the U-Net")
    entries = licence_of(licence, licence_link, base, "a U-Net with weights" if weights else "")
    options = own_options(config)
    metadata = {
        "base_model": base_model, **({"base_model_relation": "finetune"} if weights else {}), **entries,
        "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["unet", "diffusers", "sd_ext"],
    }  # fmt: skip
    body = [*_body(repo_id, str(base_model), weights, options), *licence_lines(entries, base, licence is not None)]

    def write(new: Path) -> set[str]:
        return {*copy_part(folder, new, weights), write_card(new, repo_id.partition("/")[2], metadata, body)}

    kept = {path.name for path in folder.iterdir() if may_go(path.name)} if weights else {"config.json"}
    return Content("U-Net and card", write, [repo_id, str(base_model)], stranger=STRANGER.format(weights=weights),
                   left_out=others(folder, kept))  # fmt: skip


def own_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a U-Net's features that are not at their defaults, by name."""
    from ...unets.variant import OPTIONS

    return {name: config[name] for name in OPTIONS if name in config and config[name] != OPTIONS[name]}


def _body(repo_id: str, base: str, weights: bool, options: dict[str, Any]) -> list[str]:
    """The card's text: what it is, and how it is used with and without sd_ext."""
    what = "A U-Net" if weights else "Options for the U-Net"
    rows = [f"| `{name}` | {value} |" for name, value in options.items()]
    table = ["", "| option | value |", "|---|---|", *rows] if rows else ["", "All options have their defaults."]
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    load = f"from_pretrained({literal(repo_id)})" if weights else f"from_unet(pipe.unet, {given})".replace(", )", ")")
    ours = [
        "import sd_ext",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({literal(base)})",
        f"pipe.unet = sd_ext.VariantUNet2DConditionModel.{load}",
    ]
    plain = [
        "from diffusers import DiffusionPipeline, UNet2DConditionModel",
        "",
        f"unet = UNet2DConditionModel.from_pretrained({literal(repo_id)})",
        f"pipe = DiffusionPipeline.from_pretrained({literal(base)}, unet=unet)",
    ]
    alone = ["Without sd_ext the weights are those of any U-Net; the options have no effect then:", *python(plain)]
    none = ["Without sd_ext there is nothing to load: it has no weights of its own."]
    link = f"[{base}](https://huggingface.co/{base})"
    return [f"{what} of {link}.", *table, "", "With sd_ext:", *python(ours), *(alone if weights else none)]

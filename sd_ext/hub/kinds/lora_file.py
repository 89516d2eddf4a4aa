"""Any LoRA file: written anew in both formats, without its header, and described."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...lora.formats.file_names import DIFFUSERS_FILE, kohya_file
from ...models import FAMILIES
from ..card import TAGS, literal
from ..content import Content
from ..finished import FILE_NAME
from ..stranger import LORA_STRANGER
from .card import base_of, licence_lines, licence_of, python, span, write_card

if TYPE_CHECKING:
    from ...lora import Lora


def lora_file(
    path: Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    words: str = "",
    licence: str | None = None,
    licence_link: str | None = None,
    online: bool = False,
) -> Content:
    """What is published of a LoRA file.

    The file is read, whoever trained it, and written anew for Diffusers and for AUTOMATIC1111 and ComfyUI. Its header
    stays here: trainers note folders and file names there.

    Args:
        path: the .safetensors file.
        repo_id: `owner/name`.
        base_model: the model on the Hub that it was trained on.
        words: what calls it, if anything does.
        licence, licence_link: see `licence_of`.
        online: whether the base model's card may be read from the Hub.

    Raises:
        InputError: it is no LoRA that can be read, or no base model is named.
    """
    from ...lora import read_lora

    base = base_of(base_model, online, "a LoRA")
    entries = licence_of(licence, licence_link, base)
    lora = read_lora(path)
    if lora.bundled:
        raise InputError(
            f"{path} holds words ({', '.join(lora.bundled)}) too, which are not published yet; convert it first"
        )
    if lora.base is None:
        raise InputError(f"{path} does not show which family its base model is of; convert it with --base first")
    name = path.stem if FILE_NAME.fullmatch(path.stem) else repo_id.partition("/")[2]
    in_diffusers = all(adapter.rules.in_diffusers for adapter in lora)
    kohya = kohya_file(name)

    def write(new: Path) -> set[str]:
        return {*_weights(lora, new, kohya, in_diffusers), write_card(new, name, metadata, body)}

    family = lora.base
    metadata = {
        "base_model": base_model, "base_model_relation": "adapter", "instance_prompt": words, **entries,
        "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "tags": [tag for tag in TAGS if tag != "diffusers-training"] + ["stable-diffusion-xl"] * (family == "sdxl"),
    }  # fmt: skip
    body = [
        f"A LoRA for [{base_model}](https://huggingface.co/{base_model}) ({FAMILIES.get(family, family)}): "
        f"{described(lora)}.",
        *(["", f"Write {span(words)} in the prompt to call what it learned."] if words else []),
        *_usage(repo_id, str(base_model), kohya, in_diffusers, words, name),
        *licence_lines(entries, base, licence is not None),
    ]
    loader = "StableDiffusionXLLoraLoaderMixin" if family.startswith("sdxl") else "StableDiffusionLoraLoaderMixin"
    stranger = LORA_STRANGER.format(loader=loader, name=DIFFUSERS_FILE) if in_diffusers else ""
    meant = [repo_id, name, words, str(base_model)]
    return Content("LoRA in Diffusers and kohya formats, and card", write, meant, stranger=stranger)


def _weights(lora: Lora, new: Path, kohya: str, in_diffusers: bool) -> set[str]:
    """Write the files that the LoRA can be written as, without what its header said; their names."""
    from dataclasses import replace

    from ...lora import save_lora

    plain = replace(lora, metadata={})
    save_lora(plain, new / kohya, format="kohya")
    if in_diffusers:
        save_lora(plain, new / DIFFUSERS_FILE)
    return {kohya, *([DIFFUSERS_FILE] if in_diffusers else [])}


def described(lora: Lora) -> str:
    """Kinds, ranks and parts in a phrase: "64 modules, LoRA, rank 4 to 8, of unet and text_encoder"."""
    kinds = sorted({adapter.rules.name for adapter in lora})
    ranks = sorted({adapter.rank for adapter in lora} - {0})  # 0: whole factors
    rank = f"ranks {ranks[0]} to {ranks[-1]}, " if len(ranks) > 1 else f"rank {ranks[0]}, " if ranks else ""
    return f"{len(lora.adapters)} modules, {' and '.join(kinds)}, {rank}of {' and '.join(lora.parts)}"


def _usage(repo_id: str, base: str, kohya: str, in_diffusers: bool, words: str, name: str) -> Sequence[str]:
    load = (
        [f'pipe.load_lora_weights({literal(repo_id)}, weight_name="{DIFFUSERS_FILE}", adapter_name="lora")']
        if in_diffusers
        else [
            f"lora = read_lora(hf_hub_download({literal(repo_id)}, {literal(kohya)}))",
            "apply_lora(pipe, lora, strength=1.0)",
        ]
    )
    extra = ["from huggingface_hub import hf_hub_download", "from sd_ext.lora import apply_lora, read_lora"]
    code = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        *([] if in_diffusers else extra),
        "",
        f'pipe = DiffusionPipeline.from_pretrained({literal(base)}).to("cuda" if torch.cuda.is_available() else "cpu")',
        *load,
        f"image = pipe({literal(words or 'a picture')}).images[0]",
    ]
    others = f"AUTOMATIC1111 and ComfyUI take `{kohya}`"
    return [
        *python(code),
        f"{others}: in `models/Lora` with `<lora:{Path(kohya).stem}:1>` in the prompt, or in `models/loras`.",
    ]

"""Read a LoRA from any of its formats. Nothing is ignored silently: an unknown key is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...declared import shown
from ...errors import InputError
from ...models import PICKLES
from ...reading import read_json
from ..adapter import PARTS
from ..kinds import KINDS
from ..lora import Lora
from .bases import base_from_header, guess_base
from .diffusers import SETTINGS, alphas_of, settings_in
from .file_names import DIFFUSERS_FILE, PEFT_FILE, PEFT_SETTINGS
from .files import MODEL_HASH, read_tensors
from .keys import assemble, collect, split_dotted, split_kohya
from .names import from_dotted, from_kohya
from .sdxl import BEGINNINGS

# Header entries that describe the file rather than the LoRA: dropped here, made anew when a file is written.
LAYOUT = {"format", SETTINGS, MODEL_HASH, "sshs_legacy_hash", "modelspec.hash_sha256"}
BUNDLED = "bundle_emb."


def read_lora(source: str | Path | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Lora:
    """Read a LoRA, LoHa, LoKr or another registered kind, with or without DoRA.

    A Diffusers file without strengths in its header gets alpha = rank, that is strength 1, as Diffusers loads it.

    Args:
        source: a .safetensors file in kohya's format (A1111, ComfyUI; SDXL's U-Net in either naming), Diffusers' new or
            old format, or peft's; or a folder with one such file, or with peft's adapter_config.json and
            adapter_model.safetensors, or with a peft folder for each part; or the tensors of a file, by key.
        metadata: the file's header, if `source` is tensors.

    Raises:
        InputError: no such file; a pickle, which is never opened; keys that are unknown or given twice; or tensors that
            do not fit together or are not finite. The message names them.
    """
    if isinstance(source, Mapping):
        return _from_tensors(source, metadata or {})
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _from_folder(path)
        return _from_tensors(*read_tensors(path))
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error


def _from_folder(folder: Path) -> Lora:
    if (folder / PEFT_SETTINGS).is_file():
        return _from_peft_folder(folder, None)
    parts = [part for part in PARTS if (folder / part / PEFT_SETTINGS).is_file()]
    if parts:
        loras = [_from_peft_folder(folder / part, part) for part in parts]
        return Lora({module: adapter for lora in loras for module, adapter in lora.adapters.items()})
    files = sorted(folder.glob("*.safetensors"))
    if (folder / DIFFUSERS_FILE).is_file():
        files = [folder / DIFFUSERS_FILE]
    if len(files) == 1:
        return _from_tensors(*read_tensors(files[0]))
    if not files and any(file.suffix.lower() in PICKLES for file in folder.iterdir()):
        raise InputError(f"{folder} holds pickles only, which can run any code when read; .safetensors is needed")
    found = f"{len(files)} .safetensors files; name one" if files else f"neither {DIFFUSERS_FILE} nor {PEFT_SETTINGS}"
    raise InputError(f"{folder} holds {found}")


def _from_peft_folder(folder: Path, part: str | None) -> Lora:
    settings = read_json(folder / PEFT_SETTINGS, dict[str, Any])
    kind, able = settings.get("peft_type", "LORA"), sorted({kind.peft_type for kind in KINDS.values()} - {""})
    if kind not in able:
        raise InputError(f"{folder} holds a {shown(kind)}; {', '.join(able)} can be read")
    pickled = folder / "adapter_model.bin"
    path = pickled if pickled.exists() and not (folder / PEFT_FILE).exists() else folder / PEFT_FILE
    tensors, _ = read_tensors(path)
    found = collect(tensors, split_dotted, lambda name: from_dotted(name, part))
    return Lora(assemble(found, alphas_of(dict.fromkeys(PARTS, settings))))


def _from_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Lora:
    bundled = {key: tensor for key, tensor in tensors.items() if key.startswith(BUNDLED)}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in bundled}
    if not tensors:
        raise InputError("there is no LoRA in it")
    metadata = {key: value for key, value in header.items() if key not in LAYOUT}
    base = base_from_header(header)
    names = {key.partition(".")[0] for key in tensors}
    if any(name.startswith("lora_") for name in names):
        adapters = assemble(collect(tensors, split_kohya, from_kohya), lambda module, rank: None)
        return Lora(adapters, metadata, base or guess_base(adapters) or _base_from_names(names), bundled)
    adapters = assemble(collect(tensors, split_dotted, from_dotted), alphas_of(settings_in(header)))
    return Lora(adapters, metadata, base or guess_base(adapters), bundled)


def _base_from_names(names: set[str]) -> str | None:
    """The base model that kohya's names imply: SDXL's text encoders are numbered, and its U-Net has the original names.

    Used only if modules and shapes do not decide, since some converters number the only text encoder of other bases
    too.
    """
    numbered = ("lora_te1_", "lora_te2_", *(f"lora_unet_{beginning}" for beginning in BEGINNINGS))
    return "sdxl" if any(name.startswith(numbered) for name in names) else None

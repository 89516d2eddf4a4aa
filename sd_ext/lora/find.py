"""Find the LoRA that a user's text refers to: a file, a folder, or a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..models import PICKLES, refuse_pickle
from ..models.hub import HUB_ID
from ..plain_files import why_not
from .formats.file_names import DIFFUSERS_FILE, PEFT_SETTINGS

if TYPE_CHECKING:
    from .lora import Lora

ON_HUB = re.compile(rf"({HUB_ID.pattern})(?:/(.+\.safetensors))?")  # owner/name, owner/name/file.safetensors


def check_lora(source: str | Path) -> None:
    """Raise `InputError` unless `source` is a file or folder, or may be a repository on the Hub. Nothing is read."""
    path = Path(source).expanduser()
    if path.is_dir() or _on_hub(source):
        return
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path)
    if reason := why_not(path):
        missing = f"no such LoRA: {source} (a file, a folder, or a Hub id owner/name)"
        raise InputError(missing if reason == "is not there" else f"{path} {reason}")


def find_lora(source: str | Path) -> Lora:
    """Find a LoRA and read it. It is downloaded, safetensors files only, if it is on the Hub.

    Args:
        source: a file or folder as `read_lora` reads them; or, as text, a Hub id `owner/name`, or one file of a
            repository with several, `owner/name/file.safetensors`.

    Raises:
        InputError: no such file or repository, a pickle, or no LoRA that can be read.
    """
    from .formats.reading import read_lora

    check_lora(source)
    return read_lora(_downloaded(str(source)) if _on_hub(source) else source)


def _on_hub(source: str | Path) -> bool:
    """Whether a text means a repository on the Hub: it looks like one, and nothing here has that name."""
    looks = isinstance(source, str) and ON_HUB.fullmatch(source) and Path(source).suffix.lower() not in PICKLES
    one_file = isinstance(source, str) and source.count("/") == 1 and source.endswith(".safetensors")
    return bool(looks) and not one_file and not Path(str(source)).expanduser().exists()


def _downloaded(source: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    found = ON_HUB.fullmatch(source)
    name, file = (found[1], found[2]) if found else (source, None)
    try:
        if file:
            return Path(hf_hub_download(name, file))
        # Folders within are those of whole models.
        patterns = ["*.safetensors", PEFT_SETTINGS]
        folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} is neither a file here nor a LoRA on the Hub that loads: {reason}") from error
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(files) > 1 and not {DIFFUSERS_FILE} & {*files} and not (folder / PEFT_SETTINGS).exists():
        listed = ", ".join(files[:8]) + (", …" if len(files) > 8 else "")
        raise InputError(f"{name} holds {len(files)} files; name one as {name}/FILE: {listed}")
    return folder

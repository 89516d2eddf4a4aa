"""Finding, checking and loading the pipeline that draws.

A folder is checked before torch is imported, so that a wrong path is refused at once and in plain words; what only
loading can tell becomes a `ModelError` too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import whole
from ..errors import ModelError
from ..model_configs import check_plain, parts_in, read_config, read_index
from .pictures import EMBEDDED

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def find_model(model: str | None) -> Path | str:
    """The embedded model's folder for None, a checked local folder, or the Hub id. Raises `ModelError`."""
    if model is None or (model == EMBEDDED and not Path(model).exists()):
        import sd_ext

        folder = sd_ext.pretrained_path()
        if not (folder / "model_index.json").is_file():
            raise ModelError("this installation has no embedded model; give --model a pipeline folder or Hub id")
        return folder
    path = whole.recovered(Path(model).expanduser())
    if path.exists():
        check_folder(path)
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise ModelError(f"no such model folder: {model} (a Hub id reads owner/name)")
    return model


def check_folder(folder: Path) -> None:
    """Raise `ModelError` unless `folder` is a pipeline with a folder for each part and safetensors weights."""
    if folder.is_file():
        raise ModelError(f"{folder} is a file; sd-ext loads Diffusers pipeline folders")
    if not (folder / "model_index.json").exists():
        raise ModelError(f"{folder} is not a pipeline: it has no model_index.json")
    check_plain(folder)
    for name in parts_in(read_index(folder)):
        if not (folder / name).is_dir():
            raise ModelError(f"{folder} is incomplete: it has no folder {name}")
        for config in (folder / name).glob("*config.json"):
            read_config(config)
        suffixes = {file.suffix for file in (folder / name).iterdir()}
        if suffixes & PICKLES and ".safetensors" not in suffixes:
            raise ModelError(
                f"{folder / name} holds pickle weights only, which can run code when loaded; "
                "convert them to safetensors first"
            )


def load_pipeline(
    model: Path | str, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False
) -> DiffusionPipeline:
    """Load a pipeline found by `find_model`, quietly, and for a local folder without the network.

    Raises `ModelError` in one sentence for whatever goes wrong; its cause is attached.
    """
    # Each says on stderr, with bars and warnings of its own, that it is loading; read when they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers
    import transformers

    import sd_ext  # noqa: F401  Diffusers loads our classes only from an imported library

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    if isinstance(model, Path):
        options["local_files_only"] = True
        if variant := _only_variant(model):
            options["variant"] = variant
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(model), **options)
        return pipe.to(device)
    except Exception as error:  # anything at all can be wrong with a stranger's files
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else reason[:300] + "…"
        where = model if isinstance(model, Path) else f"{model} (no such folder here, so taken as a Hub id)"
        raise ModelError(f"cannot load {where}: {reason}") from error


def _only_variant(folder: Path) -> str | None:
    """`"fp16"` for a folder whose U-Net or transformer has `....fp16.safetensors` weights only."""
    for part in ("unet", "transformer", "prior"):
        names = [file.name.split(".") for file in (folder / part).glob("*.safetensors")]
        variants = {name[1].split("-")[0] if len(name) == 3 else None for name in names}
        if len(variants) == 1:
            return variants.pop()
    return None

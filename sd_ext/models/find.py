"""Find the model that a user's text refers to: a folder, a finished run, a Hub id, or the embedded model."""

from __future__ import annotations

from pathlib import Path

from .. import whole
from ..errors import ModelError
from ..plain_files import why_not
from ..pretrained import pretrained_path
from .folder import INDEX, Folder
from .hub import OnHub, is_hub_id
from .model import Model
from .weights import PICKLES, refuse_pickle

EMBEDDED = "embedded"  # the name of the model in this package, whose path differs from machine to machine


def is_embedded(name: str) -> bool:
    """Whether a name means the model that comes with this package: "embedded", or the path to it."""
    if name == EMBEDDED:
        return True
    path = Path(name).expanduser()
    return path.exists() and path.resolve() == pretrained_path().resolve()


def find_model(name: str | Path, variant: str | None = None) -> Model:
    """Find a model. Nothing is loaded or downloaded, and torch is not imported.

    Args:
        name: "embedded"; the path of a pipeline folder, or of a finished run, whose model is then used; or a Hub id
            `owner/name`, as text.
        variant: which weight files to read: "fp16", ..., or "" for those without a variant. None means those without a
            variant or, if there are none, the only variant.

    Raises:
        ModelError: no such folder, or the path of a file; says what was expected.
    """
    text = str(name)
    if not text.strip():
        raise ModelError(f"no model named; give a pipeline folder, a Hub id, or {EMBEDDED}")
    if text == EMBEDDED:
        if not (pretrained_path() / INDEX).is_file():
            raise ModelError("this installation has no embedded model; give a pipeline folder or Hub id as the model")
        return Folder(pretrained_path(), EMBEDDED, variant)
    path = whole.recovered(Path(text).expanduser())
    if path.is_dir():
        return Folder(path / "model" if (path / "model" / INDEX).is_file() else path, text, variant)
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path, ModelError)
    if path.is_file():
        raise ModelError(f"{path} is a single file; a model is a pipeline folder, so convert it to one first")
    if path.exists():
        raise ModelError(f"{path} {why_not(path)}; a model is a pipeline folder")
    if isinstance(name, str) and is_hub_id(text) and path.suffix != ".safetensors":
        return OnHub(text, variant)
    raise ModelError(f"no such model folder: {text} (a Hub id reads owner/name)")


def find_part(root: str, part: str, variant: str | None = None) -> Folder:
    """Find one part of a model, by itself or within a pipeline folder or finished run.

    Args:
        root: the part's own folder, or the pipeline's or run's.
        part: "vae", "text_encoder", ...
        variant: see `find_model`.

    Returns:
        A model that has only this part.

    Raises:
        ModelError: there is no such part.
    """
    folder = whole.recovered(Path(root).expanduser())
    if not folder.is_dir():
        raise ModelError(f"no model folder at {root}")
    for candidate in (folder / part, folder / "model" / part, folder / "model", folder):
        if (candidate / "config.json").is_file() or (candidate / "tokenizer_config.json").is_file():
            return Folder(candidate, root, variant, {part: candidate})
    raise ModelError(f"{root} holds no {part} (no config.json there)")

"""Find the model that a user's text refers to: a folder, a finished run, a file, a Hub id, or the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .. import whole
from ..errors import ModelError, UnknownNameError
from ..plain_files import why_not
from ..pretrained import pretrained_path
from .folder import INDEX, Folder
from .hub import OnHub, is_hub_id
from .model import Model
from .original.prediction import TYPES
from .original.told import VAE_ALONE, tell
from .single_file import SingleFile
from .vae_file import VaeFile
from .weights import PICKLES, refuse_pickle

EMBEDDED = "embedded"  # the name of the model in this package, whose path differs from machine to machine


def is_embedded(name: str) -> bool:
    """Whether a name means the model that comes with this package: "embedded", or the path to it."""
    if name == EMBEDDED:
        return True
    path = Path(name).expanduser()
    return path.exists() and path.resolve() == pretrained_path().resolve()


def find_model(
    name: str | Path,
    variant: str | None = None,
    *,
    revision: str | None = None,
    prediction_type: str | None = None,
    others: Mapping[str, Model] | None = None,
) -> Model:
    """Find a model. Nothing is loaded or downloaded, and torch is not imported.

    Args:
        name: "embedded"; the path of a pipeline folder, of a finished run, whose model is then used, or of a
            `.safetensors` file in the original layout; or a Hub id `owner/name`, as text, which `@` and a revision may
            follow.
        variant: which weight files to read: "fp16", ..., or "" for those without a variant. None means those without a
            variant or, if there are none, the only variant. A single file has no variants.
        revision: the branch, tag or commit on the Hub.
        prediction_type: what a single file predicts, "epsilon" or "v_prediction"; None to find out.
        others: for a single file, part -> the model to read that part from instead.

    Raises:
        ModelError: no such folder or file, or a file of another kind; says what was expected. Or an option that the
            model cannot have.
        UnknownNameError: no such prediction type.
    """
    text = str(name)
    if prediction_type is not None and prediction_type not in TYPES:
        raise UnknownNameError("prediction type", prediction_type, TYPES)
    found = _find(name, text, variant, revision, prediction_type, others)
    if prediction_type is not None and not isinstance(found, SingleFile):
        raise ModelError(f"{text} is no single file: what it predicts is in its scheduler_config.json; edit it there")
    if revision is not None and not isinstance(found, OnHub):
        raise ModelError(f"{text} is no Hub id, and only the Hub has revisions; leave the revision {revision} out")
    return found


def _find(
    name: str | Path,
    text: str,
    variant: str | None,
    revision: str | None,
    prediction_type: str | None,
    others: Mapping[str, Model] | None,
) -> Model:
    if not text.strip():
        raise ModelError(f"no model named; give a pipeline folder, a .safetensors file, a Hub id, or {EMBEDDED}")
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
        if variant:
            raise ModelError(f"{path} is a single file, which has no variant {variant}; leave the variant out")
        return SingleFile(path, text, prediction_type, others)
    if path.exists():
        raise ModelError(f"{path} {why_not(path)}; a model is a pipeline folder or a .safetensors file")
    hub_id, at, tail = text.partition("@")
    if isinstance(name, str) and is_hub_id(hub_id) and path.suffix != ".safetensors" and bool(at) == bool(tail):
        if at and revision is not None:
            raise ModelError(f"{text} names a revision, and {revision} is given too; keep one")
        return OnHub(hub_id, variant, tail or revision)
    raise ModelError(f"no such model folder or file: {text} (a Hub id reads owner/name)")


def find_part(root: str, part: str, variant: str | None = None) -> Model:
    """Find one part of a model, by itself or within a pipeline folder or finished run.

    Args:
        root: the part's own folder, or the pipeline's or run's; or a `.safetensors` file that holds the part.
        part: "vae", "text_encoder", ...
        variant: see `find_model`.

    Returns:
        A model that has only this part.

    Raises:
        ModelError: there is no such part.
    """
    folder = whole.recovered(Path(root).expanduser())
    if folder.is_file():
        return _part_of_file(folder, part, root)
    if not folder.is_dir():
        raise ModelError(f"no model folder at {root}")
    for candidate in (folder / part, folder / "model" / part, folder / "model", folder):
        if (candidate / "config.json").is_file() or (candidate / "tokenizer_config.json").is_file():
            return Folder(candidate, root, variant, {part: candidate})
    raise ModelError(f"{root} holds no {part} (no config.json there)")


def _part_of_file(path: Path, part: str, name: str) -> Model:
    """A part of a `.safetensors` file: a checkpoint that holds it, or an autoencoder alone."""
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path, ModelError)
    if part == "vae" and tell(path).kind == VAE_ALONE:
        return VaeFile(path, name)
    found = SingleFile(path, name)
    if part not in found.parts:
        raise ModelError(f"{path} holds no {part}")
    return found

"""`sd-ext convert checkpoint`: a single file as a pipeline folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..models import Model, SingleFile, find_model, find_part

PREDICTION = "What a single file predicts: epsilon or v_prediction."


def checkpoint(
    source: Annotated[str, typer.Argument(metavar="IN", help="A .safetensors checkpoint; or a folder or Hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder; or a .safetensors file.")],
    vae: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Take the autoencoder from this file or folder.", show_default="IN's own"),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Take text encoders from this file or folder.", show_default="IN's own"),
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help=PREDICTION, show_default="found out and said")
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="Weight files of a folder, e.g. fp16.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a checkpoint file as a pipeline folder, or a folder as a checkpoint file, to the bit."""
    to_file = out.suffix.lower() == ".safetensors"
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite or another name")
    model = find_model(source, variant, revision=revision, prediction_type=prediction_type)
    single = isinstance(model, SingleFile)
    if single == to_file:
        kind, other = ("file", "a folder") if single else ("folder", "a .safetensors file")
        raise InputError(f"{source} is a {kind} already; to convert it, let OUT be {other}")
    if vae is not None or text_encoder is not None:
        if not isinstance(model, SingleFile):
            raise InputError("--vae and --text-encoder go with a single file; a folder has its own parts")
        others = _others(model, vae, text_encoder)
        model = find_model(source, variant, prediction_type=prediction_type, others=others)
    model.check()
    from ..models.written import write_model

    write_model(model, out.expanduser(), overwrite=overwrite)
    print(out)


def _others(model: SingleFile, vae: str | None, text_encoder: str | None) -> dict[str, Model]:
    """Part -> the model to take it from."""
    others = {"vae": find_part(vae, "vae")} if vae is not None else {}
    if text_encoder is not None:
        parts = [part for part in model.layout.text if part in model.missing] or list(model.layout.text)
        others |= {part: find_part(text_encoder, part) for part in parts}
    return others

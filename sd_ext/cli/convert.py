"""`sd-ext convert`: convert LoRA files between formats; merge, extract and resize LoRAs. See also `checkpoint`.

Paths and numbers are checked before torch is imported. Files are written completely or not at all, and an existing one
is replaced only if asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..models import find_model
from .additions import split_strengths
from .checkpoint import checkpoint

if TYPE_CHECKING:
    from ..lora import Lora

app = typer.Typer(help="Convert, merge, extract and resize LoRA files; convert checkpoints.", no_args_is_help=True)
app.command()(checkpoint)


class Format(str, Enum):
    """A file format: kohya is read by A1111, ComfyUI and Diffusers; diffusers has peft's names."""

    kohya = "kohya"
    diffusers = "diffusers"


class BaseModel(str, Enum):
    """The base model of a LoRA, which determines names in kohya's format."""

    sd15 = "sd15"
    sd21 = "sd21"
    sdxl = "sdxl"


class Dtype(str, Enum):
    """The dtype of the weights in the file."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


To = Annotated[Format, typer.Option(help="What reads it: A1111, ComfyUI and Diffusers, or Diffusers and peft.")]
Base = Annotated[BaseModel | None, typer.Option(help="The model it is for.", show_default="what the file tells")]
Type = Annotated[Dtype | None, typer.Option(help="The weights' type.", show_default="as they are")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="A .safetensors file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Rank = Annotated[int | None, typer.Option(metavar="N", help="Keep at most so many directions in each module.")]
Energy = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Keep so much of the squared norm: 0.99, or 1 for all of it.")
]
ON_DISK = "Pipeline folder, .safetensors file, Hub id, or embedded"
BaseModelOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help=f"The base model, which DoRA cannot do without. {ON_DISK}.")
]


@app.command()
def lora(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file, or peft's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .safetensors file.")],
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    keep_alphas: Annotated[
        bool, typer.Option("--keep-alphas", help="kohya: leave mixed alphas as they are; Diffusers misreads them.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a LoRA in another format, at the same strength."""
    check_out(out, overwrite)
    check_source(source)
    from ..lora import read_lora

    save(read_lora(source), out, to, base, dtype, keep_alphas)


@app.command()
def merge(
    sources: Annotated[list[str], typer.Argument(metavar="FILE[:STRENGTH]...", help="LoRAs; a strength is 1 if left.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="A .safetensors file; with --into, this or a new folder.")],
    rank: Rank = None,
    energy: Energy = None,
    into: Annotated[
        str | None, typer.Option(metavar="MODEL", help=f"Add them to this model and write that instead. {ON_DISK}.")
    ] = None,
    base_model: BaseModelOption = None,
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge LoRAs into one, exactly unless a rank is given, or into a model."""
    parsed = [parse_source(source) for source in sources]
    if into is not None and (rank is not None or energy is not None or base_model is not None):
        raise InputError("--into adds to the model's own weights; --rank, --energy and --base-model do not go with it")
    check_keep(rank, energy, needed=False)
    if into is None:
        check_out(out, overwrite)
    for path, _ in parsed:
        check_source(path)
    target = None if into is None else find_model(into)
    base_on_disk = None if base_model is None else find_model(base_model)
    if target is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite or another name")
    from ..lora import merge, merge_into, read_lora

    loras = [(read_lora(path), strength) for path, strength in parsed]
    if target is not None:
        with progress("Merging") as on_module:
            merge_into(target, loras, out, on_module, overwrite)
        print(out)
        return
    with progress("Merging") as on_module:
        merged = merge(loras, rank, energy, base_on_disk, on_module)
    save(merged, out, to, base, dtype)


@app.command()
def extract(
    base_model: Annotated[str, typer.Argument(metavar="BASE", help=f"The base model. {ON_DISK}.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model tuned from it.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the LoRA that leads from one model to another."""
    check_keep(rank, energy)
    check_out(out, overwrite)
    before, after = find_model(base_model), find_model(tuned)
    from ..lora import extract

    with progress("Extracting") as on_module:
        found = extract(before, after, rank, energy, on_module)
    save(found, out, to, base, dtype)


@app.command()
def resize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA, LoHa or LoKr file.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    base_model: BaseModelOption = None,
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    overwrite: Overwrite = False,
) -> None:
    """Reduce a LoRA's rank, or turn LoHa, LoKr and DoRA into plain LoRA."""
    check_keep(rank, energy)
    check_out(out, overwrite)
    check_source(source)
    base_on_disk = None if base_model is None else find_model(base_model)
    from ..lora import read_lora, resize

    with progress("Resizing") as on_module:
        resized = resize(read_lora(source), rank, energy, base_on_disk, on_module)
    save(resized, out, to, base, dtype)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise `InputError` unless a .safetensors file can be written at `out`.

    Args:
        out: the file.
        overwrite: whether it may exist.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: LoRAs are written as .safetensors only")
    if out.is_dir():
        raise InputError(f"{out} is a folder")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite or another name")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"cannot write to {folder}")


def check_source(path: Path) -> None:
    """Raise `InputError` unless `path` exists."""
    if not path.exists():
        raise InputError(f"no such LoRA: {path}")


def check_keep(rank: int | None, energy: float | None, needed: bool = True) -> None:
    """Raise `InputError` for a rank below 1 or an energy outside (0, 1], or if both are missing and one is `needed`."""
    if needed and rank is None and energy is None:
        raise InputError("say how much to keep: --rank N, or --energy SHARE")
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank} cannot work; choose 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"--energy {energy:g} cannot work; choose a share above 0, at most 1")


def parse_source(text: str) -> tuple[Path, float]:
    """Parse `style.safetensors:0.8` as a path and a strength, which is 1 by default; see `split_strengths`."""
    path, strengths = split_strengths(text, 1)
    return Path(path), strengths[0] if strengths else 1.0


def save(
    lora: Lora, out: Path, to: Format, base: BaseModel | None, dtype: Dtype | None, keep_alphas: bool = False
) -> None:
    """Write the LoRA, print the file's path on stdout, and report approximations and lost values on stderr.

    Args:
        lora: the LoRA.
        out: the file.
        to, base, dtype, keep_alphas: as in `sd_ext.lora.save_lora`.
    """
    import torch
    from rich.console import Console

    from ..lora import save_lora

    say = Console(stderr=True, highlight=False)
    kind = getattr(torch, dtype.value) if dtype else None
    note = save_lora(lora, out, to.value, dtype=kind, base=base.value if base else None, keep_alphas=keep_alphas)
    if lora.errors:
        worst = max(lora.errors, key=lambda module: lora.errors[module])
        say.print(f"Relative error of a module: at most {lora.errors[worst]:.2g}, in {worst}.", markup=False)
    if note:
        say.print(f"{note}.", style="yellow", markup=False)
    print(out)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, Any], None]]:
    """Show a progress bar on stderr if that is a terminal; yields a callback (modules done, all modules, module)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    say = Console(stderr=True)
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=say, transient=True, redirect_stdout=False, disable=not say.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, module: bar.update(task, completed=done, total=total)

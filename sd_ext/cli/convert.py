"""`sd-ext convert`: convert LoRA files between formats; merge, extract and resize LoRAs. See also `checkpoint`.

Paths and numbers are checked before torch is imported. Files are written completely or not at all, and an existing one
is replaced only if asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..lora.formats.file_names import comfyui_file
from ..lora.strength import Strength
from ..models import find_model
from .additions import parse_loras
from .checkpoint import checkpoint
from .limits import Limits
from .request.option import given, with_options

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
    sdxl_refiner = "sdxl-refiner"


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
SkipUnknown = Annotated[
    bool,
    typer.Option("--skip-unknown", help="Leave out tensors that are not known, and list them, in place of refusing."),
]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Leave out norms and biases, which plain LoRA cannot hold, and tell their share."),
]
Blocks = Annotated[
    list[str] | None,
    typer.Option(metavar="WEIGHTS", help="Strength by block (docs/lora.md): 12 to 26 numbers, or a name such as OUTD."),
]
ON_DISK = "Pipeline folder, .safetensors file, Hub id, or embedded"
How = Annotated[
    str,
    typer.Option(metavar="WAY", help="sum, cosine, magnitude, ties, dare or dare_ties (docs/lora.md)."),
]
Density = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Of each LoRA's values, but for sum and cosine.", show_default="0.5"),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of the random choice of dare.", show_default="0")]
BaseModelOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help=f"The base model, which DoRA, OFT and others need. {ON_DISK}.")
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
    skip_unknown: SkipUnknown = False,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help=f"Of a DoRA: write a plain LoRA for ComfyUI too. {ON_DISK}."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a LoRA in another format, at the same strength."""
    beside = out.with_name(comfyui_file(out.stem))
    check_out(out, overwrite)
    if base_model is not None:
        check_out(beside, overwrite)
    check_source(source)
    base_on_disk = None if base_model is None else find_model(base_model)
    from ..lora import read_lora
    from ..lora.plain import has_dora, told, without_dora

    read = read_lora(source, skip_unknown=skip_unknown)
    if base_on_disk is not None and not has_dora(read):
        raise InputError(f"{source} holds no DoRA, so that --base-model means nothing; leave it out")
    plain = None
    if base_on_disk is not None:
        with progress("Making it plain") as on_module:
            plain = without_dora(read, base_on_disk, on_module=on_module)
    save(read, out, to, base, dtype, keep_alphas)
    if plain is not None:
        print(told(plain, beside.name) + ".", file=sys.stderr)
        save(replace(plain, errors={}), beside, Format.kohya, base, dtype, keep_alphas)
    elif to is Format.kohya and has_dora(read):
        print("ComfyUI computes DoRA otherwise; --base-model MODEL writes a plain LoRA for it beside.", file=sys.stderr)


@app.command()
@with_options(Limits)
def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE[:S[:T]]...", help="LoRAs, at strength S (or 1), in text encoders T."),
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="A .safetensors file; with --into, this or a new folder.")],
    into: Annotated[
        str | None, typer.Option(metavar="MODEL", help=f"Add them to this model and write that instead. {ON_DISK}.")
    ] = None,
    blocks: Blocks = None,
    how: How = "sum",
    density: Density = None,
    seed: Seed = None,
    base_model: BaseModelOption = None,
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    plain: Plain = False,
    skip_unknown: SkipUnknown = False,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Merge LoRAs into one, exactly unless told how much to keep, or into a model."""
    named, limits = parse_loras(sources, blocks or [], "--blocks"), Limits(**given(Limits, options))
    if into is not None and (limits.given or base_model is not None or how != "sum" or plain):
        raise InputError(
            "--into adds to the model's own weights; --how, --base-model, --plain and limits such as --rank do not go "
            "with it"
        )
    limits.check(needed=False)
    if into is None:
        check_out(out, overwrite)
    for source, _ in named:
        check_source(Path(source))
    target = None if into is None else find_model(into)
    base_on_disk = None if base_model is None else find_model(base_model)
    if target is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite or another name")
    from ..lora import Aside, Combine, merge, merge_into, read_lora

    if seed is not None and not how.startswith("dare"):
        raise InputError(f"--seed goes with --how dare and dare_ties; {how} draws nothing")
    way = Combine(how, density, seed or 0)
    aside = Aside(next(parent for parent in out.absolute().parents if parent.is_dir()))
    loras = [(aside.lora(read_lora(Path(source), skip_unknown=skip_unknown)), strength) for source, strength in named]
    tell_unnamed(zip(sources, loras, strict=True))
    if target is not None:
        with progress("Merging") as on_module:
            merge_into(target, loras, out, on_module, overwrite)
        print(out)
        return
    with progress("Merging") as on_module:
        merged = merge(
            loras, base=base_on_disk, on_module=on_module, keep=limits.keep(), how=way, plain=plain, aside=aside
        )
    save(merged, out, to, base, dtype)


def tell_unnamed(loras: Iterable[tuple[str, tuple[Lora, Strength]]]) -> None:
    """Say on stderr which modules of LoRAs, given by name, their block weights do not name."""
    from ..lora.strength import unnamed

    for name, (lora, strength) in loras:
        if sentence := unnamed(lora, strength):
            print(f"{name}: {sentence}.", file=sys.stderr)


@app.command()
@with_options(Limits)
def extract(
    base_model: Annotated[str, typer.Argument(metavar="BASE", help=f"The base model. {ON_DISK}.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model tuned from it.")],
    out: Out,
    blocks: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="What each block is multiplied by, as in merge.")
    ] = None,
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    full_rest: Annotated[
        bool, typer.Option("--full-rest", help="Keep norms, biases and the like too, as they are; kohya's format only.")
    ] = False,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Find the LoRA that leads from one model to another."""
    limits, strength = Limits(**given(Limits, options)), Strength(blocks=blocks or "")
    limits.check()
    check_out(out, overwrite)
    before, after = find_model(base_model), find_model(tuned)
    from ..lora import at_strength, extract

    with progress("Extracting") as on_module:
        found = extract(before, after, on_module=on_module, keep=limits.keep(), full_rest=full_rest)
    tell_unnamed([(tuned, (found, strength))])
    save(at_strength(found, strength), out, to, base, dtype)


@app.command()
@with_options(Limits)
def resize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA, LoHa or LoKr file.")],
    out: Out,
    base_model: BaseModelOption = None,
    to: To = Format.kohya,
    base: Base = None,
    dtype: Type = None,
    plain: Plain = False,
    skip_unknown: SkipUnknown = False,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Reduce a LoRA's rank, or turn any other kind into plain LoRA."""
    limits = Limits(**given(Limits, options))
    limits.check()
    check_out(out, overwrite)
    check_source(source)
    base_on_disk = None if base_model is None else find_model(base_model)
    from ..lora import read_lora, resize

    with progress("Resizing") as on_module:
        lora = read_lora(source, skip_unknown=skip_unknown)
        resized = resize(lora, base=base_on_disk, on_module=on_module, keep=limits.keep(), plain=plain)
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

"""`sd-ext train`: one command for each training script, and one for the whole recipe.

Arguments are passed on to the scripts' own parsers (`sd_ext.training.settings.command`), where each setting is one
flag. torch is not imported before a run begins.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, TrainingError

app = typer.Typer(
    help="Train a LoRA, an autoencoder, a text encoder, a U-Net, or all of Stable Diffusion from scratch.",
    no_args_is_help=True,
)
# Everything after the command's name, --help included, belongs to the script.
FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _script(ctx: typer.Context, config: str, module: str, doc: str) -> None:
    """Run a training script with the arguments that follow the command's name.

    Args:
        ctx: the command's context, which holds the arguments.
        config: "module:class" of the settings, within `sd_ext.training`.
        module: the script's module there.
        doc: the description for `--help`.
    """
    from ..training.settings.command import resolve, run_command

    prog, room = f"sd-ext train {ctx.info_name}", "sd_ext.training"
    try:
        run_command(resolve(f"{room}.{config}"), f"{room}.{module}:run", ctx.args, doc, prog)
    except TrainingError as error:
        _stop(error)
    except KeyboardInterrupt as stop:  # the message says how to go on
        print(f"sd-ext: {str(stop) or 'stopped'}", file=sys.stderr)
        raise typer.Exit(130) from None


def _stop(error: TrainingError) -> None:
    print(f"sd-ext: {error}", file=sys.stderr)
    raise typer.Exit(1)


@app.command()
def data(
    out: Annotated[str, typer.Option(help="Folder for the pictures and metadata.jsonl.", metavar="DIR")],
    packages: Annotated[str, typer.Option(help="Folder of the sets of drawings.", metavar="DIR")],
    fetch: Annotated[bool, typer.Option("--fetch", help="Get missing packages first, by npm pack (25 MB).")] = False,
    pictures: Annotated[int, typer.Option(help="How many scenes.", metavar="N")] = 20_000,
    size: Annotated[int, typer.Option(help="Their height and width.", metavar="PIXELS")] = 64,
    seed: Annotated[int, typer.Option(help="Other pictures by the same rules.", metavar="N")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first scene, to draw more of a seed.", metavar="N")] = 0,
    style: Annotated[str | None, typer.Option(help="Things in this style alone, to train a LoRA on.")] = None,
) -> None:
    """Draw captioned pictures of everyday things from sets of drawings: scenes of several styles, or one style."""
    if style is not None and first:
        raise InputError("--style draws each thing once: leave out --first")
    from ..training.sets.drawings.folder import write_drawings
    from ..training.sets.drawings.packages import declared, of_style, usable
    from ..training.sets.drawings.packages import fetch as get
    from ..training.sets.drawings.style import write_style

    sets = usable() if style is None else of_style(style)
    if fetch and (got := get(Path(packages), [*sets, declared()[1]])):
        print(f"fetched {', '.join(got)} into {packages}")
    if style is None:
        said = write_drawings(Path(out), Path(packages), pictures, size, seed, first)
    else:
        said = write_style(Path(out), Path(packages), style, pictures, size, seed)
    for line in said:
        print(line)


@app.command(context_settings=FORWARD)
def autoencoder(ctx: typer.Context) -> None:
    """Train an AutoencoderKL on a folder of pictures."""
    _script(ctx, "configs:AutoencoderConfig", "train_autoencoder", "Train an AutoencoderKL on a folder of pictures.")


@app.command(context_settings=FORWARD)
def text_encoder(ctx: typer.Context) -> None:
    """Train a small CLIP on captioned pictures; its text tower is a pipeline's text encoder."""
    _script(ctx, "configs:TextEncoderConfig", "train_text_encoder", "Train a small CLIP on captioned pictures.")


@app.command(context_settings=FORWARD)
def text_to_image(ctx: typer.Context) -> None:
    """Train the U-Net of a latent diffusion model on captioned pictures."""
    _script(
        ctx, "configs:TextToImageConfig", "train_text_to_image", "Train a latent diffusion U-Net on captioned pictures."
    )


@app.command(context_settings=FORWARD)
def lora(ctx: typer.Context) -> None:
    """Train a LoRA of Stable Diffusion 1.x, 2.x, SDXL or the embedded model: `sd-ext train lora CONFIG.toml`."""
    _script(
        ctx, "lora.config:LoraConfig", "train_lora", "Train a LoRA; give a file of settings or the name of a preset."
    )


@app.command(context_settings=FORWARD)
def few_step(ctx: typer.Context) -> None:
    """Train a LoRA with which four network calls do what twenty do: consistency distillation of one's own model."""
    _script(
        ctx, "few_step.config:FewStepConfig", "train_few_step",
        "Train a few-step LoRA (LCM-LoRA); give a file of settings or the name of a preset.",
    )  # fmt: skip


@app.command(context_settings=FORWARD)
def slider(ctx: typer.Context) -> None:
    """Train a LoRA whose strength goes both ways, between two texts or the pictures of pairs."""
    _script(
        ctx, "slider.config:SliderConfig", "train_slider",
        "Train a slider LoRA; give a file of settings or the name of a preset.",
    )  # fmt: skip


@app.command(context_settings=FORWARD)
def look(ctx: typer.Context) -> None:
    """Show what a LoRA would be trained on, as one HTML page: `sd-ext train look DATA`, or a file of its settings."""
    if ctx.args and not ctx.args[0].startswith("-") and not ctx.args[0].partition("#")[0].endswith(".toml"):
        ctx.args[:1] = ["--data", ctx.args[0]]
    _script(
        ctx, "doctor.settings:LookConfig", "doctor.look",
        "Show what a LoRA would be trained on: sd-ext train look DATA, or CONFIG.toml, and the settings of train lora.",
    )  # fmt: skip


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="A run's folder, and a step.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write.", show_default="RUN/exports/step-...")
    ] = None,
    ema: Annotated[
        bool | None, typer.Option("--ema/--no-ema", help="Averaged weights or not.", show_default="if there are any")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write the LoRA of a checkpoint, for Diffusers and for A1111 and ComfyUI."""
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite or another name")
    from ..training.export import export

    folder, notes = export(source, out, ema, overwrite)
    for note in notes:
        print(note, file=sys.stderr)
    print(folder)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fork(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="A run's folder, and a step.")],
) -> None:
    """Train a run on from a checkpoint with several values of one setting, e.g. --learning-rate 1e-4,5e-5, and compare.

    Other flags are those of the run's own script; --out is the folder of the branches.
    """
    from ..training.fork import fork

    try:
        folder, lines = fork(source, ctx.args)
    except TrainingError as error:
        _stop(error)
    for line in lines:
        print(line)
    print(folder)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def rates(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="RUN[@STEP]|CONFIG.toml", help="Where to start; or a preset.")],
) -> None:
    """Find a learning rate: train a few hundred steps at each of several from one start, compare, recommend.

    Flags are those of the run's own script: --learning-rate 1e-5,1e-4,1e-3 are the rates, else five around the
    settings' own; --steps how many each does (200); --out the folder.
    """
    from ..training.rates import find

    try:
        folder, lines = find(source, ctx.args)
    except TrainingError as error:
        _stop(error)
    for line in lines:
        print(line)
    print(folder)


@app.command()
def caption(
    data: Annotated[str, typer.Argument(help="Folder of pictures.", metavar="DATA")],
    model: Annotated[str, typer.Option(help="Image-to-text model or classifier: a folder, or a Hub id.", metavar="M")],
    revision: Annotated[str, typer.Option(help="Which branch, tag or commit of a Hub id.", metavar="NAME")] = "",
    prompt: Annotated[str, typer.Option(help="How captions begin, or what a model that chats is asked.")] = "",
    tokens: Annotated[int, typer.Option(help="Length of a caption, at most.", metavar="N", min=1)] = 60,
    threshold: Annotated[float, typer.Option(help="How likely a tag must be.", metavar="SHARE", min=0, max=1)] = 0.35,
    ending: Annotated[str, typer.Option(help="Of the files: .txt or .caption.")] = ".txt",
    batch_size: Annotated[int, typer.Option(help="Pictures at once.", metavar="N", min=1)] = 1,
) -> None:
    """Write captions beside pictures that have none, by a model of transformers; what is there stays as it is."""
    from functools import partial

    from ..training.captioner.models import load_captioner
    from ..training.captioner.write import write_captions

    load = partial(load_captioner, model, revision, prompt, tokens, threshold)
    for line in write_captions(data, load, ending, batch_size):
        print(line)


@app.command()
def from_scratch(
    out: Annotated[str, typer.Option(help="Folder of the run; the same command resumes it.", metavar="DIR")],
    recipe: Annotated[str, typer.Option(help="cpu (64 x 64), gpu (128 x 128), or a TOML file.")] = "cpu",
    override: Annotated[list[str] | None, typer.Option(help="stage.key=value, e.g. text_to_image.steps=5000.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    packages: Annotated[
        str | None, typer.Option(help="Folder of the sets of drawings.", metavar="DIR", show_default="OUT/packages")
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Get missing packages first, by npm pack (25 MB).")] = False,
    allow_import: Annotated[
        bool, typer.Option("--allow-import", help="Import any package the recipe names an optimizer of; runs its code.")
    ] = False,
) -> None:
    """Train all of Stable Diffusion: pictures, autoencoder, text encoder, U-Net, pipeline."""
    from ..training.from_scratch import run

    try:
        print(run(out, recipe, override or [], dry_run, allow_import, packages, fetch))
    except TrainingError as error:
        _stop(error)

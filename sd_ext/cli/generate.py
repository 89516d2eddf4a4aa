"""`sd-ext generate`: generate pictures from prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..models import EMBEDDED, find_model
from ..models.pipeline import load_pipeline
from . import checks
from .pictures import Destination, Recipe, encode, name_stem, thumbnail

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from rich.console import Console

STEPS = 20
EMBEDDED_GUIDANCE = 1.5  # the value that benchmarks/bars.py measures at; other models use their pipeline's default


class Device(str, Enum):
    """The device to compute on; auto is CUDA if available."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(str, Enum):
    """The dtype of the weights; auto is float32 on a CPU and float16 on CUDA."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; quote each prompt.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_ID", help="Pipeline folder or Hub id.", show_default="the embedded model"),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="See sd-ext samplers.", show_default="the model's own")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="NAME", help="See sd-ext samplers.", show_default="the sampler's own")
    ] = None,
    unet: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="exact, balanced, fast; cached, tokens, highres: how much exactness to give for speed.",
            show_default="the model's own",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Network evaluations.")] = STEPS,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="G", help="How closely to follow the prompt; 1 is off.", show_default="the model's own"),
    ] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What to keep out of the picture.")] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="First picture's seed; -1 draws one.")] = 0,
    num: Annotated[int, typer.Option(metavar="N", help="Pictures per prompt, seeds counting up.")] = 1,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="In pixels.", show_default="what the model was trained on")
    ] = None,
    device: Annotated[Device, typer.Option(help="CUDA where there is one, unless told.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="float32 on a CPU, float16 on CUDA, unless told.")] = Dtype.auto,
    out: Annotated[Path, typer.Option(metavar="PATH", help="A folder, or for a single picture a .png file.")] = Path(
        "."
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out FILE replace a file.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Draw pictures from words and write them as PNGs that remember how they were made."""
    prompts = prompts or []
    checks.check_prompts(prompts)
    checks.check_text("negative prompt", negative)
    checks.check_steps(steps)
    checks.check_guidance(guidance)
    checks.check_number(num, len(prompts))
    seed = checks.resolve_seed(seed, num)
    wanted_size = checks.parse_size(size)
    destination = Destination.check(out, len(prompts) * num, overwrite)
    source = find_model(EMBEDDED if model is None else model)
    source.check()

    from rich.console import Console
    from rich.text import Text

    say = Console(stderr=True, highlight=False)
    started = time.perf_counter()
    with say.status("Loading the model"):
        torch_device, torch_dtype = resolve_device(device, dtype)
        check_names(sampler, grid, unet)
        pipe = load_pipeline(source, torch_device, torch_dtype, trust_remote_code)
        from .drawing import check_pipeline, default_guidance, default_size, is_cut

        width, height = wanted_size or default_size(pipe)
        check_pipeline(pipe, width, height, negative)
        set_sampler(pipe, sampler, grid)
        set_unet(pipe, unet)
        if guidance is None:
            guidance = EMBEDDED_GUIDANCE if model in (None, EMBEDDED) else default_guidance(pipe)
    if negative and guidance <= 1:
        say.print("The negative prompt does nothing at guidance 1 or less.", style="yellow")
    for prompt in prompts:
        if is_cut(pipe, prompt):
            say.print("The end of this prompt is too long for the model and is cut:", Text(prompt), style="yellow")

    recipes = [
        Recipe(
            prompt=prompt,
            negative=negative,
            seed=seed + i,
            model=model or EMBEDDED,
            sampler=sampler or "",
            grid=grid or "",
            scheduler=type(pipe.scheduler).__name__,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            device=torch_device.type,
            dtype=str(torch_dtype).removeprefix("torch."),
            unet=unet or "",
        )
        for prompt in prompts
        for i in range(num)
    ]
    for path in _draw_and_write(pipe, recipes, destination, say):
        print(path)
    say.print(f"{time.perf_counter() - started:.1f} s in all; `sd-ext info FILE` tells how a picture was made.")


def resolve_device(device: Device, dtype: Dtype) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to use. Raises `InputError` if CUDA is asked for and not available."""
    import torch

    cuda = torch.cuda.is_available()
    if device is Device.cuda and not cuda:
        raise InputError("--device cuda: torch finds no CUDA device here; leave --device out or choose cpu")
    on_cuda = cuda and device is not Device.cpu
    if dtype is Dtype.auto:
        dtype = Dtype.float16 if on_cuda else Dtype.float32
    return torch.device("cuda" if on_cuda else "cpu"), getattr(torch, dtype.value)


def check_names(sampler: str | None, grid: str | None, unet: str | None) -> None:
    """Raise `UnknownNameError`, which lists the closest names, for an unknown sampler, grid or U-Net preset."""
    from ..schedulers.grids import get_grid
    from ..schedulers.registry import find_sampler

    if sampler is not None:
        find_sampler(sampler)
    if grid is not None:
        get_grid(grid)
    if unet is not None:
        from ..unets.presets import check_preset

        check_preset(unet)


def set_sampler(pipe: DiffusionPipeline, sampler: str | None, grid: str | None) -> None:
    """Replace the pipeline's scheduler if a sampler or a grid is given.

    Args:
        pipe: changed in place.
        sampler: the sampler's name; None keeps the model's own.
        grid: the timestep grid's name; None is the sampler's default.

    Raises:
        InputError: only a grid is given, and the model's own scheduler is not one of this package.
    """
    import sd_ext

    own: Any = pipe.scheduler
    if sampler is not None:
        pipe.register_modules(scheduler=sd_ext.make_scheduler(sampler, own.config, grid=grid))
    elif grid is not None:
        name = type(own).__name__
        if name not in {known.cls.__name__ for known in sd_ext.list_samplers()}:
            raise InputError(f"--grid {grid} needs --sampler too: the model's own {name} is not one of ours")
        pipe.register_modules(scheduler=getattr(sd_ext, name).from_config(own.config, grid=grid))


def set_unet(pipe: DiffusionPipeline, name: str | None) -> None:
    """Apply a U-Net preset to the pipeline, if one is given. Raises `InputError` if the network cannot have it."""
    if name is None:
        return
    from ..unets.presets import with_preset

    network: Any = getattr(pipe, "unet", None)
    if network is None:
        raise InputError(f"--unet {name}: {type(pipe).__name__} has no U-Net; leave --unet out")
    pipe.register_modules(unet=with_preset(network, name))


def _draw_and_write(
    pipe: DiffusionPipeline, recipes: Sequence[Recipe], destination: Destination, say: Console
) -> list[Path]:
    """Generate the pictures and write each at once; with several, also a contact sheet. Returns the paths."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..sheets import WHITE, contact_sheet
    from .drawing import batches, draw

    columns = TextColumn("Drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    count, paths, thumbnails = len(batches(recipes)), [], []
    # The bar is on stderr: stdout gets the paths and nothing else.
    with Progress(*columns, console=say, transient=True, redirect_stdout=False, disable=not say.is_terminal) as bar:
        task = bar.add_task("Drawing", total=None)
        for recipe, picture in draw(pipe, recipes, lambda calls: bar.update(task, total=count * calls, advance=1)):
            paths.append(destination.write(encode(picture, recipe), name_stem(recipe.prompt)))
            thumbnails.append(thumbnail(picture))
    if len(recipes) > 1:
        prompts = {recipe.prompt for recipe in recipes}
        per_prompt = len(recipes) // len(prompts)
        wide = per_prompt if 1 < per_prompt < len(recipes) else math.ceil(math.sqrt(len(recipes)))
        titles = [f"{recipe.prompt} ({recipe.seed})" for recipe in recipes]
        sheet = contact_sheet(thumbnails, wide, titles, gap=8, ground=WHITE)
        paths.append(destination.write(encode(sheet), "sheet"))
    return paths

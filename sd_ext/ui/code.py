"""A recipe as a command for a shell, and as Python: both draw the same picture again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from ..cli.additions import loras_of
from ..cli.equipment import sampler_options
from ..cli.fitted import NAME as CALIBRATED
from ..cli.request import Recipe
from ..cli.request.option import declared
from ..cli.unet_options import single_options
from ..models import EMBEDDED, is_embedded, is_hub_id
from ..models.calibrated import FOLDER as FITTED

MARKED = re.compile(r"[()\[\]{}\\:<>]|\bBREAK\b|\bAND\b")  # what may mean something in a prompt
LONG = 120  # characters; a prompt above may not fit one chunk of the text encoder
NEEDS_CHANGE = "device", "dtype"  # said in a command only where they differ from what a CPU takes


def as_command(recipe: Recipe) -> str:
    """The command that draws it, for a POSIX shell (Windows: Git Bash or WSL), one option a line if there are many.

    Args:
        recipe: of a picture that was drawn, or is to be.
    """
    parts = [shlex.quote(recipe.prompt)]
    if recipe.prompt.startswith("-"):
        parts = ["--", *parts]
    options: list[str] = []
    for each in declared(Recipe):
        value = getattr(recipe, each.name)
        if value in (None, "", (), False) or value == each.default or _usual(each.name, recipe):
            continue
        values = value if isinstance(value, tuple) else (value,)
        options += [each.flag if value is True else f"{each.flag}{_argument(one)}" for one in values]
    words = ["sd-ext generate", *options, *parts]
    return " ".join(words) if len(words) < 6 else " \\\n  ".join(words)


def _argument(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return f"={shlex.quote(text)}" if text.startswith("-") else f" {shlex.quote(text)}"


def _usual(name: str, recipe: Recipe) -> bool:
    """Whether a setting is what is found anyway on a machine with a CPU."""
    return name in NEEDS_CHANGE and (recipe.device, recipe.dtype) == ("cpu", "float32")


def as_python(recipe: Recipe) -> str:
    """A program that draws it with Diffusers and this package, and saves it as picture.png.

    Args:
        recipe: of a picture that was drawn: with guidance, size, device and dtype.
    """
    imports, model = _model(recipe)
    lines = [*model]
    if recipe.device not in ("cpu", "auto"):
        lines.append(f'pipe.to("{recipe.device}")')
    lines += _lora(recipe)
    lines += _scheduler(recipe)
    lines += _unet(recipe)
    imports += ["from sd_ext.unets.presets import with_preset"] if recipe.unet else []
    if _needs_halves(recipe):
        lines.append("sd_ext.attach(pipe)  # the sampler weighs both halves of guidance itself")
    lines += ["", *_call(recipe), 'picture.save("picture.png")']
    ours = ["import sd_ext"] if any("sd_ext." in line for line in lines) else []
    foreign = ["import torch", *(each for each in imports if "diffusers" in each)]
    ours += [each for each in imports if "diffusers" not in each]
    return "\n".join([*foreign, "", *ours, *([""] if ours else []), *lines]) + "\n"


def _model(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(imports, lines) that load the model."""
    dtype = f"torch.{recipe.long_dtype}" if recipe.dtype not in ("auto", "float32") else ""
    options = [f"dtype={dtype}"] if dtype else []
    theirs = ["from diffusers import DiffusionPipeline"]
    if is_embedded(recipe.model):
        given = ", ".join(["sd_ext.pretrained_path()", *options])
        return theirs, [f"pipe = DiffusionPipeline.from_pretrained({given})"]
    path, where = Path(recipe.model).expanduser(), _text(recipe.model)
    if path.is_file() or (path / "model").is_dir():
        loaded = f'pipe = load_pipeline(find_model({where}), "cpu", {dtype or "torch.float32"})'
        return ["from sd_ext.models import find_model", "from sd_ext.models.pipeline import load_pipeline"], [loaded]
    options = [where, "use_safetensors=True", *options]
    options += [f"variant={_text(recipe.variant)}"] if recipe.variant else []
    options += [f"revision={_text(recipe.revision)}"] if recipe.revision else []
    return theirs, [f"pipe = DiffusionPipeline.from_pretrained({', '.join(options)})"]


def _lora(recipe: Recipe) -> list[str]:
    entries = []
    for source, strength in loras_of(recipe):
        numbers = [strength.unet] + ([strength.text] if strength.text is not None else [])
        entries.append(f"({', '.join([_text(source), *map(repr, numbers)])})")
    return [f"sd_ext.use_lora(pipe, [{', '.join(entries)}])"] if entries else []


def _scheduler(recipe: Recipe) -> list[str]:
    named = {} if recipe.like is None else {"like": recipe.like}
    options = "".join(f", {name}={_text(value)}" for name, value in {**named, **sampler_options(recipe)}.items())
    if recipe.sampler == CALIBRATED and (Path(recipe.model).expanduser() / FITTED).is_dir():
        where = f'{_text(recipe.model)}, subfolder="{FITTED}"'
        return [f"pipe.scheduler = sd_ext.CalibratedScheduler.from_pretrained({where})"]
    if recipe.sampler is not None:
        return [f"pipe.scheduler = sd_ext.make_scheduler({_text(recipe.sampler)}, pipe.scheduler.config{options})"]
    if options:
        return [f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config{options})"]
    return []


def _unet(recipe: Recipe) -> list[str]:
    single = "".join(f", {name}={value!r}" for name, value in single_options(recipe).items())
    lines = [f"pipe.unet = with_preset(pipe.unet, {_text(recipe.unet)})"] if recipe.unet else []
    return lines + ([f"pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet{single})"] if single else [])


def _needs_halves(recipe: Recipe) -> bool:
    if recipe.guidance_schedule is not None:
        return True
    if recipe.sampler is None:
        return False
    from ..schedulers.find import understand

    return bool(understand(recipe.sampler, recipe.like).info.cls.weighs_unconditional)


def _call(recipe: Recipe) -> list[str]:
    prompt, negative = _text(recipe.prompt), _text(recipe.negative) if recipe.negative else ""
    read = [prompt, *([negative] if negative else [])]
    read += [f"clip_skip={recipe.clip_skip}"] if recipe.clip_skip != 1 else []
    words = [f"    **sd_ext.encode_prompt(pipe, {', '.join(read)}),"]
    texts = recipe.prompt + recipe.negative
    plain = not MARKED.search(texts) and max(len(recipe.prompt), len(recipe.negative)) <= LONG
    if recipe.plain_prompt or (plain and recipe.clip_skip == 1):
        words = [f"    {prompt},", *([f"    negative_prompt={negative},"] if negative else [])]
    lines = ["picture = pipe(", *words, f"    num_inference_steps={recipe.steps},"]
    lines += [f"    guidance_scale={recipe.guidance!r},"] if recipe.guidance is not None else []
    if recipe.size is not None:
        width, height = recipe.sides
        lines += [f"    width={width},", f"    height={height},"]
    return [*lines, f'    generator=torch.Generator("cpu").manual_seed({recipe.seed}),', ").images[0]"]


def _text(value: str | float) -> str:
    """A text or number as Python writes it; a text in double quotes where that needs no escape."""
    plain = isinstance(value, str) and value.isprintable() and not set(value) & set('"\\')
    return f'"{value}"' if plain else repr(value)


def told(recipe: Recipe, offered: str) -> str:
    """What has to be said beside the code where visitors cannot reach the server's files; "" if nothing.

    Args:
        recipe: what the code draws.
        offered: "here" if whoever reads it is at the machine that draws.
    """
    files = [recipe.model] if recipe.model != EMBEDDED and not is_hub_id(recipe.model) else []
    files += [named.source for named in loras_of(recipe) if not is_hub_id(named.source)]
    if offered == "here" or not files:
        return ""
    return "The code names files of the server; put the paths of your own copies in their places."

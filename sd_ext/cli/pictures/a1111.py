"""The text `parameters`, as AUTOMATIC1111 writes it and most other programs read it.

    red apple
    Negative prompt: blue
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: name

Values that hold a comma, a colon or a line break are JSON texts there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ... import __version__
from ...errors import InputError
from ...models import EMBEDDED
from ...reading import parse_json
from ..additions import LoraNamed, loras_of
from .record import Record
from .told import Told

PROGRAM = "AUTOMATIC1111"
NEGATIVE = "Negative prompt:"
SAMPLERS = {
    **{name.lower(): name for name in ("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a")},
    **{name.lower(): name for name in ("DPM++ 3M SDE", "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a")},
    **{name.lower(): name for name in ("DPM fast", "Restart", "DDIM", "PLMS", "LCM")},
    "unipc 3 bh1": "UniPC",
}
"""Our samplers -> the same ones there."""

GRIDS = {
    **{name.lower(): name for name in ("Karras", "Exponential", "Polyexponential", "Simple", "Normal")},
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "ddim_uniform": "DDIM",
    "ays_11": "Align Your Steps",
    "beta_sigmas": "Beta",
}
"""Our grids -> what is called a schedule type there."""

AYS, SDXL_PIXELS = "Align Your Steps", 832 * 832  # of which there are two, and what tells that a model is SDXL
TYPES = {"Automatic": None, "Uniform": "normal"}  # schedule types without a grid of their name here
NUMBERS = (
    ("Steps", "steps", int), ("CFG scale", "guidance", float), ("Seed", "seed", int), ("Clip skip", "clip_skip", int),
)  # fmt: skip
SETTING = re.compile(r'\s*([^:,]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
STEPS_FIRST = re.compile(r"Steps: \d+\s*,")  # how the line of the settings begins
LORA = re.compile(r"<lora:([^:<>]+)(?::([^<>]*))?>")  # as it stands in a prompt
TAKEN = {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Clip skip", "Lora hashes", "Version"}


def parameters(record: Record) -> str:
    """The text for a picture of ours.

    Names that only we know are written as they are here. What would end the prompt early for a reader, such as a line
    that begins with `Steps:`, is changed so that it does not.
    """
    recipe = record.recipe
    sampler = str(record.made.get("sampler") or recipe.sampler or record.made.get("scheduler") or "unknown")
    grid = record.made.get("grid") or recipe.grid
    settings: dict[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": SAMPLERS.get(sampler.lower(), sampler),
        **({"Schedule type": GRIDS.get(str(grid), grid)} if grid else {}),
        "CFG scale": f"{recipe.guidance or 0:g}",
        "Seed": recipe.seed,
        **({"Size": recipe.size} if recipe.size else {}),
        **({"Clip skip": recipe.clip_skip} if recipe.clip_skip != 1 else {}),
        "Model": _model_name(recipe.model),
        "Version": f"sd_ext {__version__}",
    }
    loras = loras_of(recipe)
    prompt = " ".join([_plain(recipe.prompt), *map(_lora, loras)])
    lines = [prompt, *([f"{NEGATIVE} {_plain(recipe.negative)}"] if recipe.negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def _lora(named: LoraNamed) -> str:
    """A LoRA as it stands in a prompt: text encoder's strength, U-Net's, and block weights (LoRA Block Weight)."""
    unet, in_text = named.strength.of_part("unet"), named.strength.of_part("text_encoder")
    strengths = f"{unet:g}" if unet == in_text else f"{in_text:g}:{unet:g}"
    blocks = f":lbw={named.strength.blocks}" if named.strength.blocks else ""
    return f"<lora:{_model_name(named.source)}:{strengths}{blocks}>"


def _plain(text: str) -> str:
    """A prompt without what readers take for the end of a prompt."""
    text = text.replace(NEGATIVE, "Negative prompt :")
    return re.sub(r"\s*\n\s*(?=Steps:)", " ", text).strip()


def _model_name(model: str) -> str:
    """The last part of a model's path or id, without signs that separate settings."""
    name = model if model == EMBEDDED else PurePath(model.replace("\\", "/")).name or model
    return re.sub(r'[,:"\n\r]+', "_", name.removesuffix(".safetensors"))


def parse(text: str) -> Told:
    """What a text `parameters` says. Whatever is not understood becomes part of the prompt, as in other readers."""
    body, values, below = _split(text.replace("\r\n", "\n").strip())
    prompt, _, negative = body.partition(f"\n{NEGATIVE}")
    if body.startswith(NEGATIVE):
        prompt, negative = "", body.removeprefix(NEGATIVE)
    prompt, negative = prompt.strip(), negative.strip()
    settings, dropped = _ours(values)
    dropped += below
    dropped += [f"LoRA {name} {strength or 1}" for name, strength in LORA.findall(prompt)]
    settings |= {"prompt": words} if (words := LORA.sub("", prompt).strip()) else {}
    settings |= {"negative": negative} if negative else {}
    shown = {"prompt": prompt, "negative": negative, **values}
    version = values.get("Version", "")
    program = next((each for each in ("sd_ext", "Fooocus") if version.startswith(each)), PROGRAM)
    return Told(program, {name: value for name, value in shown.items() if value}, settings, dropped)


def _split(text: str) -> tuple[str, dict[str, str], list[str]]:
    """Divide a text into what stands above the settings, the settings, and the names of what stands below them.

    The settings are the last line; or a line that begins with Steps, where extensions have written more, such as
    "Template: a {red|blue} apple".
    """
    lines = text.split("\n")
    for place in reversed(range(len(lines))):
        values = {name.strip(): _value(value) for name, value in SETTING.findall(lines[place])}
        if "Steps" in values and (place == len(lines) - 1 or STEPS_FIRST.match(lines[place])):
            below = [line.partition(":")[0].strip() for line in lines[place + 1 :] if ":" in line]
            return "\n".join(lines[:place]), values, below
    return text, {}, []


def _value(text: str) -> str:
    try:
        return str(parse_json(text, "a value", str)) if text.startswith('"') else text.strip()
    except InputError:
        return text


def _ours(values: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The settings by our names, and what has no counterpart."""
    found: dict[str, object] = {}
    dropped = [f"{name} {value}" for name, value in values.items() if name not in TAKEN and name != "Model hash"]
    for name, ours, kind in NUMBERS:
        try:
            found |= {ours: kind(values[name])} if name in values else {}
        except ValueError:
            dropped.append(f"{name} {values[name]}")
    if re.fullmatch(r"\d{1,9}x\d{1,9}", values.get("Size", "")):
        found["size"] = values["Size"]
    sampler, schedule = values.get("Sampler", ""), values.get("Schedule type", "")
    for older in ("Karras", "Exponential"):  # one name for both, in pictures made before 2024
        if sampler.endswith(f" {older}"):
            sampler, schedule = sampler.removesuffix(f" {older}"), older
    by_name = {theirs: ours for ours, theirs in SAMPLERS.items()}
    if sampler in by_name:
        found["sampler"] = by_name[sampler]
        found |= {"like": like} if (like := _like(values)) else {}
        grids = {theirs: ours for ours, theirs in GRIDS.items()} | TYPES
        if grids.get(schedule):
            found["grid"] = grids[schedule]
            if schedule == AYS and found.get("like") == "a1111":
                found["grid"], guess = _align_your_steps(values)
                dropped.append(guess)
        elif schedule and schedule not in grids:
            dropped.append(f"Schedule type {schedule}")
    elif sampler:
        dropped.append(f"Sampler {sampler}")
    return found, dropped


def _like(values: Mapping[str, str]) -> str | None:
    """The program whose steps were taken, by the name that `--like` has for it; None for ours."""
    version = values.get("Version", "")
    if version.startswith("sd_ext"):
        return None
    if version.startswith("Fooocus"):  # which draws with ComfyUI's samplers, and writes this text where it is told to
        return "comfyui"
    return "a1111" if "Schedule type" in values else "a1111_1_8"  # which has no schedule types


def _align_your_steps(values: Mapping[str, str]) -> tuple[str, str]:
    """The grid of A1111's "Align Your Steps", and a phrase that says that it is a guess.

    There it depends on whether the model is SDXL, which the text does not say: its name and size are all there is.

    Args:
        values: the settings.
    """
    width, _, height = values.get("Size", "").partition("x")
    large = width.isdecimal() and height.isdecimal() and int(width[:9]) * int(height[:9]) >= SDXL_PIXELS
    grid, other, model, others = "ays_11", "ays_11_sdxl", "SD 1.x", "SDXL"
    if large or "xl" in values.get("Model", "").lower():
        grid, other, model, others = other, grid, others, model
    return grid, f"for which model {AYS} is (taken for {model}; for {others} give --grid {other})"

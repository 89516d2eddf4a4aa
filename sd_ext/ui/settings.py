"""What the fields of the page say, as a recipe; and from a picture's file back to the fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..cli.additions import parse_loras
from ..cli.checks import resolve_seed
from ..cli.pictures import Told
from ..cli.plan import ANY
from ..cli.request import Recipe
from ..errors import InputError
from ..models import EMBEDDED
from .offer import Offer

LORAS = 3
"""How many LoRAs the page has fields for."""

LABELS = {
    "prompt": "Prompt", "negative": "Negative prompt", "model": "Model", "sampler": "Sampler", "grid": "Grid",
    "steps": "Steps", "guidance": "Guidance", "seed": "Seed", "size": "Size", "unet": "U-Net",
    "unet_options": "U-Net options", "guidance_schedule": "Guidance over time", "clip_skip": "Clip skip",
    "like": "Steps of", "plain_prompt": "Plain prompt",
}  # fmt: skip
"""Field -> what it is called on the page."""

FLAGS = {"unet-option": "U-Net options", "unet": "U-Net", "lora": "LoRA", "like": "Steps of", "seeds": "Seed"} | {
    name.replace("_", "-"): label for name, label in LABELS.items()
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of the page, in their order. Empty text stands for what the model or the sampler decides.

    Args:
        model, lora_1, lora_2, lora_3: names of what the page offers.
        guidance: a number as text, or nothing.
        seed: a whole number as text, for a browser's numbers are exact up to 2^53 only; -1 draws one.
        unet_options: NAME=VALUE, one a line.
        strength_1, strength_2, strength_3: of the LoRAs.
    The others are those of `Recipe`.
    """

    prompt: str = ""
    negative: str = ""
    model: str = EMBEDDED
    sampler: str = "auto"
    grid: str = ""
    steps: float = 20
    guidance: str = ""
    seed: str = "0"
    size: str = ""
    unet: str = ""
    unet_options: str = ""
    lora_1: str = ""
    strength_1: float = 1.0
    lora_2: str = ""
    strength_2: float = 1.0
    lora_3: str = ""
    strength_3: float = 1.0
    guidance_schedule: str = ""
    like: str = ""
    clip_skip: float = 1
    plain_prompt: bool = False

    @classmethod
    def of(cls, values: Sequence[Any]) -> Settings:
        """The settings whose values stand in the order of the fields, as a browser sent them.

        Raises:
            InputError: there are more or fewer, or one is of another type.
        """
        names = [field.name for field in fields(cls)]
        if len(values) != len(names):
            raise InputError(f"the page sent {len(values)} values and has {len(names)} fields; load it anew")
        plain = cls()
        return cls(
            **{name: _typed(name, value, getattr(plain, name)) for name, value in zip(names, values, strict=True)}
        )

    @property
    def values(self) -> list[Any]:
        """In the order of the fields."""
        return list(asdict(self).values())

    @property
    def loras(self) -> list[tuple[str, float]]:
        """(name, strength) of the LoRAs that are chosen."""
        pairs = ((getattr(self, f"lora_{n}"), getattr(self, f"strength_{n}")) for n in range(1, LORAS + 1))
        return [(name, strength) for name, strength in pairs if name]


def _typed(name: str, value: Any, plain: Any) -> Any:
    """A value of a field, of its type: what a browser sends where nothing was entered is its plain value."""
    if isinstance(plain, bool):
        return bool(value)
    if isinstance(plain, str):
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InputError(f"{LABELS.get(name, name)}: text is expected")
        return value if name in ("prompt", "negative", "unet_options") else value.strip()
    if value is None:
        return plain
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{LABELS.get(name, name)}: a number is expected")
    return value


def recipe_of(settings: Settings, models: Offer, loras: Offer) -> Recipe:
    """The recipe that the fields describe, checked as far as can be without the model. A seed of -1 is drawn.

    Raises:
        InputError: a value cannot work, or a name is not offered.
    """
    twice = [name for name, _ in settings.loras]
    if len(set(twice)) < len(twice):
        raise InputError("a LoRA is chosen twice; once is enough, at the sum of both strengths")
    made: dict[str, Any] = {
        "prompt": settings.prompt.strip(),
        "negative": settings.negative.strip(),
        "model": models.source(settings.model or EMBEDDED),
        "steps": _whole("steps", settings.steps),
        "guidance": _guidance(settings.guidance),
        "seed": resolve_seed(_seed(settings.seed), 1),
        "unet_option": tuple(line.strip() for line in settings.unet_options.splitlines() if line.strip()),
        "lora": tuple(f"{loras.source(name)}:{strength:g}" for name, strength in settings.loras),
        "clip_skip": _whole("clip_skip", settings.clip_skip),
        "plain_prompt": settings.plain_prompt,
    }
    texts = ("sampler", "grid", "size", "unet", "guidance_schedule", "like")
    more: dict[str, Any] = {name: getattr(settings, name) or None for name in texts}
    recipe = Recipe(**made, **more)
    recipe.check()
    return recipe


def _seed(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,20}", text or "0"):
        raise InputError(f"--seed {text!r} cannot be read; write a whole number, or {ANY} to draw one")
    return int(text or "0")


def _guidance(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"--guidance {text!r} cannot be read; write a number, or leave it empty") from None


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise InputError(f"{LABELS[name]} {value:g} cannot work; it must be a whole number")
    return int(value)


HERE = ("device", "dtype", "attention", "digests")
"""Settings of a picture that say where it was drawn. Here they are the server's."""


def restored(told: Told, now: Settings, models: Offer, loras: Offer) -> tuple[Settings, list[str]]:
    """The fields as a picture says, and a phrase for each thing that it says and that they cannot say.

    Args:
        told: what the picture's file says.
        now: the fields as they are; a model that is not offered leaves the present one.
        models, loras: what is offered.

    Raises:
        InputError: the picture names no prompt, or a value that cannot work.
    """
    said: dict[str, Any] = dict(told.settings)
    Recipe.from_json({"prompt": "none", **said}, "the picture")
    if not said.get("prompt"):
        raise InputError("the picture does not say what it was drawn from: it has no prompt")
    lost = list(told.dropped)
    found: dict[str, Any] = {"model": now.model}
    model = said.pop("model", EMBEDDED if told.record is not None else None)
    if model is not None:
        name = models.name(str(model))
        found["model"] = name or now.model
        lost += [] if name else [f"model {str(model).rpartition('/')[2]}, which is not offered here"]
    changes, more = _loras(said, loras)
    found, lost = found | changes, lost + more
    found["unet_options"] = "\n".join(said.pop("unet_option", ()))
    found["seed"] = str(said.pop("seed", 0))
    guidance = said.pop("guidance", None)
    found["guidance"] = "" if guidance is None else f"{guidance:g}"
    known = {field.name for field in fields(Settings)}
    for name, value in said.items():
        if name in known:
            found[name] = value
        elif name not in HERE:
            several = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lost.append(f"{name.replace('_', ' ')} {several}")
    if told.record is not None:  # all that it does not say was the model's own
        found = {"sampler": "", **found}
    return replace(Settings(), **found), lost


def _loras(said: dict[str, Any], loras: Offer) -> tuple[dict[str, Any], list[str]]:
    """The LoRAs of a picture's settings, which are taken out of them, as fields; and what cannot be said there."""
    named = parse_loras(said.pop("lora", ()), (), "LoRA")
    found: dict[str, Any] = {}
    lost: list[str] = []
    for source, strength in named:
        title = source.rpartition("/")[2]
        name, number = loras.name(source), len(found) // 2 + 1
        if name is None:
            lost.append(f"LoRA {title}, which is not offered here")
        elif number > LORAS:
            lost.append(f"LoRA {title}: there are fields for {LORAS}")
        else:
            found |= {f"lora_{number}": name, f"strength_{number}": strength.unet}
            if strength.text is not None and strength.text != strength.unet:
                lost.append(f"its own strength {strength.text:g} of LoRA {title} in text encoders")
    if blocks := said.pop("lora_blocks", ()):
        lost.append(f"strengths of LoRAs by block ({', '.join(blocks)})")
    return found, lost


def on_page(message: str) -> str:
    """A sentence of the command line in the words of the page: its options by the names of the fields."""
    return re.sub(r"--([a-z][a-z-]*[a-z])", lambda match: FLAGS.get(match[1], match[0]), message)


def plain(values: Mapping[str, Any]) -> str:
    """Settings in a line, as stands under a picture: "auto, 20 steps, guidance 5, seed 0"."""
    said = [values.get("sampler") or "the model's own sampler"]
    said += [f"grid {values['grid']}"] if values.get("grid") else []
    said += [f"{values.get('steps', 20)} steps"]
    said += [f"guidance {values['guidance']:g}"] if values.get("guidance") is not None else []
    said += [f"U-Net {values['unet']}"] if values.get("unet") else []
    said += [f"seed {values.get('seed', 0)}"]
    return " · ".join(str(each) for each in said)

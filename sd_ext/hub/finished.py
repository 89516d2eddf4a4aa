"""What a finished LoRA run left behind: `OUT/model/training.json` and the files beside it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownNameError

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
EMBEDDINGS_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # a file for each text encoder
SHEET = "samples/sheet.png"
CURVE = "validation.png"
FAMILIES = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
FILE_NAME = re.compile(r"""\w[^/\\:<>"|?*`\x00-\x1f]{0,99}""")  # also within <lora:NAME:1> and a Markdown table


@dataclass(frozen=True)
class FinishedRun:
    """The facts of a finished run.

    Args:
        folder: where its files lie.
        name: what the user calls the LoRA; the kohya file is `NAME_kohya.safetensors`.
        base_model: Hub id or local path, as the user gave it.
        family: a key of `FAMILIES`.
        steps: optimizer steps.
        pictures: how many pictures it was trained on.
        instance_prompt: the words that call what was learned, or "".
        prompts, seeds: those of `samples/0000.png`, `samples/0001.png`, ...
        guidance: the guidance scale of these samples; None is the pipeline's own.
        settings: every setting that changes the result.
        validation: (step, loss) pairs.
        tokens: the new tokens of textual inversion.
        sd_ext: the version that trained it.
    """

    folder: Path
    name: str
    base_model: str
    family: str
    steps: int
    pictures: int
    instance_prompt: str = ""
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    guidance: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    validation: tuple[tuple[int, float], ...] = ()
    tokens: tuple[str, ...] = ()
    sd_ext: str = ""

    @property
    def kohya_file(self) -> str:
        """The name of the file for AUTOMATIC1111 and ComfyUI."""
        return f"{self.name}_kohya.safetensors"

    @property
    def weights(self) -> list[str]:
        """The names of the LoRA's files: both formats, or kohya's alone for what Diffusers cannot read (LoHa, LoKr)."""
        return [name for name in (DIFFUSERS_FILE, self.kohya_file) if (self.folder / name).is_file()]

    @property
    def in_diffusers(self) -> bool:
        """Whether there is a file that Diffusers' loader reads."""
        return DIFFUSERS_FILE in self.weights

    @property
    def embeddings(self) -> list[str]:
        """The names of the files with new tokens, in the order of the text encoders."""
        return [name for name in EMBEDDINGS_FILES if (self.folder / name).is_file()]

    @property
    def samples(self) -> list[str]:
        """The names of the sample pictures, in order, the contact sheet not among them."""
        found = [p.name for p in (self.folder / "samples").glob("*.png") if re.fullmatch(r"\d{4,}", p.stem)]
        return [f"samples/{name}" for name in sorted(found, key=lambda name: int(name[:-4]))]

    def has(self, name: str) -> bool:
        """Whether a picture called `name` lies in the folder."""
        return (self.folder / name).is_file()


def read_finished(folder: str | Path) -> FinishedRun:
    """Read the run in `folder`, which is its output or the `model` folder in it.

    Raises:
        InputError: no finished run there, or its training.json or weights are not what a run writes.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"no such folder: {folder}")
    root = root / "model" if (root / "model" / "training.json").is_file() else root
    where = root / "training.json"
    if not where.is_file():
        raise InputError(f"{root} holds no training.json; give the output folder of a LoRA run that has finished")
    try:
        facts = json.loads(where.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise InputError(f"{where} is not a JSON object")
    run = FinishedRun(folder=root, **_checked(facts, where))
    if run.kohya_file not in run.weights:
        raise InputError(f"{root} holds no {run.kohya_file}; give the output folder of a LoRA run that has finished")
    if run.tokens and not run.embeddings:
        raise InputError(f"{root} holds no {EMBEDDINGS_FILES[0]}, but training.json names new tokens")
    return run


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(check: Any) -> Any:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_int(value[0]) and isinstance(value[1], (int, float))


REQUIRED = ("name", "base_model", "family", "steps", "pictures")
CHECKS = {
    "name": (lambda v: _is_text(v) and FILE_NAME.fullmatch(v), "a plain file name that starts with a letter or digit"),
    "base_model": (lambda v: _is_text(v) and v.strip(), "a Hub id or a folder"),
    "family": (_is_text, "one of " + ", ".join(FAMILIES)),
    "steps": (lambda v: _is_int(v) and v >= 0, "a whole number"),
    "pictures": (lambda v: _is_int(v) and v >= 0, "a whole number"),
    "instance_prompt": (_is_text, "text"),
    "prompts": (_list_of(_is_text), "a list of texts"),
    "seeds": (_list_of(_is_int), "a list of whole numbers"),
    "guidance": (_is_number, "a number"),
    "settings": (lambda v: isinstance(v, dict), "an object"),
    "validation": (_list_of(_is_point), "a list of [step, loss]"),
    "tokens": (_list_of(_is_text), "a list of texts"),
    "sd_ext": (_is_text, "a version"),
}


def _checked(facts: dict[str, Any], where: Path) -> dict[str, Any]:
    """The known keys of `facts` whose value is not null, checked; lists become tuples. Raises `InputError`."""
    if missing := [key for key in REQUIRED if facts.get(key) is None]:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    known = {key: facts[key] for key in CHECKS if facts.get(key) is not None}
    for key, value in known.items():
        check, wanted = CHECKS[key]
        if not check(value):
            raise InputError(f"{where}: {key} should be {wanted}, not {value!r:.80}")
    if known["family"] not in FAMILIES:
        raise UnknownNameError("family", known["family"], FAMILIES)
    points = [(step, loss) for step, loss in known.pop("validation", []) if math.isfinite(loss)]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()} | {"validation": tuple(points)}

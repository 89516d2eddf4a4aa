"""What a finished LoRA run left behind: `OUT/model/training.json` and the files beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..declared import Measured, make, shown
from ..errors import InputError, UnknownNameError
from ..lora.formats.file_names import DIFFUSERS_FILE, kohya_file
from ..models import FAMILIES
from ..reading import read_json

EMBEDDINGS_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # a file for each text encoder
SHEET = "samples/sheet.png"
CURVE = "validation.png"
FILE_NAME = re.compile(r"""\w[^/\\:<>"|?*`\x00-\x1f]{0,99}""")  # also within <lora:NAME:1> and a Markdown table


@dataclass(frozen=True)
class Facts:
    """What `training.json` holds: the run writes one, and whoever reads the file reads it as one.

    Args:
        name: what the user calls the LoRA; the kohya file is `NAME_kohya.safetensors`.
        base_model: Hub id or local path, as the user gave it.
        family: a key of `FAMILIES`.
        steps: optimizer steps.
        pictures: how many pictures it was trained on.
        instance_prompt: the words that call what was learned, or "".
        prompts, seeds: those of `samples/0000.png`, `samples/0001.png`, ...
        guidance: the guidance scale of these samples; None is the pipeline's own.
        settings: every setting that changes the result.
        validation: (step, loss) pairs; those whose loss is not finite are left out.
        tokens: the new tokens of textual inversion.
        sd_ext: the version that trained it.

    Raises:
        InputError: a value that no run has; names it.
    """

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
    validation: tuple[tuple[int, Measured], ...] = ()
    tokens: tuple[str, ...] = ()
    sd_ext: str = ""

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("name", FILE_NAME.fullmatch(self.name), "a plain file name that starts with a letter or digit"),
            ("base_model", self.base_model.strip(), "a Hub id or a folder"),
            ("steps", self.steps >= 0, "0 or more"),
            ("pictures", self.pictures >= 0, "0 or more"),
        ):
            if not fine:
                raise InputError(f"{name} must be {wanted}, got {shown(getattr(self, name))}")
        if self.family not in FAMILIES:
            raise UnknownNameError("family", self.family, FAMILIES)
        points = tuple((step, loss) for step, loss in self.validation if math.isfinite(loss))
        object.__setattr__(self, "validation", points)


@dataclass(frozen=True)
class FinishedRun(Facts):
    """The facts of a finished run, and the folder where its files lie."""

    folder: Path = field(kw_only=True)

    @property
    def kohya_file(self) -> str:
        """The name of the file for AUTOMATIC1111 and ComfyUI."""
        return kohya_file(self.name)

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
    facts = make(Facts, _stated(read_json(where, dict[str, Any], finite=False)), str(where))
    run = FinishedRun(folder=root, **vars(facts))
    if run.kohya_file not in run.weights:
        raise InputError(f"{root} holds no {run.kohya_file}; give the output folder of a LoRA run that has finished")
    if run.tokens and not run.embeddings:
        raise InputError(f"{root} holds no {EMBEDDINGS_FILES[0]}, but training.json names new tokens")
    return run


def _stated(facts: dict[str, Any]) -> dict[str, Any]:
    """What is not null."""
    return {key: value for key, value in facts.items() if value is not None}

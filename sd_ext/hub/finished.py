"""Read what a finished LoRA run has left: `OUT/model/training.json` and the files beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..declared import Measured, make, shown
from ..errors import InputError, UnknownNameError
from ..lora.formats.file_names import DIFFUSERS_FILE, comfyui_file, kohya_file
from ..models import FAMILIES
from ..reading import read_json

EMBEDDINGS_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # one for each text encoder
SHEET = "samples/sheet.png"
CURVE = "validation.png"
FILE_NAME = re.compile(r"""\w[^/\\:<>"|?*`\x00-\x1f]{0,99}""")  # must also fit <lora:NAME:1> and a Markdown table


@dataclass(frozen=True)
class Facts:
    """The contents of `training.json`.

    The training run writes it from this class, and `read_finished` reads it into it.

    Args:
        name: the LoRA's name; its kohya file is `NAME_kohya.safetensors`.
        base_model: Hub id or local path, as the user gave it.
        family: a key of `FAMILIES`.
        steps: number of optimizer steps.
        pictures: number of training pictures.
        instance_prompt: the words that stand for what was learned, or "".
        prompts, seeds: those of the sample pictures `samples/0000.png`, `samples/0001.png`, ...
        guidance: the guidance scale of the first sample; None is the pipeline's default.
        drawn: how each was drawn: prompt, negative, seed, height, width, guidance, steps.
        settings: every setting that influences the result.
        validation: (step, loss) pairs; pairs whose loss is not finite are dropped.
        tokens: the new tokens of textual inversion.
        sd_ext: the version of sd_ext that trained it.

    Raises:
        InputError: a value that no run can have; the message names it.
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
    drawn: tuple[dict[str, Any], ...] = ()
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
    """The facts of a finished run, and the folder that holds its files."""

    folder: Path = field(kw_only=True)

    @property
    def kohya_file(self) -> str:
        """The name of the LoRA file in kohya's format, for AUTOMATIC1111 and ComfyUI."""
        return kohya_file(self.name)

    @property
    def weights(self) -> list[str]:
        """The names of the LoRA files that exist: both formats, or only kohya's if Diffusers cannot read it.

        Of a DoRA also the plain LoRA for ComfyUI.
        """
        names = DIFFUSERS_FILE, self.kohya_file, self.comfyui_file
        return [name for name in names if (self.folder / name).is_file()]

    @property
    def comfyui_file(self) -> str:
        """The name of a DoRA's plain version for ComfyUI."""
        return comfyui_file(self.name)

    @property
    def in_diffusers(self) -> bool:
        """Whether the LoRA exists in Diffusers' format."""
        return DIFFUSERS_FILE in self.weights

    @property
    def embeddings(self) -> list[str]:
        """The names of the files that hold new tokens, in the order of the text encoders."""
        return [name for name in EMBEDDINGS_FILES if (self.folder / name).is_file()]

    @property
    def samples(self) -> list[str]:
        """The names of the sample pictures in order, without the contact sheet."""
        found = [p.name for p in (self.folder / "samples").glob("*.png") if re.fullmatch(r"\d{4,}", p.stem)]
        return [f"samples/{name}" for name in sorted(found, key=lambda name: int(name[:-4]))]

    def has(self, name: str) -> bool:
        """Whether the folder contains a file called `name`."""
        return (self.folder / name).is_file()


def read_finished(folder: str | Path) -> FinishedRun:
    """Read a finished run.

    Args:
        folder: the run's output folder, or the `model` folder in it.

    Raises:
        InputError: there is no finished run, or its training.json or weight files are not what a run writes.
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
    """Drop entries that are null, so that their defaults apply."""
    return {key: value for key, value in facts.items() if value is not None}

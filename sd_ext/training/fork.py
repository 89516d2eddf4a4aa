"""Branches of a run: from one of its checkpoints on with several values of one setting, one after another, compared.

    OUT/learning_rate-1e-4   OUT/learning_rate-5e-5   ...   the branches, each a run like any other (`--from RUN@STEP`)
    OUT/sheet.png                                           what they draw of the same prompts from the same noise
    OUT/curves.png                                          their losses

The same command resumes, and skips branches that are complete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from PIL import Image

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.reading import read_json
from sd_ext.sheets import contact_sheet, labelled_sheet
from sd_ext.training.data.images import is_whole_png
from sd_ext.training.from_scratch import Stage, run_stage
from sd_ext.training.run.history import read_history
from sd_ext.training.run.parent import parent_of
from sd_ext.training.run.point import RECORD, find_point
from sd_ext.training.scripts import SCRIPTS
from sd_ext.training.settings.command import read_flags
from sd_ext.training.settings.config import every_setting
from sd_ext.training.settings.kept import SETTINGS, kept_settings
from sd_ext.training.settings.written import flag, read_value

OURS = ("out", "from_")


@dataclass(frozen=True)
class Branch:
    """One branch.

    Args:
        label: the value that is its own, as it was written.
        stage: its script and the arguments of that.
    """

    label: str
    stage: Stage

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.stage.result.parent


def branches_of(source: str, arguments: Sequence[str]) -> tuple[list[Branch], Path]:
    """The branches that a command line asks for; every setting of them is checked.

    Args:
        source: RUN or RUN@STEP.
        arguments: flags of the run's script; the one with several values, separated by commas, is what differs. `--out`
            is the folder of the branches, else RUN-fork-STEP.

    Returns:
        (branches, their folder).

    Raises:
        InputError: no such run or step; not exactly one flag has several values; or a value is not allowed.
    """
    point = find_point(source)
    name = str(point.record.get("run"))
    if name not in SCRIPTS:
        raise InputError(f"{point.run / RECORD} is of no script that is known ({name})")
    script, cls = SCRIPTS[name]
    flags, dry, file, path, overrides = read_flags(cls, arguments, "Branches of a run.", "sd-ext train fork RUN[@STEP]")
    if file or path or overrides or dry or "from_" in flags:
        raise InputError("settings are those of the run, and flags: leave out files, --from, --override and --dry-run")
    known = every_setting(cls)
    out = Path(flags.pop("out", f"{point.run}-fork-{point.step}"))
    if out.resolve() == point.run.resolve():
        raise InputError(f"--out {out} is the folder of the run itself; give the branches another")
    varied = [key for key, text in flags.items() if get_origin(known[key].kind) is not tuple and "," in text]
    if len(varied) != 1:
        raise InputError(
            f"{len(varied)} flags have several values; give one of them several, such as --learning-rate 1e-4,5e-5"
        )
    [key] = varied
    values = list(dict.fromkeys(each.strip() for each in flags.pop(key).split(",") if each.strip()))
    if len(values) < 2:
        raise InputError(f"{flag(key)} has one value only; give several, separated by commas")
    if "cache_dir" in known and (point.run / "cache").is_dir():
        flags.setdefault("cache_dir", str(point.run / "cache"))
    made: list[Branch] = []
    configs: list[Any] = []
    for value in values:
        folder = out / f"{key}-{re.sub(r'[^A-Za-z0-9.+-]', '_', value)}"
        own = {**flags, key: value, "from_": f"{point.run}@{point.step}", "out": str(folder)}
        given: dict[str, Any] = {n: read_value(known[n], text, flag(n)) for n, text in own.items()}
        configs.append(kept_settings(cls, point.run / SETTINGS, **given))
        words = [part for n, text in own.items() for part in (flag(n), text)]
        made.append(Branch(value, Stage(script, folder / "model", (str(point.run / SETTINGS), *words))))
    for config in configs:
        parent_of(config, name)  # whether there are steps left, and the checkpoint has its shapes
    return made, out


def fork(source: str, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Train branches of a run, and compare them. Arguments as for `branches_of`.

    Returns:
        (the folder, a line for each branch).

    Raises:
        InputError: see `branches_of`.
        TrainingError: a branch stopped; the same command goes on.
    """
    branches, out = branches_of(source, arguments)
    for branch in branches:
        if branch.stage.status != "complete":
            print(f"branch {branch.label}: {branch.folder}", flush=True)
            run_stage(branch.stage)
    return out, compare(branches, out)


def compare(branches: Sequence[Branch], out: Path) -> list[str]:
    """Write the sheet and the curves of branches that are complete; returns a line for each with its losses."""
    if sheet := sheet_of(branches):
        with whole.file(out / "sheet.png") as new:
            sheet.save(new, "PNG")
    logs = {branch.label: read_history(branch.folder / "history.jsonl") for branch in branches}
    plot(logs, out / "curves.png")
    return [f"{label}: {losses(entries)}" for label, entries in logs.items()]


def sheet_of(branches: Sequence[Branch]) -> Image.Image | None:
    """A row of pictures for each branch: those of LoRAs by prompt, else the last previews; None if there are none."""
    rows = {branch.label: pictures_in(branch.folder / "model" / "samples", "[0-9]*.png") for branch in branches}
    if all(rows.values()):
        prompts = read_json(branches[0].folder / "model" / "training.json", dict[str, Any])["prompts"]
        return labelled_sheet(rows, [str(prompt) for prompt in prompts])
    last = [pictures_in(branch.folder / "previews", "step-*.png")[-1:] for branch in branches]
    if all(last):
        return contact_sheet([picture for (picture,) in last], 1, [branch.label for branch in branches])
    return None


def pictures_in(folder: Path, pattern: str) -> list[Image.Image]:
    """The whole pictures in a folder, by name."""
    return [Image.open(path).copy() for path in sorted(folder.glob(pattern)) if is_whole_png(path)]


def losses(entries: Sequence[dict[str, float]]) -> str:
    """What a log says at its end, and where the validation loss was least."""
    if not entries:
        return "no log"
    said = [f"loss {entries[-1]['loss']:.4g} at step {entries[-1]['step']}"]
    if measured := [entry for entry in entries if "validation_loss" in entry]:
        best = min(measured, key=lambda entry: entry["validation_loss"])
        said.append(f"validation loss {measured[-1]['validation_loss']:.4g}")
        said.append(f"least {best['validation_loss']:.4g} at step {best['step']}")
    return ", ".join(said)


def plot(logs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot the validation losses of branches, or without any their training losses. Nothing without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # the extra `train`
        return
    validated = all(any("validation_loss" in entry for entry in entries) for entries in logs.values())
    name = "validation_loss" if validated else "loss"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, entries in logs.items():
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        axes.plot([step for step, _ in points], [loss for _, loss in points], "o-" if validated else "-", label=label)
    axes.set(xlabel="optimizer steps", ylabel=name.replace("_", " "))
    axes.legend()
    with whole.file(path) as new:
        FigureCanvasAgg(figure).print_png(new)

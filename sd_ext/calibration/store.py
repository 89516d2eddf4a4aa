"""What a calibration has finished, in its folder, so that an interrupted one goes on.

    OUT/unfinished/settings.json       of what it is made; another calibration is refused
    OUT/unfinished/5-7.5.json          the fit for 5 calls at guidance 7.5, written when it is finished
    OUT/scheduler_config.json          the result; then `unfinished` is gone

A fit depends on the settings alone, so that a calibration that was interrupted ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import whole
from ..declared import make
from ..errors import InputError
from ..reading import read_json
from ..schedulers.calibrated import Fit
from .fit import Shape

RESULT, WORK, SETTINGS = "scheduler_config.json", "unfinished", "settings.json"


@dataclass(frozen=True)
class Finished:
    """A fit, and what comes with it.

    Args:
        fit: the fit.
        shape: its levels, which other strengths take.
        seconds: what it took.
        predictions: for one pair, that it took.
    """

    fit: Fit
    shape: Shape
    seconds: float
    predictions: int


@dataclass(frozen=True)
class _Saved:
    """What a finished fit is as JSON."""

    fit: Mapping[str, Any]
    grid: str
    lam: Sequence[float | None]
    told: Sequence[float]
    seconds: float
    predictions: int
    whole_calls: Sequence[int] | None = None


def check_free(out: Path) -> None:
    """Raise `InputError` where a calibration cannot begin or go on: a finished one, or something else, is there."""
    if (out / RESULT).exists():
        raise InputError(f"{out} holds a finished calibration; give another folder, or remove it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is no folder; a calibration is written into one")
    others = _names(out)
    stopped_at_once = others == [WORK] and (out / WORK).is_dir() and not _names(out / WORK)
    if others and not stopped_at_once and not (out / WORK / SETTINGS).exists():
        raise InputError(f"{out} holds {others[0]} and no calibration; give a new folder")


def _names(folder: Path) -> list[str]:
    """What is in a folder, without what an interrupted writer left; nothing where there is none."""
    return [path.name for path in folder.iterdir() if not whole.is_temporary(path.name)] if folder.is_dir() else []


class Store:
    """A calibration's folder.

    Args:
        out: the folder; None keeps nothing.
        settings: of what it is made, plain JSON.

    Raises:
        InputError: it holds another calibration, or something else.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, Any]):
        self.out = out
        if out is None:
            return
        whole.recovered(out)
        check_free(out)
        path = out / WORK / SETTINGS
        if not path.exists():
            whole.write_json(path, dict(settings))
            return
        before = read_json(path, dict[str, Any])
        if differing := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
            raise InputError(
                f"{out} holds an unfinished calibration of another {', another '.join(sorted(differing))}; give the "
                "same to go on, or another folder"
            )

    def path(self, calls: int, guidance: float) -> Path | None:
        return self.out and self.out / WORK / f"{calls}-{guidance:g}.json"

    def read(self, calls: int, guidance: float) -> Finished | None:
        """A finished fit; None if it is not.

        Raises:
            InputError: its file is damaged; remove it.
        """
        path = self.path(calls, guidance)
        if path is None or not path.exists():
            return None
        saved = make(_Saved, read_json(path, dict[str, Any]), str(path))
        lam = tuple(float("-inf") if each is None else each for each in saved.lam)
        whole_calls = None if saved.whole_calls is None else tuple(saved.whole_calls)
        shape = Shape(saved.grid, lam, tuple(saved.told), whole_calls)
        return Finished(Fit.from_config(saved.fit, str(path)), shape, saved.seconds, saved.predictions)

    def write(self, finished: Finished) -> None:
        """Keep a finished fit."""
        fit = finished.fit
        path = self.path(fit.calls, fit.guidance)
        if path is None:
            return
        shape = asdict(finished.shape)
        shape["lam"] = [None if each == float("-inf") else each for each in shape["lam"]]  # JSON has no infinity
        rest = {"seconds": finished.seconds, "predictions": finished.predictions}
        whole.write_json(path, {"fit": fit.to_config(), **shape, **rest})

    def clear(self) -> None:
        """The result is written: what was unfinished goes."""
        if self.out is not None:
            whole.remove(self.out / WORK)

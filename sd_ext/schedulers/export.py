"""A scheduler as a Diffusers component folder that needs no `sd_ext`: its tables, and one file that runs them.

    pipe.save_pretrained(folder)
    export(pipe.scheduler, folder / "scheduler")
    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)       # anywhere Diffusers is

The file is put together from the modules that run tables, see `assemble`; how the tables are written is told at its
top, which is that of `exported.py`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, SupportsInt

import numpy as np
import torch

from .. import whole
from ..board import BOARD
from ..errors import InputError
from ..model_configs import read_index
from .assemble import SOURCE
from .exported import MODULE, ExportedScheduler
from .prediction import PREDICTION_TYPES, Prediction
from .processes.reading import NAMES
from .run import P0, STASH, X
from .schedule import Levels, NoiseSchedule
from .table import Table

COUNTS = range(1, 51)
"""Numbers of network calls that are exported unless told otherwise: up to the default of Diffusers' pipelines."""


class RunsTables(Protocol):
    """What is asked of a scheduler to be exported; every `TableScheduler` has it."""

    config: Any
    schedule: NoiseSchedule

    @property
    def levels(self) -> Levels: ...
    @property
    def timesteps(self) -> torch.Tensor: ...
    @property
    def num_inference_steps(self) -> int | None: ...
    @property
    def init_noise_sigma(self) -> float | torch.Tensor: ...
    def set_timesteps(self, num_inference_steps: int) -> None: ...
    def announce(self, levels: Levels) -> None: ...
    def set_begin_index(self, begin_index: int) -> None: ...
    def table(self, begin_index: int = 0) -> Table: ...
    def companion(self, begin_index: int = 0) -> Table | None: ...
    def step(self, *args: Any, **kwargs: Any) -> Any: ...


def export(scheduler: RunsTables, folder: str | Path, num_inference_steps: int | Iterable[int] | None = COUNTS) -> Path:
    """Write the folder: `scheduler_config.json` with the tables, and `exported_scheduler.py`, which runs them.

    Where the folder is a component of a pipeline's folder, that is, the `model_index.json` beside it has an entry of
    its name, the entry is set to the exported class.

    Args:
        scheduler: what to export; it is left as it is.
        folder: where to, made if need be; files of these names are replaced.
        num_inference_steps: numbers of network calls to export. None exports just the run that `set_timesteps`
            announced, which may be one of timesteps or sigmas of your own.

    Returns:
        The folder.

    Raises:
        WriteError: the disk is full or fails; each file is as it was or whole.
        InputError: the scheduler does at run time what a table cannot say (see `exported`), a number of calls that it
            cannot make, no run announced, or a `model_index.json` that cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file; give a folder to export to")
    index_file = folder.absolute().parent / "model_index.json"
    index = read_index(index_file.parent) if index_file.is_file() else {}
    made = exported(scheduler, num_inference_steps)
    whole.write_bytes(folder / f"{MODULE}.py", SOURCE)
    whole.write_text(folder / made.config_name, made.to_json_string())
    if folder.absolute().name in index:
        index[folder.absolute().name] = [MODULE, ExportedScheduler.__name__]
        whole.write_json(index_file, index, indent=2)
    return folder


def exported(scheduler: RunsTables, num_inference_steps: int | Iterable[int] | None = COUNTS) -> ExportedScheduler:
    """The scheduler that a folder written by `export` holds; arguments and errors as there.

    A pipeline with it is saved, and pushed to the Hub, as one that needs no `sd_ext`.

    A scheduler whose steps are more than its tables can say so by an attribute `not_exportable`, a sentence with the
    reason. Those that do not are found out: some runs are made both ways, and must come out the same to the bit.
    """
    config = scheduler.config
    reason = getattr(scheduler, "not_exportable", None)
    if config.get("noise_type", "gaussian") != "gaussian":
        reason = f"noise_type {config['noise_type']!r} is not in the exported file"
    if reason:
        raise InputError(f"{type(scheduler).__name__} cannot be exported: {reason}")
    if config.get("use_dynamic_shifting") and num_inference_steps is not None:
        raise InputError(
            f"{type(scheduler).__name__} shifts by resolution: announce a run with its mu and export just that, with "
            "num_inference_steps=None"
        )
    twin = quiet(scheduler)
    start = twin.init_noise_sigma
    runs, counts = {}, counts_of(num_inference_steps)
    if counts is None:
        if scheduler.num_inference_steps is None:
            raise InputError("num_inference_steps=None exports the announced run: call set_timesteps() first")
        twin.announce(scheduler.levels)
        runs[str(len(scheduler.timesteps))] = _run(twin) | _asked(scheduler)
    for count in sorted(set(counts or ())):
        twin.set_timesteps(count)
        runs[str(count)] = _run(twin)
    if not runs:
        raise InputError("num_inference_steps names no number of calls to export")
    result = ExportedScheduler(
        runs=runs,
        trained=_trained(scheduler.schedule),
        eta=config.get("eta", 0.0) if "eta" in inspect.signature(scheduler.step).parameters else None,
        exported_from=f"{type(scheduler).__module__}.{type(scheduler).__name__}",
        init_noise_sigma=float(start),
        **{key: config[key] for key in _constructor_keys(ExportedScheduler) if key in config and key not in OWN},
    )
    result.register_to_config(**_known_to_diffusers(config, result.compatibles))
    _prove(twin, quiet(result), len(twin.timesteps))
    return result


def counts_of(num_inference_steps: Any) -> tuple[int, ...] | None:
    """The numbers of network calls to export: a number, or several; None for the run that was announced.

    Raises:
        InputError: something else.
    """
    if num_inference_steps is None:
        return None
    several = isinstance(num_inference_steps, Iterable) and not isinstance(num_inference_steps, str)
    counts: list[Any] = list(num_inference_steps) if several else [num_inference_steps]
    for n in counts:
        if isinstance(n, bool | str) or not isinstance(n, SupportsInt) or int(n) != n or int(n) < 1:
            raise InputError(f"num_inference_steps must be whole numbers from 1, or None, got {n!r}")
    return tuple(int(n) for n in counts)


def _asked(scheduler: Any) -> dict[str, Any]:
    """How pipelines of flow models ask for the announced run: by sigmas before the shift, and mu."""
    asked = getattr(scheduler, "asked", None)
    if asked is None:
        return {}
    said: dict[str, Any] = {} if asked.sigmas is None else {"sigmas": _short(asked.sigmas)}
    if asked.mu is not None:
        said["mu"] = float(asked.mu)
    return {"asked": said} if said else {}


def quiet(scheduler: Any) -> Any:
    """A copy, configured the same, without a run, that says nothing of the runs that are made to look at it."""
    twin = copy.copy(scheduler)
    vars(twin)["say_once"] = lambda message: None
    return twin


OWN = ("eta", "init_noise_sigma", "runs", "trained", "exported_from")
"""Arguments that do not come from the scheduler's config."""


def _trained(schedule: NoiseSchedule) -> dict[str, Any]:
    """The process, as `exported.py` reads it."""
    trained, told = schedule.trained, schedule.trained.told_at_training
    said: dict[str, Any] = {} if told is None else {"told": [v if math.isfinite(v) else None for v in told.tolist()]}
    if trained.sigma_data != 1:
        said["sigma_data"] = trained.sigma_data
    if schedule.prediction[1:] != Prediction()[1:] or schedule.prediction.kind not in PREDICTION_TYPES:
        said["prediction"] = list(schedule.prediction)
    return {"alpha": trained.alpha.tolist(), "sigma": trained.sigma.tolist(), "flow": trained.flow, **said}


def _constructor_keys(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}


def _known_to_diffusers(config: Mapping[str, Any], compatibles: Iterable[type]) -> dict[str, Any]:
    """The rest of the config that Diffusers' schedulers know: from it they, and ours, can be made in place of this."""
    known = set().union(*map(_constructor_keys, compatibles))
    known = (known | set(NAMES)) - _constructor_keys(ExportedScheduler)
    finite = {k: v for k, v in config.items() if not (isinstance(v, float) and not math.isfinite(v))}  # for JSON
    return {key: value for key, value in finite.items() if key in known}


def _run(scheduler: RunsTables) -> dict[str, Any]:
    """The announced run, as `exported.py` reads it."""
    levels, table = scheduler.levels, scheduler.table()
    n = table.calls
    whole_run = _stored(table)
    starts, late = {}, {}
    for begin in range(1, n):
        other = scheduler.table(begin)
        same_levels = all(
            np.array_equal(getattr(other.levels, name), getattr(table.levels, name)[begin:])
            for name in ("alpha", "sigma")
        )
        if (other.basis, other.fields, other.second) != (table.basis, table.fields, table.second) or not same_levels:
            late[str(begin)] = _stored(other)
            continue
        if other.fields > 1:
            other = _of_history(other, table.history)
        calls = enumerate(map(_call, other.rows), begin)
        own = {str(i): call for i, call in calls if call != whole_run["calls"][i]}
        if own:
            starts[str(begin)] = own
    companions = {str(b): _stored(other) for b in range(n) if (other := scheduler.companion(b)) is not None}
    parts = {"late": late, "companions": companions, "apart": getattr(levels, "apart", False)}
    return {
        **whole_run,
        "init_noise_sigma": float(scheduler.init_noise_sigma),
        "timesteps": _short(levels.t[:-1]),
        "sigmas": [value if math.isfinite(value) else None for value in _short(levels.ratio)],
        "starts": starts,
        **{name: part for name, part in parts.items() if part},
    }


def _stored(table: Table) -> dict[str, Any]:
    """A table as `exported.py` reads it."""
    return {
        "basis": table.basis,
        **({"fields": table.fields, "history": table.history, "second": table.second} if table.fields > 1 else {}),
        "alpha": _short(table.levels.alpha[:-1]),
        "sigma": _short(table.levels.sigma[:-1]),
        "calls": [_call(rows) for rows in table.rows],
    }


def _of_history(table: Table, history: int) -> Table:
    """The same table with room for so many predictions of each field."""
    rows = np.zeros((table.calls, 2, 3 + 2 * history))
    rows[:, :, :P0], rows[:, :, -1] = table.rows[:, :, :P0], table.rows[:, :, -1]
    for field in range(2):
        of = table.rows[:, :, P0 + field * table.history :][:, :, : min(history, table.history)]
        rows[:, :, P0 + field * history :][:, :, : of.shape[2]] = of
    return replace(table, rows=rows)


def _call(rows: np.ndarray) -> list[list[float]]:
    """One call's weights, `(2, 3 + history)`, in the file's order and without what it leaves out."""
    shown = []
    for row in rows:
        weights = _short(np.concatenate([row[[X, STASH, -1]], row[P0:-1]]))
        while weights and weights[-1] == 0:
            weights.pop()
        shown.append(weights)
    return shown if shown[1] else shown[:1]


def _short(values: np.ndarray) -> list[float]:
    """Floats that JSON keeps exactly, whole ones as integers."""
    return [int(v) if v.is_integer() and abs(v) < 2**53 else v for v in values.tolist()]


def _prove(scheduler: RunsTables, exported: ExportedScheduler, count: int) -> None:
    """Make a run both ways, from its first call and from the middle, and with a companion if there is one.

    Raises:
        InputError: the results differ, so steps of this scheduler are more than its tables.
    """
    exported.set_timesteps(count, mu=exported.config["runs"][str(count)].get("asked", {}).get("mu"))
    for begin, left in {(0, True), (count // 2, True), (0, scheduler.companion() is None)}:
        latents = []
        for one in (scheduler, exported):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(2, 4, 2, 2, generator=generator)
            one.set_begin_index(begin)
            for t in one.timesteps[begin:]:
                if left:
                    BOARD.write(t, x.sin(), alone=True)  # read by tables of two fields
                x = one.step(x.tanh(), t, x, generator=generator, return_dict=False)[0]
            latents.append(x)
        if not torch.equal(*latents):
            raise InputError(
                f"{type(scheduler).__name__} cannot be exported: its steps are not its tables' alone (run from call "
                f"{begin} of {count}, they give another latent)"
            )

"""The numbers of an exported sampler's config: that they are tables, and the tables they are."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ..board import HALVES, Half
from .prediction import PREDICTION_TYPES, Basis, Prediction
from .run import Rows

Weights = list[float]
"""The weights of one output of one call, as the file has them: of x, stash, noise, p0, p1, ..."""

STORED_STASH, STORED_HEAD = 1, 3
"""Where the stash's weight stands among them, and how many there are before the predictions'."""

MOST_CALLS = 4000
"""More calls than models have timesteps."""


def need(condition: bool, message: str) -> None:
    """Raise a ValueError about the config unless the condition holds."""
    if not condition:
        raise ValueError(f"scheduler_config.json: {message}")


def check_numbers(where: str, values: Any, length: int | None = None) -> None:
    """That `values` is a list of finite numbers, of this length if one is given."""
    size = "numbers" if length is None else f"{length} numbers"
    need(isinstance(values, (list, tuple)) and length in (None, len(values)), f"{where} must be a list of {size}")
    finite = all(type(v) in (int, float) and -1.7e308 < v < 1.7e308 for v in values)
    need(finite, f"{where} must hold finite numbers only")


def index(key: Any) -> int:
    """A whole number from its decimal digits; -1 if `key` is none."""
    return int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else -1


def check_run(key: str, run: Any, prediction_type: str) -> None:
    """That an announced run and the tables of all its starts can be used."""
    where, n = f"runs[{key}]", index(key)
    need(n > 0 and isinstance(run, dict) and isinstance(run.get("starts"), dict), f"{where} is not a run")
    need(n <= MOST_CALLS, f"{where}: more than {MOST_CALLS} calls")
    check_numbers(f"{where}.timesteps", run.get("timesteps"), n)
    check_asked(where, run.get("asked", {}), n)
    sigmas = run.get("sigmas")
    check_numbers(f"{where}.sigmas", [v or 0 for v in sigmas] if isinstance(sigmas, (list, tuple)) else None, n + 1)
    check_numbers(f"{where}.init_noise_sigma", [run.get("init_noise_sigma")])
    for name in ("late", "companions"):
        tables = run.get(name, {})
        need(isinstance(tables, dict), f"{where}.{name} must hold tables by the call they start at")
        for begin, table in tables.items():
            at = f"{where}.{name}[{begin}]"
            need(0 <= index(begin) < n and isinstance(table, dict), f"{at} is not a table of a start")
            need(name == "late" or table.get("fields", 1) == 1, f"{at}: a companion has one field")
            check_table(at, table, n - index(begin), prediction_type)
    check_table(where, run, n, prediction_type)


def check_asked(where: str, asked: Any, n: int) -> None:
    """How a run of a flow model is asked for, if that is another way than by its timesteps or sigmas."""
    need(isinstance(asked, dict), f"{where}.asked must be a dictionary")
    if "sigmas" in asked:
        check_numbers(f"{where}.asked.sigmas", asked["sigmas"], n)
    check_numbers(f"{where}.asked.mu", [asked.get("mu", 0)])


def check_table(where: str, run: dict[str, Any], n: int, prediction_type: str) -> None:
    """Shapes, finite numbers, and that no call reads what no earlier call made, wherever the run starts."""
    starts, late = run.get("starts", {}), run.get("late", {})
    need(run.get("basis") in ("x0", "eps"), f"{where}.basis must be 'x0' or 'eps'")
    need(run.get("fields", 1) in (1, 2), f"{where}.fields must be 1 or 2")
    need(run.get("second", HALVES[0]) in HALVES, f"{where}.second must be one of {HALVES}")
    need(index(str(run.get("history", 1))) > 0, f"{where}.history must be a whole number")
    for name in ("alpha", "sigma"):
        check_numbers(f"{where}.{name}", run.get(name), n)
    need(min(run["sigma"]) > 0, f"{where}.sigma must be positive")
    need(min(run["alpha"]) >= (prediction_type == "epsilon") * 1e-300, f"{where}.alpha is too small")
    need(isinstance(run.get("calls"), list) and len(run["calls"]) == n, f"{where}.calls must be a list of {n}")
    numbered = {str(i): call for i, call in enumerate(run["calls"])}
    own = [("0", numbered), *starts.items()]
    for begin, calls in own:
        need(isinstance(calls, dict), f"{where}.starts must hold calls by their index")
        for i, call in calls.items():
            at = f"{where}, call {i}"
            need(0 <= index(begin) <= index(i) < n, f"{at}: not a call of a run that starts at {begin}")
            need(isinstance(call, list) and len(call) in (1, 2), f"{at}: expected one or two lists")
            for weights in call:
                check_numbers(at, weights)
    every = [call for _, calls in own for call in calls.values()]
    history, stashed = history_of(run, every), any(len(call) == 2 for call in every)
    for begin in (b for b in range(n if "starts" in run else 1) if str(b) not in late):
        check_reads(where, run, begin, history, stashed)


def history_of(run: dict[str, Any], calls: list[list[Weights]]) -> int:
    """The most predictions of each field that a call reads, its own included."""
    longest = max(len(weights) for call in calls for weights in call) - STORED_HEAD
    if run.get("fields", 1) == 1:
        return max(1, longest)
    need(longest <= 2 * run["history"], f"a call weighs more predictions than the history of {run['history']} has")
    return run["history"]


def read_back(weights: Weights, history: int) -> int:
    """How many predictions of either field a row reads, this call's included."""
    return max((j % history + 1 for j, weight in enumerate(weights[STORED_HEAD:]) if weight), default=0)


def check_reads(where: str, run: dict[str, Any], begin: int, history: int, stashed: bool) -> None:
    """That the calls from `begin` on read no prediction and no stash from before.

    Args:
        history: the most predictions that a call reads.
        stashed: whether any call fills the stash.
    """
    filled = False
    for i in range(begin, len(run["calls"])):
        call, at = stored_call(run, begin, i), f"{where}, call {i}"
        furthest = max(read_back(weights, history) for weights in call)
        need(furthest <= 1 + i - begin, f"{at}: reads before the start at {begin}")
        reads = any(any(weights[STORED_STASH : STORED_STASH + 1]) for weights in call)
        need(filled or not reads, f"{at}: reads an empty stash")
        filled = filled or len(call) == 2
        if filled and i - begin >= history:
            return  # what later calls read has been made


def stored_call(run: dict[str, Any], begin: int, i: int) -> list[Weights]:
    """Call i of a run that starts at call `begin`."""
    return run.get("starts", {}).get(str(begin), {}).get(str(i), run["calls"][i])


def same(stored: list[float], given: list[float]) -> bool:
    """Whether two lists of numbers are the same to rounding."""
    return len(stored) == len(given) and all(map(partial(math.isclose, rel_tol=1e-5), stored, given))


class StoredTable:
    """The table of a run from one of its starts, as `Run` reads it."""

    def __init__(self, run: dict[str, Any], begin: int):
        if (late := run.get("late", {}).get(str(begin))) is not None:
            run, begin = late, 0
        calls = [stored_call(run, begin, i) for i in range(begin, len(run["calls"]))]
        self.basis: Basis = run["basis"]
        self.fields: int = run.get("fields", 1)
        self.second: Half = run.get("second", HALVES[0])
        self.history = history_of(run, calls)
        self._alpha, self._sigma = run["alpha"][begin:], run["sigma"][begin:]
        self._rows = [[self._row(weights) for weights in (*call, [])[:2]] for call in calls]

    def _row(self, weights: Weights) -> list[float]:
        """In the order of a table's row, with the zeros that the file leaves out."""
        x, stash, noise, *p = map(float, [*weights, *[0.0] * (STORED_HEAD + self.fields * self.history - len(weights))])
        return [x, stash, *p, noise]

    def numbers(self) -> tuple[list[float], list[float], Rows]:
        """alpha and sigma of every call, and the rows."""
        return self._alpha, self._sigma, self._rows


class StoredLevels:
    """The levels of a run, as it is announced."""

    def __init__(self, run: dict[str, Any]):
        self.run, self.alpha, self.sigma = run, run["alpha"], run["sigma"]
        self.t = [*run["timesteps"], 0.0]
        self.ratio = [math.inf if v is None else float(v) for v in run["sigmas"]]
        self.apart = bool(run.get("apart"))

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredLevels:
        return self  # nothing changes it


class StoredTraining:
    """The trained process; see `forward.Trained`."""

    def __init__(self, trained: dict[str, Any], prediction_type: str):
        self.alpha, self.sigma, self.flow = trained["alpha"], trained["sigma"], bool(trained.get("flow"))
        self.sigma_data: float = trained.get("sigma_data", 1.0)
        told = trained.get("told")
        self.told_at_training = None if told is None else [-math.inf if v is None else float(v) for v in told]
        self.prediction = Prediction(*trained.get("prediction", [prediction_type]))


def check_trained(trained: dict[str, Any], steps: int) -> None:
    """Lists of the right length, finite numbers, and a prediction that there is."""
    told = trained.get("told")
    listed = len(told) if isinstance(told, (list, tuple)) else steps + bool(trained.get("flow"))
    need(listed in (steps, steps + 1), f"trained.told must be a list of {steps} or {steps + 1} numbers")
    steps = listed
    for name in ("alpha", "sigma"):
        check_numbers(f"trained.{name}", trained.get(name), steps)
    if told is not None:
        check_numbers("trained.told", [v or 0 for v in told] if isinstance(told, (list, tuple)) else None, steps)
    data = trained.get("sigma_data", 1.0)
    check_numbers("trained.sigma_data", [data])
    need(data > 0, "trained.sigma_data must be positive")
    prediction = trained.get("prediction", ["epsilon"])
    kinds = (*PREDICTION_TYPES, "consistency")
    known = isinstance(prediction, (list, tuple)) and prediction[:1] and prediction[0] in kinds
    need(bool(known), "trained.prediction is unknown")
    check_numbers("trained.prediction", list(prediction[1:]))
    need(len(prediction) <= len(Prediction()), "trained.prediction has too many numbers")

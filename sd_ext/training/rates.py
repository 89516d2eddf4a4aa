"""Finds a learning rate: a few hundred steps at each of several, from one start, compared.

    OUT/learning_rate-1e-4   ...    the branches, each a run like any other
    OUT/sheet.png  OUT/curves.png   what they draw of the same prompts from the same noise, and their losses
    OUT/rates.json                  what was measured, and what is recommended

All draws of a step depend on (seed, step, place) only, so that branches see the same pictures with the same noise at
the same timesteps, and their losses differ by the rate alone. The rate is constant and without warm-up meanwhile.

Where pictures are held out, the rate with the least validation loss (mean of the later half) is recommended. Without,
it is the lowest rate whose training losses of the later half are, step by step, no further above the best's than twice
the standard error of the differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sd_ext import whole
from sd_ext.errors import InputError, TrainingError
from sd_ext.training.fork import SCRIPTS, Branch, branches_of, compare
from sd_ext.training.from_scratch import Stage, run_stage
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.run.early import LOSS
from sd_ext.training.run.history import read_history
from sd_ext.training.run.point import find_point, is_run, split
from sd_ext.training.settings.command import parse, read_flags
from sd_ext.training.settings.kept import SETTINGS, kept_settings
from sd_ext.training.settings.written import converted, flag

AROUND = (0.1, 0.3, 1.0, 3.0, 10.0)  # shares of the rate of the settings that are tried
STEPS = 200
VALIDATIONS = 4
PROGRAM = "sd-ext train rates RUN[@STEP]|CONFIG.toml"


@dataclass(frozen=True)
class Measured:
    """What a branch has come to.

    Args:
        rate: the learning rate, as it was written.
        loss: the mean loss of the later half of its log: validation loss if there is any, else training loss.
        steps: steps of its own that it did.
        stopped: whether it came to no end, such as by a loss that is not finite.
    """

    rate: str
    loss: float
    steps: int
    stopped: bool = False


def branches(source: str, arguments: Sequence[str]) -> tuple[list[Branch], Path, int]:
    """The branches to train; every setting of them is checked.

    Args:
        source: RUN or RUN@STEP; or a file or preset with the settings of a LoRA, which starts at step 0.
        arguments: flags of the run's script; `--learning-rate` has several values, or is left out for `AROUND`;
            `--steps` is how many each does, else `STEPS`.

    Returns:
        (branches, their folder, step of their start).

    Raises:
        InputError: no such run, a setting that is not allowed, or an optimizer that finds its rate itself.
    """
    run = is_run(split(source)[0])
    point = find_point(source) if run else None
    name = str(point.record.get("run")) if point else "lora"
    if name not in SCRIPTS:
        raise InputError(f"{source} is a run of no script that is known ({name})")
    script, cls = SCRIPTS[name]
    flags, dry, file, path, overrides = read_flags(cls, arguments, "A learning rate.", PROGRAM)
    if file or path or overrides or dry or "from_" in flags:
        raise InputError("settings are those of the start, and flags: leave out further files, --from and --dry-run")
    rates, own = flags.pop("learning_rate", ""), {n: text for n, text in flags.items() if n not in ("steps", "out")}
    given = converted(cls, own, "command line")
    config: Any = kept_settings(cls, point.run / SETTINGS, **given) if point else with_flags(source, own)
    if config.optimizer.preset.one_rate:
        raise InputError(f"{config.optimizer.optimizer} finds its learning rate itself: there is none to find")
    start = point.step if point else 0
    steps = converted(cls, {"steps": flags.get("steps", str(STEPS))}, "command line")["steps"]
    rates = rates or ",".join(f"{config.rate.learning_rate * share:.3g}" for share in AROUND)
    arranged = {**arrangement(config, start, steps), **own, "steps": str(start + steps), "learning_rate": rates}
    out = Path(flags.get("out", f"{point.run}-rates-{start}" if point else "rates"))
    words = [part for n, text in {**arranged, "out": str(out)}.items() for part in (flag(n), text)]
    if point:
        return *branches_of(source, words), start
    values = list(dict.fromkeys(each.strip() for each in rates.split(",") if each.strip()))
    if len(values) < 2:
        raise InputError("--learning-rate has one value only; give several, separated by commas")
    made = []
    for value in values:
        folder = out / f"learning_rate-{value}"
        text = {"cache_dir": str(out / "cache"), **arranged, "learning_rate": value, "out": str(folder)}
        words = [part for n, each in text.items() for part in (flag(n), each)]
        parse(cls, [source, *words], "")
        made.append(Branch(value, Stage(script, folder / "model", (source, *words))))
    return made, out, start


def with_flags(source: str, flags: Mapping[str, str]) -> LoraConfig:
    """The settings of a file or a preset, with flags."""
    return parse(LoraConfig, [source, *(part for n, text in flags.items() for part in (flag(n), text))], "")[0]


def arrangement(config: Any, start: int, steps: int) -> dict[str, str]:
    """The settings that make runs of `steps` steps from `start` on comparable and short, as flags."""
    held_out = getattr(config, "held_out", None)
    each = steps if held_out is None or not held_out.any else max(1, steps // VALIDATIONS)
    made = {"lr_schedule": "constant", "warmup": "0", "log_every": "1", "validate_every": str(each),
            "checkpoint_every": str(start + steps), "keep": "1", "save_every": "0", "tracker": "none"}  # fmt: skip
    quiet = {"patience": "0", "min_improvement": "0"} if hasattr(config, "stop") else {}
    cache = {"cache_dir": config.cache.cache_dir} if hasattr(config, "cache") and config.cache.cache_dir else {}
    return {**made, **quiet, **cache}


def find(source: str, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Train the branches, compare them, and recommend a rate. Arguments as for `branches`.

    Returns:
        (the folder, a line for each branch and the recommendation).

    Raises:
        InputError: see `branches`.
        TrainingError: no branch came to its end.
    """
    some, out, start = branches(source, arguments)
    stopped = set()
    for branch in some:
        if branch.stage.status == "complete":
            continue
        print(f"learning rate {branch.label}: {branch.folder}", flush=True)
        try:
            run_stage(branch.stage)
        except TrainingError:
            stopped.add(branch.label)
    done = [branch for branch in some if branch.label not in stopped]
    if not done:
        raise TrainingError("no learning rate came to its end; the reasons are above")
    lines = compare(done, out)
    logs = {branch.label: own_log(branch, start) for branch in some}
    validated = all(any(LOSS in entry for entry in logs[branch.label]) for branch in done)
    found = [measured(label, log, label in stopped, LOSS if validated else "loss") for label, log in logs.items()]
    chosen, why = recommend(found, {} if validated else {label: losses(log) for label, log in logs.items()})
    told = {"source": source, "validated": validated, "measured": [asdict(each) for each in found]}
    whole.write_json(out / "rates.json", {**told, "recommended": float(chosen), "why": why})
    lines += [f"{each.rate}: stopped after {each.steps} steps; the reason is above" for each in found if each.stopped]
    return out, [*lines, f"recommended: --learning-rate {chosen} ({why})"]


def own_log(branch: Branch, start: int) -> list[dict[str, float]]:
    """The entries of a branch's log after the start."""
    return [entry for entry in read_history(branch.folder / "history.jsonl") if entry["step"] > start]


def later(values: Sequence[float]) -> Sequence[float]:
    """The later half."""
    return values[len(values) // 2 :]


def losses(log: Sequence[Mapping[str, float]], name: str = "loss") -> list[float]:
    """One kind of loss, in the order of the log."""
    return [entry[name] for entry in log if name in entry]


def measured(rate: str, log: Sequence[Mapping[str, float]], stopped: bool, name: str) -> Measured:
    """What a branch has come to; the loss of one that stopped is infinite."""
    values = later(losses(log, name))
    loss = statistics.fmean(values) if values and not stopped else math.inf
    return Measured(rate, loss, len(log), stopped)


def recommend(found: Sequence[Measured], each_step: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """The rate to take, and why.

    Args:
        found: what the branches have come to.
        each_step: rate -> training losses by step, to tell differences from chance; empty if losses are validation's.
    """
    able = sorted((each for each in found if not each.stopped), key=lambda each: float(each.rate))
    best = min(able, key=lambda each: each.loss)
    chosen, kind = best, "training loss" if each_step else "validation loss"
    for each in able:
        if each_step and float(each.rate) < float(best.rate) and alike(each_step[each.rate], each_step[best.rate]):
            chosen = each
            break
    why = f"least {kind}, {best.loss:.4g}"
    if chosen is not best:
        why = f"the lowest that differs from {best.rate}, of least {kind}, by chance only"
    tried = sorted(float(each.rate) for each in found)
    if float(chosen.rate) == tried[0]:
        why += "; it is the lowest that was tried: try lower ones too"
    elif float(chosen.rate) == tried[-1]:
        why += "; it is the highest that was tried: try higher ones too"
    return chosen.rate, why


def alike(one: Sequence[float], best: Sequence[float]) -> bool:
    """Whether losses of the same steps are above the best's by no more than twice the standard error, in the mean."""
    differences = [a - b for a, b in zip(later(one), later(best), strict=True)]
    if len(differences) < 2:
        return False
    return statistics.fmean(differences) <= 2 * statistics.stdev(differences) / math.sqrt(len(differences))

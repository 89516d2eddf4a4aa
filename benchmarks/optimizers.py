"""Does every optimizer preset train at its own default rate?

    python benchmarks/optimizers.py [--steps 200] [--only NAME ...]

Trains the preset `embedded` of `sd-ext train lora` (a LoRA of the embedded model, drawings in a style it has not seen)
with each optimizer and no learning rate named: the loss on pictures that are held out, before and after, the loss of
the last quarter of the steps beside the first, and what a step takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _report import write

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.optimizer.names import PRESETS
from sd_ext.training.run.history import read_history
from sd_ext.training.settings.command import parse
from sd_ext.training.train_lora import run


def trained(name: str, steps: int, work: Path, *more: str) -> tuple[list[dict[str, Any]], float, float]:
    """(log of a run, its learning rate, its seconds)."""
    out = work / f"{name}-{steps}"
    config, _ = parse(
        LoraConfig,
        ["embedded", "--data", "high-contrast", "--out", str(out), "--cache-dir", str(work / "cache"),
         "--optimizer", name, "--steps", str(steps), "--validation-share", "0.15", "--validation-times", "8",
         "--validate-every", str(steps), "--prompts", "cat", "--preview-steps", "1", "--log-every", "1",
         "--tracker", "none", "--checkpoint-every", str(steps), *more],
        "",
    )  # fmt: skip
    started = time.perf_counter()
    run(config)
    return read_history(out / "history.jsonl"), config.rate.learning_rate, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=PRESETS, default=list(PRESETS))
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        still = trained("sgd", 1, work, "--learning-rate", "1e-12")[0][-1]["validation_loss"]
        for name in given.only:
            if not find_spec(PRESETS[name].path.split(".")[0]):
                found[name] = f"left out: {PRESETS[name].package} is not installed"
                continue
            log, rate, seconds = trained(name, given.steps, work)
            losses, part = [entry["loss"] for entry in log], max(1, given.steps // 4)
            found[name] = {
                "rate": rate, "before": still, "after": log[-1]["validation_loss"],
                "first": statistics.mean(losses[:part]), "last": statistics.mean(losses[-part:]), "seconds": seconds,
            }  # fmt: skip
            print(name, found[name], flush=True)
    lines = [
        "| optimizer | learning rate | held out, before | after | first quarter | last | s a step |",
        "|---" * 7 + "|",
    ]
    for name, row in found.items():
        if isinstance(row, str):
            lines.append(f"| {name} | {row} | | | | | |")
            continue
        lines.append(
            f"| {name} | {row['rate']:g} | {row['before']:.4f} | {row['after']:.4f} | {row['first']:.4f} "
            f"| {row['last']:.4f} | {row['seconds'] / given.steps:.2f} |"
        )
    about = f"{given.steps} steps of the preset `embedded`; seconds are of the whole run, without imports."
    text = "\n".join(["# Optimizers at their own default rates", "", about, "", *lines])
    write("optimizers", {"steps": given.steps, "optimizers": found}, text)


if __name__ == "__main__":
    main()

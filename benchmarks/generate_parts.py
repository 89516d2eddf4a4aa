"""Where does the time of `sd-ext generate "red apple"` go?

    python benchmarks/generate_parts.py [--runs 5] [--model FOLDER] [--name generate_parts]

Each run is a fresh process that runs the real command with clocks around its parts; each part's median is reported.
import: torch, Diffusers, Transformers and the classes the model names. load: reading the weights. sample: text
encoder and every step. decode: the autoencoder's decoder. rest: starting Python, checks, writing the PNG, ending.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _report import write

PARTS = ("import", "load", "sample", "decode", "rest")
PROMPT = "red apple"


def run_once(model: str | None, out: str) -> dict[str, float]:
    """In a fresh process: run the command and return the seconds of its parts, without the rest."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    seconds: Counter[str] = Counter()

    def timed(part: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def clocked(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part] += time.perf_counter() - started

        return clocked

    from sd_ext.cli import main, prepare
    from sd_ext.cli.silence import silence_torch
    from sd_ext.endings import collect_seldom
    from sd_ext.models import EMBEDDED, Folder, find_model

    found = find_model(model or EMBEDDED)
    if not isinstance(found, Folder):
        sys.exit("give a pipeline folder")
    collect_seldom()  # as the command does, and before what it imports
    timed("import", silence_torch)()
    from sd_ext.seams.less import import_less

    import_less()
    timed("import", import_what_it_names)(found.root)

    load = timed("load", prepare.load_pipeline)

    def load_and_clock(*arguments: Any) -> Any:
        pipe = load(*arguments)
        pipe.vae.decode = timed("decode", pipe.vae.decode)
        type(pipe).__call__ = timed("sample", type(pipe).__call__)
        return pipe

    prepare.load_pipeline = load_and_clock
    code = main(["generate", PROMPT, "--device", "cpu", "--out", out, *(["--model", model] if model else [])])
    if code:
        sys.exit(code)
    seconds["sample"] -= seconds["decode"]  # the pipeline decodes before it returns

    return dict(seconds)


def import_what_it_names(folder: Path) -> None:
    """Import every library and class that a pipeline's model_index.json names, and the samplers."""
    import diffusers

    import sd_ext.schedulers  # noqa: F401

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    getattr(diffusers, index["_class_name"])
    for spec in index.values():
        if isinstance(spec, list) and all(spec):
            getattr(importlib.import_module(spec[0]), spec[1], None)


def measure(model: str | None, runs: int) -> dict[str, Any]:
    """The median seconds of each part and of the whole over `runs` fresh processes."""
    command = [sys.executable, __file__, *(["--model", model] if model else [])]
    all_seconds = []
    for _ in range(runs + 1):  # the first fills the disk's cache and does not count
        with tempfile.TemporaryDirectory() as out:
            started = time.perf_counter()
            child = subprocess.run([*command, "--once", out], stdout=subprocess.PIPE, text=True, check=True)
            total = time.perf_counter() - started
        seconds = json.loads(child.stdout.splitlines()[-1])
        all_seconds.append({**seconds, "rest": total - sum(seconds.values()), "total": total})
    median = {part: statistics.median(run[part] for run in all_seconds[1:]) for part in (*PARTS, "total")}
    return {
        "question": __doc__.splitlines()[0],
        "command": f'sd-ext generate "{PROMPT}"' + (f" --model {model}" if model else ""),
        "median_seconds": {part: round(value, 3) for part, value in median.items()},
        "runs": [{part: round(value, 3) for part, value in run.items()} for run in all_seconds[1:]],
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    median = result["median_seconds"]
    rows = [f"| {part} | {median[part]:.2f} | {median[part] / median['total']:.0%} |" for part in (*PARTS, "total")]
    head = f"`{result['command']}`, median of {len(result['runs'])} fresh processes:"
    return "\n".join([head, "", "| part | seconds | share |", "|---|---:|---:|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", help="a pipeline folder; the embedded model unless given")
    parser.add_argument("--name", default="generate_parts", help="of the files in results/")
    parser.add_argument("--once", metavar="FOLDER", help=argparse.SUPPRESS)  # one run, its picture into FOLDER
    options = parser.parse_args()
    if options.once:
        print(json.dumps(run_once(options.model, options.once)))
        return
    result = measure(options.model, options.runs)
    write(options.name, result, table(result))


if __name__ == "__main__":
    main()

"""How long does the page of `sd-ext ui` take to be there, and what becomes of twenty visitors who press Draw at once?

    python benchmarks/ui.py [--visitors 20] [--steps 8] [--runs 3] [--name ui]

Each run is a fresh process. page: from its start until the page answers. first picture: from its start until a visitor
who pressed Draw at once has the picture; the model is loaded meanwhile. Then all visitors press Draw at once, each with
a seed of their own, as browsers do it: by the queue's own requests. Wait is from the press to the picture. While they
wait, the page is asked for again and again, as newcomers do; and one more visitor than the queue holds is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from _report import write

from sd_ext.ui.settings import Settings

PROMPT = "a red cat on a blue background"
FULL = "Queue is full"


class Visitor:
    """A browser's requests, without a browser."""

    def __init__(self, url: str):
        self.url, self.client = url, httpx.Client(timeout=600)
        config = self.client.get(f"{url}config").json()
        fields = len(Settings().values)
        # Draw: the history and the fields go in; picture, status, command, Python, history and gallery come out.
        draws = [d for d in config["dependencies"] if (len(d["inputs"]), len(d["outputs"])) == (fields + 1, 6)]
        self.function = draws[0]["id"]

    def draw(self, seed: int, steps: int) -> float:
        """Press Draw. Returns the seconds until the picture is there.

        Raises:
            RuntimeError: the page refused.
        """
        settings = Settings(prompt=PROMPT, seed=str(seed), steps=steps)
        session, started = uuid.uuid4().hex, time.perf_counter()
        sent = {"data": [None, *settings.values], "fn_index": self.function, "session_hash": session}
        answer = self.client.post(f"{self.url}gradio_api/queue/join", json=sent)
        if answer.status_code != 200:
            raise RuntimeError(answer.text)
        picture = None
        with self.client.stream("GET", f"{self.url}gradio_api/queue/data?session_hash={session}") as stream:
            for line in stream.iter_lines():
                told = json.loads(line[5:]) if line.startswith("data:") else {}
                if told.get("msg") in ("process_generating", "process_completed"):
                    picture = "seed" in json.dumps(told["output"]) or picture
                if told.get("msg") == "process_completed":
                    break
        if not picture:
            raise RuntimeError("no picture came")
        return time.perf_counter() - started


def start() -> tuple[subprocess.Popen[str], str, float]:
    """Start the page. Returns the process, the address and the seconds until it answered."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "sd_ext.cli", "ui", "--port", "0", "--waiting", str(WAITING)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    httpx.get(url, timeout=600).raise_for_status()
    return process, url, time.perf_counter() - started


WAITING = 24


def answers(url: str, done: threading.Event) -> list[float]:
    """Seconds of each request for the page until `done`."""
    found = []
    while not done.is_set():
        before = time.perf_counter()
        httpx.get(url, timeout=600).raise_for_status()
        found.append(time.perf_counter() - before)
        done.wait(0.2)
    return found


def crowd(url: str, visitors: int, steps: int) -> dict[str, Any]:
    """All visitors at once, and one more than the queue holds."""
    visitor, done = Visitor(url), threading.Event()
    alone = [visitor.draw(seed, steps) for seed in range(3)]
    with ThreadPoolExecutor(visitors + WAITING + 3) as pool:
        asked = pool.submit(answers, url, done)
        before = time.perf_counter()
        waits = sorted(pool.map(lambda seed: visitor.draw(seed, steps), range(visitors)))
        all_of_them = time.perf_counter() - before
        done.set()
        page = asked.result()
        refused = 0
        for each in [pool.submit(visitor.draw, seed, steps) for seed in range(WAITING + 3)]:
            try:
                each.result()
            except RuntimeError as error:
                if FULL not in str(error):
                    raise
                refused += 1
    return {
        "alone": statistics.median(alone), "all": all_of_them, "median wait": statistics.median(waits),
        "longest wait": waits[-1], "page meanwhile": statistics.median(page), "page at worst": max(page),
        "refused": refused,
    }  # fmt: skip


def one_run(visitors: int, steps: int) -> dict[str, Any]:
    """A fresh process."""
    began = time.perf_counter()
    process, url, page = start()
    try:
        Visitor(url).draw(0, steps)
        return {"page": page, "first picture": time.perf_counter() - began, **crowd(url, visitors, steps)}
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--name", default="ui")
    asked = parser.parse_args()
    runs = [one_run(asked.visitors, asked.steps) for _ in range(asked.runs)]
    rows = [(name, sorted(run[name] for run in runs)) for name in runs[0]]
    lines = [
        f"`sd-ext ui`, the embedded model, {asked.steps} steps, {asked.visitors} visitors at once; seconds, median of "
        f"{asked.runs} runs (least to most). "
        f"Load of the machine meanwhile (1 minute): {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_shown(values)} |" for name, values in rows),
        "",
        f"alone: one visitor. all: until the last of the {asked.visitors} has the picture; without a page, one after "
        f"the other takes {asked.visitors} times alone. refused: how many of {WAITING + 3} more at once were told that "
        f"the queue, of {WAITING}, is full.",
    ]
    write(asked.name, {"asked": vars(asked), "runs": runs}, "\n".join(lines))


def _shown(values: list[float]) -> str:
    middle = statistics.median(values)
    if all(isinstance(value, int) for value in values):
        return f"{middle:g}"
    return f"{middle:.2f} ({values[0]:.2f} to {values[-1]:.2f})"


if __name__ == "__main__":
    main()

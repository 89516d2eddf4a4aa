"""A LoRA run that is killed anywhere, or asked to stop, and started again ends with the files of one left alone.

The runs are real processes, forked from this one, which has imported everything. A process is killed by itself at the
n-th thing it does to a file of the run's folder, or from outside after some time.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  # once, and not in each process
import pytest

from sd_ext.training import train_lora
from sd_ext.training.encoding.encoded import Encoded
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.run import fit as run_module
from sd_ext.training.run import signals
from sd_ext.training.run.checkpoint import checkpoints
from sd_ext.training.settings.command import main

from ..conftest import forget_accelerate_state

STEPS, EVERY = 8, 2
SETTINGS = {
    "device": "cpu", "tracker": "none", "resolution": 32, "bucket_step": 8, "batch_size": 2, "accumulation": 2,
    "steps": STEPS, "checkpoint_every": EVERY, "save_every": 4, "log_every": 1,
    "validate_every": 8, "preview_steps": 1, "rank": 2,
    "prompts": "red <toy>", "validation_split": "held_out", "text_encoder": True, "tokens": "<toy>",
    "prefix": "<toy>, ", "shuffle_tags": True, "caption_variants": 3, "flip": True, "ema": 0.9, "dropout": 0.1,
    "learning_rate": 0.01, "memory_check": False,
}  # fmt: skip
FILES = ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors", "learned_embeds.safetensors", "training.json",
         "samples/0000.png", "../exports/step-00000004/lora_kohya.safetensors")  # fmt: skip
WORKING = re.compile(r"\.sd-ext-[\w-]+\.partial(/(new|old)/?)?")  # where a file is as long as it is written
TOUCHES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")  # what the interpreter tells of files


@dataclass
class Alone:
    """The run that was left alone: its folder, what it did to files, and the seconds it took."""

    out: Path
    touched: list[str]
    seconds: float


def start(file: Path, out: Path, before: Callable[[], Any] = lambda: None, *more: str) -> Any:
    """`train_lora.py FILE --out OUT MORE` as a process of its own; what it prints goes to OUT.log."""

    def work() -> None:
        log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115  # as long as the process lives
        sys.argv = ["train_lora.py", str(file), "--out", str(out), *more]
        forget_accelerate_state()
        before()
        os._exit(main(LoraConfig, "sd_ext.training.train_lora:run", train_lora.__doc__))

    process: Any = get_context("fork").Process(target=work)
    process.start()
    return process


def code_of(process: Any) -> int:
    process.join(120)
    assert not process.is_alive(), "it hangs"
    return process.exitcode


def watch(folder: Path, touch: Callable[[str], Any]) -> Callable[[], None]:
    """Installs, in a process, `touch(path)` before everything it does to a file below a folder."""

    def tell(event: str, arguments: tuple) -> None:
        if event in TOUCHES and str(arguments[0]).startswith(str(folder)):
            touch(WORKING.sub("", os.path.relpath(str(arguments[0]), folder)))

    return lambda: sys.addaudithook(tell)


def die_at(number: int) -> Callable[[str], None]:
    left = [number]

    def count(path: str) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


@pytest.fixture(scope="module")
def file(two_sizes_folder, tiny_pipeline_dir, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "settings.toml"
    values = {**SETTINGS, "data": str(two_sizes_folder), "model": str(tiny_pipeline_dir)}
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory) -> Alone:
    out = tmp_path_factory.mktemp("alone") / "run"
    record = out.with_name("touched")

    def note(path: str) -> None:
        with record.open("a") as lines:
            lines.write(path + "\n")

    started = time.monotonic()
    assert code_of(start(file, out, watch(out, note))) == 0, Path(f"{out}.log").read_text()
    return Alone(out, record.read_text().splitlines(), time.monotonic() - started)


def losses(out: Path) -> list[dict[str, float]]:
    path = out / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def reached(out: Path) -> int:
    """The step of the newest checkpoint."""
    found = checkpoints(out / "checkpoints")
    return int(found[-1].name.rpartition("-")[2]) if found else 0


def goes_on(file: Path, out: Path, alone: Alone, why: str) -> None:
    """A run that was killed has lost no more than it may, and ends as the one that was left alone."""
    done = losses(out)
    assert not done or reached(out) >= done[-1]["step"] - EVERY, why
    finished, before = (out / "model").exists(), reached(out)
    assert code_of(start(file, out)) == 0, f"{why}: {Path(f'{out}.log').read_text()}"
    said = Path(f"{out}.log").read_text().splitlines()
    assert finished or any(line.endswith(f"from step {before}") for line in said), why
    assert not any("damaged" in line for line in said), f"{why}: {said}"
    for name in FILES:
        assert (out / "model" / name).read_bytes() == (alone.out / "model" / name).read_bytes(), f"{why}: {name}"
    assert losses(out) == losses(alone.out), why
    assert {p.name for p in out.iterdir()} == {p.name for p in alone.out.iterdir()}, why


def test_the_run_has_all_of_it(alone):
    """Two sizes, passes of both in one step, checkpoints that go, an EMA, words and a text encoder."""
    places = {path.split("/")[0] for path in alone.touched}
    assert places >= {"cache", "checkpoints", "previews", "history.jsonl", "model", "run.json", "model.sha256"}
    assert reached(alone.out) == STEPS
    assert {path.name for path in (alone.out / "checkpoints" / "step-00000008").iterdir()} > {"ema.safetensors"}
    assert [entry["step"] for entry in losses(alone.out)] == list(range(1, STEPS + 1))


def touched_numbers(alone: Alone, part: str) -> list[int]:
    return [n for n, path in enumerate(alone.touched, 1) if path.startswith(part)]


@pytest.mark.parametrize(
    "part",
    [
        "checkpoints",
        *(
            pytest.param(part, marks=pytest.mark.slow)
            for part in ("exports", "run.json", "config.toml", "cache", "model")
        ),
    ],
)
def test_killed_while_it_writes(alone, file, tmp_path, part):
    """At random in this part of its life; and once more when it goes on."""
    number, out = random.Random(part).choice(touched_numbers(alone, part)), tmp_path / "run"
    for each in (number, 7) if part == "checkpoints" else (number,):
        assert code_of(start(file, out, watch(out, die_at(each)))) == -signal.SIGKILL
        assert not (out / "model").exists()
    goes_on(file, out, alone, f"killed at {alone.touched[number - 1]}")


def test_killed_at_any_time(alone, file, tmp_path):
    kill_after(random.random() * alone.seconds, file, tmp_path / "run", alone)


def kill_after(seconds: float, file: Path, out: Path, alone: Alone) -> None:
    process = start(file, out)
    process.join(seconds)
    process.kill()
    process.join()
    goes_on(file, out, alone, f"killed after {seconds:.3f} s")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20))
def test_killed_at_random(alone, file, tmp_path, attempt):
    """SIGKILL at 20 random moments: every other one between what a process does to files, half of them at it."""
    out = tmp_path / "run"
    if attempt % 2:
        kill_after(random.random() * alone.seconds, file, out, alone)
        return
    number = random.randint(1, len(alone.touched))
    assert code_of(start(file, out, watch(out, die_at(number)))) == -signal.SIGKILL
    goes_on(file, out, alone, f"killed at {number}, {alone.touched[number - 1]}")


def test_asked_to_stop_it_leaves_a_usable_lora(file, tmp_path):
    out = tmp_path / "run"
    install = send_at(3, signal.SIGTERM)
    assert code_of(start(file, out, install, "--on-interrupt", "export")) == 130
    exported = out / "exports" / "step-00000003"
    assert f"stopped at step 3; as it is now: {exported}; the same command resumes" in Path(f"{out}.log").read_text()
    assert json.loads((exported / "training.json").read_text())["steps"] == 3
    assert (exported / FILES[0]).exists() and (exported / FILES[1]).exists()


def send_at(step: int, *numbers: int, patience: float | None = None) -> Callable[[], None]:
    """Has a process send itself signals when it has done a step."""

    def install() -> None:
        real = run_module.observe

        def observe(run: Any, *rest: Any) -> None:
            real(run, *rest)
            if run.step == step:
                for number in numbers:
                    os.kill(os.getpid(), number)

        run_module.observe = observe
        if patience is not None:
            signals.SAME_REQUEST = patience

    return install


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(alone, file, tmp_path, number):
    out = tmp_path / "run"
    assert code_of(start(file, out, send_at(3, number))) == 130
    said = Path(f"{out}.log").read_text()
    assert "stopped at step 3; the same command resumes" in said
    assert "Traceback" not in said
    assert reached(out) == 3
    if number == signal.SIGTERM:
        goes_on(file, out, alone, "asked to stop")


def test_asked_twice_it_leaves_at_once(alone, file, tmp_path):
    out = tmp_path / "run"
    assert code_of(start(file, out, send_at(3, signal.SIGINT, signal.SIGINT, patience=-1.0))) == 130
    assert reached(out) == 2  # what was saved before is there, the third step is not


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_while_it_prepares(file, tmp_path, number):
    """There is nothing to save yet."""
    out, real = tmp_path / "run", Encoded.fill_latents

    def install() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background

        def fill(self: Encoded, pictures: Any) -> None:
            os.kill(os.getpid(), number)
            real(self, pictures)

        Encoded.fill_latents = fill

    assert code_of(start(file, out, install)) == 130
    assert Path(f"{out}.log").read_text().splitlines()[-1] == "stopped"

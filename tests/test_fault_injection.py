"""What a fault at any one operation on files does to a command, in the manner of SQLite's tests.

Each command is run once and the things it does to files are counted. Then it is run again and again in processes
forked from this one, which has imported everything, each with one fault at one operation: it is killed there, the disk
is full from there on, it fails there once, or a bit flips in what was just put in place, after which the command goes
on or is killed. Then the same command is given once more. Always:

- what was there before is there, or what was to take its place, whole;
- what is said is a sentence, no traceback;
- the command given again ends with the same bytes as one left alone, or a sentence has named the damaged file.

A sample of the faults is tried each time; all of them by `-m slow`.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_ext import whole

from .faults import (
    Disk,
    Operation,
    disk_full,
    faulty_disk,
    flip,
    flip_and_kill,
    in_child,
    input_output_error,
    kill,
    puts_in_place,
)

FAULTS: dict[str, Callable[[Operation, Disk], Any]] = {
    "kill": kill, "full": disk_full, "error": input_output_error, "flip": flip, "flip and kill": flip_and_kill,
}  # fmt: skip
Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    """Every file below a folder by its path, but for what dead writers left."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {n.as_posix(): p.read_bytes() for n, p in files.items() if not any(map(whole.is_temporary, n.parts))}


@dataclass
class Case:
    """A command that writes.

    Args:
        run: gives it, in a folder; returns its exit code.
        prepare: puts there what is there before.
        targets: files and folders that are old or new at any time.
        results: picks what must come out the same from all files.
        again: whether the command can be given a second time where its targets are there.
        unprotected: files without a checksum that the command reads and writes: a flipped bit may go unseen.
        sampled: the kinds of faults of which one is tried each time.
    """

    run: Callable[[Path], int]
    prepare: Callable[[Path], Any] = lambda folder: None
    targets: tuple[str, ...] = ()
    results: Callable[[Tree], Any] = lambda files: files
    again: bool = True
    unprotected: tuple[str, ...] = ()
    sampled: Sequence[str] = tuple(FAULTS)


class Trials:
    """Runs of a case in one folder, always the same: first one that is left alone, in this process.

    Whatever the command imports is then there for the processes forked from this one.
    """

    def __init__(self, case: Case, folder: Path):
        self.case, self.folder = case, folder
        self.begin()
        self.before = tree(folder)
        with faulty_disk(folder) as disk:
            assert case.run(folder) == 0
        self.alone, self.operations = tree(folder), disk.done
        self.names = [str(operation) for operation in disk.done]

    def begin(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.case.prepare(self.folder)

    def places(self, fault: str) -> list[int]:
        """The numbers of the operations at which a fault means something."""
        flips = fault.startswith("flip")
        return [n for n, each in enumerate(self.operations) if not flips or puts_in_place(each)]

    def attempt(self, fault: str, at: int, seed: int = 0) -> str:
        """One fault and what comes after it; returns how it went on."""
        case, folder, where = self.case, self.folder, f"{fault} at {at}, {self.names[at]}"
        self.begin()
        log, note = Path(f"{folder}.log"), Path(f"{folder}.flipped")
        for file in (log, note):
            file.unlink(missing_ok=True)

        def disturbed() -> int:
            with faulty_disk(folder, at, FAULTS[fault], seed):
                return case.run(folder)

        code = in_child(disturbed, log)
        flipped = Path(note.read_text()) if note.exists() else None
        assert code in ((-9,) if "kill" in fault else (0, 1, 2)), f"{where}: {code} {log.read_text()}"
        if self.before or not flipped:
            self.check_targets(where, flipped)
        if not case.again and all((folder / target).exists() for target in case.targets):
            self.begin()
        code_again = in_child(lambda: case.run(folder), log)
        said = log.read_text()
        assert "Traceback" not in said, f"{where}: {said}"
        same = code_again == 0 and case.results(tree(folder)) == case.results(self.alone)
        seen = not flipped or flipped.relative_to(folder).as_posix() not in case.unprotected
        if not same and seen:
            assert flipped, f"{where}: {code_again} {said}"
            named = flipped.name in said or (flipped.name == "run.json" and "other settings" in said)
            assert named, f"{where}, in {flipped}: {code_again} {said}"
        self.check_swept(where)
        if not same:
            return "named" if seen else "unseen, in a file without a checksum"
        return "the same at once" if code == 0 else "the same when given again"

    def check_targets(self, where: str, flipped: Path | None) -> None:
        """What was there is there, or what was to take its place; but for the damage itself."""
        for target in self.case.targets:
            whole.recovered(self.folder / target)
            states = [part(files, target) for files in (tree(self.folder), self.before, self.alone)]
            (there, old, new) = ({n: d for n, d in s.items() if self.folder / n != flipped} for s in states)
            assert there in (old, new), f"{where}: {target} is neither the old nor the new one"

    def check_swept(self, where: str) -> None:
        """The next writer leaves nothing of a dead one."""
        for path in (self.folder, *self.folder.rglob("*")):
            if path.is_dir():
                whole.sweep(path)
        assert not [path for path in self.folder.rglob("*") if whole.is_temporary(path.name)], where


def part(files: Tree, target: str) -> Tree:
    return {name: data for name, data in files.items() if name == target or name.startswith(f"{target}/")}


# The commands.


def cli(*arguments: object) -> int:
    from sd_ext.cli import main

    return main([str(argument) for argument in arguments])


def generate_one(sources: Path) -> Case:
    """A picture in place of another."""
    model = ("--model", sources / "model", "--steps", 1)

    def run(folder: Path) -> int:
        return cli("generate", "red", *model, "--out", folder / "a.png", "--overwrite")

    return Case(run, lambda folder: (folder / "a.png").write_bytes(b"old"), ("a.png",))


def generate_many(sources: Path) -> Case:
    """Numbered pictures and their contact sheet, beside one that is there. Numbers go on: bytes count, not names."""
    model = ("--model", sources / "model", "--steps", 1)

    def run(folder: Path) -> int:
        return cli("generate", "red", "--num", 2, *model, "--out", folder)

    def results(files: Tree) -> Any:
        return files.get("red-0001.png"), {data for data in files.values() if is_whole_picture(data)}

    return Case(
        run,
        lambda folder: (folder / "red-0001.png").write_bytes(b"old"),
        ("red-0001.png",),
        results,
        sampled=("kill", "full"),
    )


def is_whole_picture(data: bytes) -> bool:
    """As any viewer finds out: each chunk of a PNG has a checksum."""
    try:
        Image.open(io.BytesIO(data)).verify()
    except Exception:
        return False
    return True


def convert(sources: Path) -> Case:
    """A LoRA file in place of another."""

    def run(folder: Path) -> int:
        source = sources / "finished" / "model" / "pytorch_lora_weights.safetensors"
        return cli("convert", "lora", source, folder / "a.safetensors", "--overwrite")

    return Case(run, lambda folder: (folder / "a.safetensors").write_bytes(b"old"), ("a.safetensors",))


def merge_into(sources: Path) -> Case:
    """A model in place of another."""

    def prepare(folder: Path) -> None:
        (folder / "mine").mkdir()
        (folder / "mine" / "model_index.json").write_text("{}")
        (folder / "mine" / "weights").write_text("old")

    def run(folder: Path) -> int:
        lora = sources / "finished" / "model" / "brush_kohya.safetensors"
        return cli("convert", "merge", lora, "--into", sources / "model", "--out", folder / "mine", "--overwrite")

    return Case(run, prepare, ("mine",))


def export(sources: Path, method: bool) -> Case:
    """A pipeline's scheduler in place of another, and the entry in the pipeline's index."""
    import sd_ext
    from sd_ext.errors import InputError
    from sd_ext.schedulers.export import export

    def prepare(folder: Path) -> None:
        shutil.copy(sources / "model" / "model_index.json", folder)
        (folder / "scheduler").mkdir()
        shutil.copy(sources / "model" / "scheduler" / "scheduler_config.json", folder / "scheduler")

    def run(folder: Path) -> int:
        scheduler = sd_ext.make_scheduler("dpm++ 2m", {"num_train_timesteps": 20})
        try:
            scheduler.export(folder / "scheduler", 3) if method else export(scheduler, folder / "scheduler", [2, 3])
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    names = "model_index.json", "scheduler/scheduler_config.json", "scheduler/exported_scheduler.py"
    return Case(run, prepare, names, unprotected=("model_index.json",))  # the pipeline's own


def publish(sources: Path) -> Case:
    """The folder that a dry run leaves."""

    def run(folder: Path) -> int:
        return cli("publish", "lora", sources / "finished", "alice/brush", "--dry-run", folder / "staged")

    return Case(run, targets=("staged",), again=False)


SETTINGS = {
    "device": "cpu", "tracker": "none", "resolution": 16, "buckets": False, "batch_size": 2, "steps": 4, "rank": 2,
    "checkpoint_every": 2, "log_every": 1, "validate_every": 4, "preview_steps": 1, "prompts": "red", "init": "pissa",
    "learning_rate": 0.01, "memory_check": False, "blocks": ["mid_block"], "class_prompt": "shape", "class_images": 2,
}  # fmt: skip


def train_lora(sources: Path) -> Case:
    """A run with a cache, class pictures, a start that is kept, checkpoints that go, a log, previews and a result."""
    from sd_ext.training import train_lora
    from sd_ext.training.lora.config import LoraConfig
    from sd_ext.training.settings.command import main

    from .training.conftest import forget_accelerate_state

    def run(folder: Path) -> int:
        file = Path(f"{folder}.toml")
        values = {**SETTINGS, "model": str(sources / "model"), "data": str(sources / "pictures")}
        values |= {"out": str(folder / "run"), "class_data": str(folder / "class")}
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
        forget_accelerate_state()
        sys.argv = ["train_lora.py", str(file)]
        return main(LoraConfig, "sd_ext.training.train_lora:run", train_lora.__doc__)

    def results(files: Tree) -> Tree:
        """What counts: a flipped bit in a preview, or in a checkpoint of a run that has ended, is read by nobody."""
        return {name: data for name, data in files.items() if name.startswith(("run/model/", "class/"))}

    return Case(run, results=results, targets=("run/model",), sampled=("kill", "error", "flip and kill"))


CASES: dict[str, Callable[[Path], Case]] = {
    "generate": generate_one,
    "generate many": generate_many,
    "convert": convert,
    "merge into": merge_into,
    "export": lambda sources: export(sources, False),
    "make_scheduler().export": lambda sources: export(sources, True),
    "publish": publish,
    "train lora": train_lora,
}


@pytest.fixture(scope="module")
def sources(tiny_pipeline_dir, tmp_path_factory) -> Path:
    """What the commands read."""
    from .conftest import build_tiny_pipeline
    from .hub.conftest import FACTS, write_run
    from .training.conftest import write_pictures

    root = tmp_path_factory.mktemp("sources")
    shutil.copytree(tiny_pipeline_dir, root / "model")
    write_run(root / "finished" / "model", build_tiny_pipeline(), FACTS)
    lines = (write_pictures(root / "pictures") / "metadata.jsonl").read_text().splitlines()
    (root / "pictures" / "metadata.jsonl").write_text("\n".join(lines[:4]) + "\n")
    return root


@pytest.fixture(scope="module")
def trials_of(sources, tmp_path_factory) -> Callable[[str], Trials]:
    return cache(lambda name: Trials(CASES[name](sources), tmp_path_factory.mktemp("trials") / "work"))


LONG = ("generate", "generate many", "merge into", "make_scheduler().export", "publish", "train lora")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in CASES])
def test_a_few_faults(trials_of, name):
    """One of each kind, at places that are drawn."""
    trials, draw = trials_of(name), random.Random(name)
    for fault in trials.case.sampled:
        trials.attempt(fault, draw.choice(trials.places(fault)))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CASES)
def test_every_fault(trials_of, name, fault):
    """At every operation, and of what is put in place five bits; how often it went which way is printed."""
    trials, bits = trials_of(name), range(5 if fault.startswith("flip") else 1)
    went = Counter(trials.attempt(fault, at, seed) for at in trials.places(fault) for seed in bits)
    print(f"\n{name}, {fault}: {len(trials.operations)} operations, {went.total()} faults, {dict(went)}")
    assert went

"""Whatever a file holds, it is accepted or refused in one sentence: no other error, no hang, no endless memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sd_ext.errors import InputError

from . import malformed
from .malformed import Reader, at_most, outcome, readers, spoiled, try_out


def told(failures) -> str:
    return "\n".join(f"{failure.reader} ({failure.seed}): {failure.what}" for failure in failures[:5])


def test_spoiled_files_are_accepted_or_refused_in_one_sentence():
    failures, refused = try_out(224, seed=0)
    assert not failures, told(failures)
    assert sum(refused.values()) > 80  # they are spoiled


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_two_thousand_spoiled_files(seed):
    """In a process of its own, whose end by the system would be seen too."""
    command = [sys.executable, "-m", "tests.malformed", "2000", str(seed)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    counts = json.loads(ended.stderr.splitlines()[-1])
    assert counts.keys() == {reader.name for reader in readers()}


def test_the_same_seed_spoils_in_the_same_way():
    """Whatever has been spoiled before: a failure can be looked at by itself."""
    good = b'{"a": 1, "b": [2, 3], "c": {"d": "e"}}'
    seeds = [f"seed {number}" for number in range(40)]
    first = {(reader.name, seed): spoiled(reader, good, seed) for reader in readers() for seed in seeds}
    again = {(reader.name, seed): spoiled(reader, good, seed) for reader in readers()[::-1] for seed in seeds[::-1]}
    assert first == again


def raises(error: BaseException):
    def read(_: Path) -> None:
        raise error

    return read


def hang(_: Path) -> None:
    while True:
        pass


def fill_memory(_: Path) -> bytearray:
    return bytearray(2**31)


@pytest.mark.parametrize(
    ("read", "refused", "what"),
    [
        (lambda _: None, False, ""),
        (raises(InputError("a sentence")), True, ""),
        (raises(InputError("")), True, "no line"),
        (raises(KeyError("a")), False, "KeyError"),
        (raises(ValueError("a")), False, "ValueError"),
        (raises(RecursionError()), False, "RecursionError"),
        (hang, False, "took longer"),
        (fill_memory, False, "MemoryError"),
    ],
)
def test_what_would_be_wrong_is_seen(tmp_path, monkeypatch, read, refused, what):
    monkeypatch.setattr(malformed, "SECONDS", 0.5)
    found, problem = outcome(Reader("x", lambda folder: None, "a", read), tmp_path)
    assert found == refused
    assert bool(problem) == bool(what) and what in problem


def test_a_message_of_several_lines_is_seen(tmp_path):
    reader = Reader("x", lambda folder: None, "a", raises(OSError("a\nb")), errors=(OSError,))
    assert "no line" in outcome(reader, tmp_path)[1]


def test_memory_is_there_again_afterwards():
    with at_most(10 * 2**20, 60), pytest.raises(MemoryError):
        bytearray(2**28)
    assert len(bytearray(2**28)) == 2**28

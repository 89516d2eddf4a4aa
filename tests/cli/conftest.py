"""Running the command in this process: importing Diffusers anew for every test would take minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sd_ext.cli import main


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def paths(self) -> list[Path]:
        """The files it says it wrote."""
        return [Path(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, tmp_path_factory) -> Callable[..., Outcome]:
    """`run("generate", "red apple")` in an empty working folder, which is `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run

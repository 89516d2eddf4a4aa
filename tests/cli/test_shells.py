"""The printed command, as shells read it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import PurePosixPath, PureWindowsPath

import pytest

from sd_ext.cli.shells import pasted

SAFE = [
    "a.png",
    "two words.png",
    "it's.png",
    "a&b;c|d.png",
    "(1) [2] {3}.png",
    "#1.png",
    "*.png",
    "リンゴ.png",
    "-x.png",
]
UNSAFE = ["$HOME.png", "`id`.png", 'a"b.png', "a\\b.png", "100%.png", "wow!.png", "a\nb.png", "\x1b[2J.png", "“a”.png"]


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "pwsh"])
@pytest.mark.parametrize("name", SAFE)
def test_shells_give_the_name_back(shell, name):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    command = pasted("printf %s", PurePosixPath(name))
    done = subprocess.run([shell, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.removeprefix("./") == name
    assert shlex.split(command)[-1].removeprefix("./") == name


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_some_shell_would_change_is_not_written_as_a_command(name):
    command, note = pasted("sd-ext info", PurePosixPath(name)).split("\n")
    assert command == "sd-ext info PICTURE"
    assert "quote it" in note and note.isprintable()


def test_paths_of_windows(monkeypatch):
    path = PureWindowsPath(r"C:\Users\me\my pictures\a.png")
    monkeypatch.setattr("sd_ext.cli.shells.os.name", "nt")
    assert pasted("sd-ext info", path) == 'sd-ext info "C:/Users/me/my pictures/a.png"'

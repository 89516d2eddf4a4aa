"""A lock that one process has at a time, and a dead process never."""

import errno
import os
import signal
import sys
import types
from multiprocessing import get_context
from pathlib import Path

import pytest

from sd_ext import held as module
from sd_ext.errors import InputError
from sd_ext.held import held


def holder(path: Path, ready, go) -> None:
    with held(path, "works"):
        ready.set()
        go.wait(60)
    os._exit(0)


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_lock_is_held_by_a_process_that_lives(tmp_path, end):
    context, path = get_context("fork"), tmp_path / "folder" / "lock"
    ready, go = context.Event(), context.Event()
    process = context.Process(target=holder, args=(path, ready, go))
    process.start()
    assert ready.wait(60)
    with (
        pytest.raises(InputError, match=rf"^process {process.pid} on .* works in {path.parent} already; wait"),
        held(path, "works"),
    ):
        raise AssertionError
    if end:
        os.kill(process.pid, end)
    else:
        go.set()
    process.join(60)
    for _ in range(2):
        with held(path, "works"), pytest.raises(InputError, match=f"process {os.getpid()} "), held(path, "works"):
            raise AssertionError
    assert [p.name for p in path.parent.iterdir()] == ["lock"]


def test_a_disk_without_locks_is_said_and_stops_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with held(tmp_path / "lock", "works"):
        assert "cannot be locked" in caplog.text


def test_windows_has_its_own_lock_behind_the_name(tmp_path, monkeypatch):
    locked: set[tuple[int, int]] = set()

    def locking(descriptor: int, mode: int, count: int) -> None:
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if place in locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        locked.add(place)

    monkeypatch.setattr(module, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (
        held(tmp_path / "lock", "works"),
        pytest.raises(InputError, match=f"process {os.getpid()} on"),
        held(tmp_path / "lock", "works"),
    ):
        raise AssertionError
    assert {place for _, place in locked} == {module.NAMED}

"""Faults of a disk, made on purpose at any one thing that a process does to files, as SQLite's tests do.

Every change of a file below some folder goes through one of the functions that `faulty_disk` watches: those of `os`,
writing to a file that was opened for it, and the one function by which safetensors writes without Python. They are
counted, and what is to happen at one of them happens there.
"""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import pathlib
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sd_ext import whole

BY_PATH = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink", "chmod", "truncate")
BY_DESCRIPTOR = ("fsync", "write", "ftruncate", "sendfile", "copy_file_range")
GROWS = {"open", "mkdir", "link", "symlink", "write", "save", "fsync", "sendfile", "copy_file_range"}
"""What a full disk refuses."""


@dataclass
class Operation:
    """One thing done to a file: its name, the path (the new one, of two), and how to do all or half of it."""

    name: str
    path: str
    do: Callable[[], Any]
    half: Callable[[], Any] = lambda: None

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass
class Disk:
    """What was done so far, and what happens at operation number `at`, from 0, in its place; it is told the disk."""

    root: Path
    at: int = -1
    fault: Callable[[Operation, Disk], Any] = lambda operation, disk: operation.do()
    done: list[Operation] = field(default_factory=list)
    full: bool = False
    seed: int = 0  # of which bit flips

    def operate(self, operation: Operation) -> Any:
        if not operation.path.startswith(f"{self.root}{os.sep}"):
            return operation.do()
        self.done.append(operation)
        if len(self.done) - 1 == self.at:
            return self.fault(operation, self)
        if self.full and operation.name in GROWS:
            operation.half()
            raise no_space(operation)
        return operation.do()


def no_space(operation: Operation) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)


# Faults.


def kill(operation: Operation, disk: Disk) -> None:
    """SIGKILL half-way."""
    operation.half()
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(operation: Operation, disk: Disk) -> None:
    """Ctrl-C half-way."""
    operation.half()
    raise KeyboardInterrupt


def input_output_error(operation: Operation, disk: Disk) -> None:
    """Once."""
    operation.half()
    raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)


def disk_full(operation: Operation, disk: Disk) -> Any:
    """From here on."""
    disk.full = True
    if operation.name not in GROWS:
        return operation.do()
    operation.half()
    raise no_space(operation)


def puts_in_place(operation: Operation) -> bool:
    """Whether something is at its last place after the operation: by a rename, or by an addition to a log."""
    renamed = operation.name in ("rename", "replace", "link")
    return not is_working(operation.path) and (renamed or operation.name in ("write", "save"))


def is_working(path: str) -> bool:
    return any(whole.is_temporary(part) for part in Path(path).parts)


def flip(operation: Operation, disk: Disk) -> Any:
    """One bit, in any of the files, of what the operation has put in place; which file is told in ROOT.flipped."""
    result = operation.do()
    path = Path(operation.path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    draw = random.Random(f"{disk.at} {disk.seed}")
    file = draw.choice([file for file in files if file.stat().st_size])
    flip_bit(file, draw)
    Path(f"{disk.root}.flipped").write_text(str(file))
    return result


def flip_and_kill(operation: Operation, disk: Disk) -> None:
    flip(operation, disk)
    os.kill(os.getpid(), signal.SIGKILL)


def flip_bit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    with REAL["open"](path, "r+b") as file:
        file.write(data)


# Watching.

REAL: dict[str, Any] = {"open": builtins.open, "FileIO": io.FileIO}


@contextmanager
def faulty_disk(
    root: Path, at: int = -1, fault: Callable[[Operation, Disk], Any] = kill, seed: int = 0
) -> Iterator[Disk]:
    """Within the block the fault happens at operation number `at` of those below a folder; -1 counts only."""
    disk = Disk(Path(os.path.realpath(root)), at, fault, seed=seed)
    with ExitStack() as stack:

        def put(owner: Any, name: str, function: Any) -> None:
            if hasattr(owner, name):
                stack.enter_context(patch.object(owner, name, function))

        for name in BY_PATH:
            if hasattr(os, name):
                put(os, name, _by_path(disk, name, getattr(os, name)))
        for name in BY_DESCRIPTOR:
            if hasattr(os, name):
                put(os, name, _by_descriptor(disk, name, getattr(os, name)))
        put(os, "open", _os_open(disk, os.open))
        for owner in (builtins, io, getattr(pathlib, "_NormalAccessor", None)):  # the last is Python 3.10's
            put(owner, "open", _open(disk))
        put(shutil, "_USE_CP_SENDFILE", False)  # so that copies are written as all else is
        for module in ("safetensors.torch", "safetensors.numpy"):
            owner = __import__(module, fromlist=["serialize_file"])
            put(owner, "serialize_file", _serialize(disk, owner.serialize_file))
        yield disk


def _where(path: Any, dir_fd: int | None) -> str:
    """The path in full; what it leads to is not looked up, since it may be a link that is renamed."""
    text = os.fsdecode(path)
    base = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
    parent, name = os.path.split(os.path.join(base, text))
    return os.path.join(os.path.realpath(parent), name)


def _by_path(disk: Disk, name: str, real: Callable) -> Callable:
    def call(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> Any:
        if isinstance(path, int):
            return real(path, *rest, **more)
        at = rest[0] if name in ("rename", "replace", "link", "symlink") else path
        given = {"dir_fd": dir_fd} if dir_fd is not None else {}
        return disk.operate(Operation(name, _where(at, dir_fd), lambda: real(path, *rest, **given, **more)))

    return call


def _by_descriptor(disk: Disk, name: str, real: Callable) -> Callable:
    def call(descriptor: int, *rest: Any, **more: Any) -> Any:
        at = rest[0] if name == "copy_file_range" else descriptor
        path = os.readlink(f"/proc/self/fd/{at}")
        half = (lambda: real(descriptor, rest[0][: len(rest[0]) // 2])) if name == "write" else (lambda: None)
        return disk.operate(Operation(name, path, lambda: real(descriptor, *rest, **more), half))

    return call


def _os_open(disk: Disk, real: Callable) -> Callable:
    def call(path: Any, flags: int, *rest: Any, dir_fd: int | None = None, **more: Any) -> Any:
        def do() -> Any:
            return real(path, flags, *rest, dir_fd=dir_fd, **more)

        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return do()
        return disk.operate(Operation("open", _where(path, dir_fd), do))

    return call


def _open(disk: Disk) -> Callable:
    class Watched(io.FileIO):
        def write(self, data: Any) -> int:
            put, data = super().write, bytes(data)
            half = data[: len(data) // 2]
            return disk.operate(Operation("write", _where(self.name, None), lambda: put(data), lambda: put(half)))

        def truncate(self, size: int | None = None) -> int:
            cut = super().truncate
            return disk.operate(Operation("truncate", _where(self.name, None), lambda: cut(size)))

    def call(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if isinstance(file, int) or opener or not set(mode) & set("wax+"):
            return REAL["open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        kept = mode.replace("b", "").replace("t", "")
        raw = disk.operate(Operation("open", _where(file, None), lambda: Watched(file, kept)))
        if buffering == 0:
            return raw
        binary = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding or "utf-8", errors, newline, buffering == 1)

    return call


def _serialize(disk: Disk, real: Callable) -> Callable:
    def call(tensors: Any, path: Any, *rest: Any, **more: Any) -> Any:
        def half() -> None:
            real(tensors, path, *rest, **more)
            with REAL["open"](path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)

        def do() -> Any:
            return real(tensors, path, *rest, **more)

        try:
            return disk.operate(Operation("save", _where(path, None), do, half))
        except OSError as error:  # as it says so
            from safetensors import SafetensorError

            raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None

    return call


# Processes.

LONGEST = 3600  # seconds, after which a process hangs and is killed; more than any pause of a machine under load


def in_child(work: Callable[[], Any], log: Path | None = None) -> int:
    """Exit code of `work` in a forked process: what it returns, or -9 after a kill. What it says goes to a file."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(LONGEST)
            if log is not None:
                target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(target, stream)
                sys.stdout = sys.stderr = REAL["open"](target, "w", buffering=1)
                logging.root.handlers.clear()  # pytest's, which keep what is said from being shown
            os._exit(work() or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

"""The one writer of files and folders that outlive the process: each appears whole, or not at all.

    with whole.file(path) as new:        # write to `new`; at the end of the block it becomes `path`
        save_file(tensors, new)
    with whole.folder(path) as new:      # fill the empty folder `new`; at the end it becomes `path`
        pipe.save_pretrained(new)
    whole.write_text(path, text)         # also write_bytes and write_json

A writer works in a folder of its own beside the target, and holds a lock on it for as long as it lives:

    PARENT/.sd-ext-<boot>-<token>.partial/new/NAME    what is being written
                                          old/NAME    a replaced folder, between two renames and until it is deleted
                                          gone/       what is being deleted

When all of `new` is on the disk, one rename puts it in place; a folder that is replaced is moved to `old` just before.
After an error, Ctrl-C included, the writer itself clears its working folder; after a kill or a power cut, the next
writer in PARENT does (`sweep`), as does a reader that misses a folder (`recovered`): what lies in `old` and has no
successor goes back to its place, the rest is deleted. The working folders of living writers are never touched.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import SdExtError, TakenError, WriteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "append", "file", "folder", "is_temporary", "move", "recovered", "remove", "sweep", "sync",
    "write_bytes", "write_json", "write_text",
]  # fmt: skip

BEGINNING, END = ".sd-ext-", ".partial"
ABANDONED = 3600.0  # seconds after its last change that a working folder is nobody's, where no lock can tell
BETWEEN = 60.0  # the same, where a replaced folder lies in it: there are only renames left to do
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)

Target = str | os.PathLike[str]
log = logging.getLogger(__name__)


@contextlib.contextmanager
def file(path: Target, overwrite: bool = True) -> Iterator[Path]:
    """A path to write a file to, which becomes `path` when the block ends without an error.

    Its mode is that of any new file, as the umask says. Missing parent folders are made. Where `path` is a link, the
    file that it leads to is replaced.

    Args:
        path: the file.
        overwrite: replace a file that is there; else it is an error, also where it appeared only meanwhile.

    Raises:
        TakenError: there is one, and `overwrite` is False.
        WriteError: the disk is full or fails, or the folder cannot be written to. What was there is as it was.
    """
    with _writing(path) as (new, target):
        if not overwrite and os.path.lexists(target):
            raise TakenError(path)
        yield new
        _settle(new)
        if overwrite:
            os.replace(new, target)
        elif not _link(new, target):
            raise TakenError(path)
        _sync_folder(target.parent)


@contextlib.contextmanager
def folder(path: Target, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error; see `file`.

    Args:
        path: the folder. An empty one may be there.
        overwrite: replace what is there, which is back in its place after any error.

    Raises:
        TakenError: there is something, and `overwrite` is False.
        WriteError: as in `file`.
    """
    with _writing(path) as (new, target):
        if not overwrite and _is_taken(target):
            raise TakenError(path)
        os.mkdir(new)
        yield new
        _settle(new)
        if _is_taken(target):
            if not overwrite:
                raise TakenError(path)
            old = new.parent.parent / "old"
            os.mkdir(old)
            os.rename(target, old / target.name)
        elif target.is_dir():
            os.rmdir(target)
        os.rename(new, target)
        _sync_folder(target.parent)


def write_bytes(path: Target, data: bytes, overwrite: bool = True) -> None:
    """Write a file of these bytes. Errors as in `file`."""
    with file(path, overwrite) as new:
        new.write_bytes(data)


def write_text(path: Target, text: str, overwrite: bool = True) -> None:
    """Write a UTF-8 file; lines end as they do in `text`, on Windows too. Errors as in `file`."""
    write_bytes(path, text.encode(), overwrite)


def write_json(path: Target, value: Any, indent: int | None = 1, overwrite: bool = True) -> None:
    """Write a value as JSON and a newline. Errors as in `file`."""
    write_text(path, json.dumps(value, indent=indent) + "\n", overwrite)


def append(path: Target, line: str) -> None:
    """Add a line to a log, which exists from its first line on and is not waited for.

    Half a line may stay at the end after a kill or on a full disk: readers of logs leave such a line out.

    Raises:
        WriteError: the disk is full or fails.
    """
    try:
        with open(path, "ab") as log_file:
            log_file.write(f"{line}\n".encode())
    except OSError as error:
        raise WriteError(path, error) from error


def move(path: Target, to: Target) -> None:
    """Rename a file or folder within its parent folder, where nothing is of the new name.

    Raises:
        TakenError: something is.
        WriteError: it cannot be done; nothing has changed.
    """
    if os.path.lexists(to):
        raise TakenError(to)
    try:
        os.rename(path, to)
        _sync_folder(Path(to).parent)
    except OSError as error:
        raise WriteError(to, error) from error


def remove(path: Target) -> None:
    """Delete a file or folder so that it is whole until it is gone, even if the process is killed half-way.

    Raises:
        WriteError: it cannot be moved away; it is as it was.
    """
    with _writing(path, "remove") as (new, target):
        os.rename(target, new)
        _sync_folder(target.parent)


def recovered(path: Target) -> Path:
    """The same path, for a reader: where it is missing because its replacement was killed, the old one is put back."""
    if not os.path.lexists(path):
        sweep(Path(path).parent)
    return Path(path)


def sweep(parent: Target) -> None:
    """Clear what dead writers left in a folder, as far as we may; every writer does so first."""
    found: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        found = sorted(Path(entry.path) for entry in entries if is_temporary(entry.name))
    for work in found:
        with contextlib.suppress(OSError), _lock_of_dead(work):  # another sweeper was faster, or it is in use
            _clear(work, tell=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a writer's working folder."""
    return name.startswith(BEGINNING) and name.endswith(END)


@contextlib.contextmanager
def _writing(path: Target, doing: str = "write") -> Iterator[tuple[Path, Path]]:
    """(where to write, where it goes), in a locked working folder that is cleared in the end, however that comes."""
    lock = None
    try:
        target = Path(os.path.realpath(path))
        _make_folders(target.parent)
        sweep(target.parent)
        work, lock = _working_folder(target)
        try:
            os.mkdir(work / "new")
            yield work / "new" / target.name, target
        finally:
            with contextlib.suppress(OSError):  # what stays is for the next writer
                _clear(work)
    except WriteError:
        raise
    except OSError as error:
        ours = error.filename is None or BEGINNING in str(error.filename)
        raise WriteError(path, error if ours else str(error), doing) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # as libraries that are written in Rust put it
        if number is None or isinstance(error, SdExtError):
            raise
        raise WriteError(path, OSError(int(number[1]), os.strerror(int(number[1]))), doing) from error
    finally:
        if lock is not None:
            os.close(lock)


def _working_folder(target: Path) -> tuple[Path, int | None]:
    """A new folder beside the target, with a lock on it; None where there are no locks."""
    while True:
        work = target.with_name(f"{BEGINNING}{_boot()}-{secrets.token_hex(8)}{END}")
        os.mkdir(work)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # a sweeper that came between takes it for dead
            lock = _lock(work)
            if lock is None or _is_same(lock, work):
                return work, lock
            os.close(lock)


def _lock(work: Path) -> int | None:
    """A lock that ends with the process, as the descriptor that holds it; None where the disk has no locks.

    Raises:
        FileNotFoundError: the folder is gone.
        BlockingIOError: another holds the lock.
    """
    if fcntl is None:
        return None
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # such as some network disks
        os.close(descriptor)
        return None


def _is_same(descriptor: int, path: Path) -> bool:
    return os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path))


@contextlib.contextmanager
def _lock_of_dead(work: Path) -> Iterator[None]:
    """Holds the lock of a working folder whose writer is dead.

    A lock tells of this machine since it was started, containers included. Of others, and on disks without locks,
    only the time of the last change does.

    Raises:
        BlockingIOError: the writer is alive, or may be.
    """
    lock = _lock(work)
    try:
        here = work.name.startswith(f"{BEGINNING}{_boot()}-")
        patience = BETWEEN if (work / "old").exists() else ABANDONED
        if (lock is None or not here) and time.time() - _last_change(work) < patience:
            raise BlockingIOError(errno.EAGAIN, "may be in use elsewhere", str(work))
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _last_change(work: Path) -> float:
    old = work / "old"  # of which the contents are as old as the model
    return max(os.lstat(path).st_mtime for path in (work, *work.rglob("*")) if old not in path.parents)


@lru_cache
def _boot() -> str:
    """Eight digits that differ between machines, and on Linux between its starts; the same in all its containers."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        text = platform.node()
    return f"{zlib.crc32(text.encode()):08x}"


def _clear(work: Path, tell: bool = False) -> None:
    """Put back what was moved aside and has no successor, and delete the rest."""
    old = work / "old"
    for aside in old.iterdir() if old.exists() else ():
        target = work.with_name(aside.name)
        if not os.path.lexists(target):
            os.rename(aside, target)
            _sync_folder(target.parent)
            if tell:
                log.warning("%s is back: a writer that was replacing it was killed", target)
    if old.exists():
        os.rename(old, work / "gone")  # half-deleted, it must not be taken for whole
    shutil.rmtree(work, ignore_errors=True)


def _settle(new: Path) -> None:
    """Give all that was written the modes of new files, and wait until it is on the disk."""
    mode = stat.S_IMODE(os.stat(new.parent).st_mode)  # as the umask, or the parent's access list, makes it
    folders = [(root, [os.path.join(root, name) for name in names]) for root, _, names in os.walk(new)]
    for path in [name for _, names in folders for name in names] if folders else [str(new)]:
        if not os.path.islink(path):
            runs = os.stat(path).st_mode & stat.S_IXUSR
            _set_mode(path, mode & (0o777 if runs else 0o666))
            sync(path)
    for root, _ in reversed(folders):
        _set_mode(root, mode & 0o777)
        _sync_folder(root)


def _set_mode(path: str, mode: int) -> None:
    before = stat.S_IMODE(os.stat(path).st_mode)
    if before & 0o777 != mode:
        os.chmod(path, before & ~0o777 | mode)


def _link(new: Path, target: Path) -> bool:
    """Rename without replacing. False where the name is taken."""
    try:
        os.link(new, target)
    except FileExistsError:
        return False
    except OSError:  # a disk without links
        if os.path.lexists(target):
            return False
        os.rename(new, target)
    return True


def _is_taken(target: Path) -> bool:
    """Whether there is something, other than an empty folder."""
    return os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))


def _make_folders(path: Path) -> None:
    if not path.is_dir():
        if os.path.lexists(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        _make_folders(path.parent)
        with contextlib.suppress(FileExistsError):  # another was faster
            os.mkdir(path)
        _sync_folder(path.parent)


def sync(path: Target) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Target) -> None:
    """Wait until a folder's names are on the disk, where the system can do so."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise

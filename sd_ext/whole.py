"""The one writer of files and folders: what it writes appears complete, or not at all.

    with whole.file(path) as new:        # write to `new`; at the end of the block it becomes `path`
        save_file(tensors, new)
    with whole.folder(path) as new:      # fill the empty folder `new`; at the end of the block it becomes `path`
        pipe.save_pretrained(new)
    whole.write_text(path, text)         # also write_bytes and write_json

Each write makes a temporary working folder beside the target and holds a file lock on it until the write ends:

    PARENT/.sd-ext-<boot>-<token>.partial/new/NAME    what is being written
                                          old/NAME    a folder that is being replaced, moved aside until it is deleted
                                          gone/       what is being deleted

When everything in `new` has been flushed to the disk, one rename puts it in place. A folder that is to be replaced is
moved to `old` just before that rename.

After an error or Ctrl-C, the writer clears its own working folder. After a kill or a power cut, the next writer in
PARENT clears it (`sweep`), and so does a reader that finds its folder missing (`recovered`): a folder in `old` whose
replacement never arrived is moved back, everything else is deleted. Working folders of processes that are still running
are never touched.
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
ABANDONED = 3600.0  # seconds without a change after which a working folder is abandoned, where no lock can tell
BETWEEN = 60.0  # the same for one with a folder in `old`: its writer has only renames left to do, which are quick
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)

Target = str | os.PathLike[str]
log = logging.getLogger(__name__)


@contextlib.contextmanager
def file(path: Target, overwrite: bool = True, wait: bool = True) -> Iterator[Path]:
    """Context manager that yields a temporary path; when the block ends without an error, that file becomes `path`.

    The file gets the mode of any new file, as the umask says. Missing parent folders are made. If `path` is a symbolic
    link, the file that it points to is replaced.

    Args:
        path: the file.
        overwrite: replace an existing file. If False, an existing file is an error, even one that appears while the
            block runs.
        wait: wait until it is on the disk. If False, the file may be damaged when the machine loses its power soon
            afterwards: for one of very many that say whether they are damaged and can be made anew.

    Yields:
        The path to write to.

    Raises:
        TakenError: the file exists and `overwrite` is False.
        WriteError: the disk is full or fails, or the folder cannot be written to. An existing file is left unchanged.
    """
    with _writing(path) as (new, target):
        if not overwrite and os.path.lexists(target):
            raise TakenError(path)
        yield new
        _settle(new, wait)
        if overwrite:
            os.replace(new, target)
        elif not _link(new, target):
            raise TakenError(path)
        if wait:
            _sync_folder(target.parent)


@contextlib.contextmanager
def folder(path: Target, overwrite: bool = False) -> Iterator[Path]:
    """Context manager that yields an empty temporary folder; when the block ends without an error, it becomes `path`.

    Args:
        path: the folder. It may exist if it is empty.
        overwrite: replace an existing folder or file. After any error the old one is back in its place.

    Yields:
        The folder to fill.

    Raises:
        TakenError: something other than an empty folder exists at `path`, and `overwrite` is False.
        WriteError: the disk is full or fails, or the parent folder cannot be written to.
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
    """Write these bytes as a file. Arguments and errors as in `file`."""
    with file(path, overwrite) as new:
        new.write_bytes(data)


def write_text(path: Target, text: str, overwrite: bool = True) -> None:
    """Write `text` as a UTF-8 file, with its line endings unchanged (on Windows too).

    Arguments and errors as in `file`.
    """
    write_bytes(path, text.encode(), overwrite)


def write_json(path: Target, value: Any, indent: int | None = 1, overwrite: bool = True) -> None:
    """Write `value` as JSON, followed by a newline. Arguments and errors as in `file`."""
    write_text(path, json.dumps(value, indent=indent) + "\n", overwrite)


def append(path: Target, line: str) -> None:
    """Append one line to a log file, which is made if it is missing. Does not wait until the line is on the disk.

    After a kill or on a full disk the last line may be incomplete; readers of logs must skip such a line.

    Args:
        path: the log file.
        line: the text, without its line break.

    Raises:
        WriteError: the disk is full or fails.
    """
    try:
        with open(path, "ab") as log_file:
            log_file.write(f"{line}\n".encode())
    except OSError as error:
        raise WriteError(path, error) from error


def move(path: Target, to: Target) -> None:
    """Rename a file or folder within its parent folder, never replacing anything.

    Args:
        path: what to rename.
        to: its new path.

    Raises:
        TakenError: something exists at `to`.
        WriteError: the rename failed; nothing has changed.
    """
    if os.path.lexists(to):
        raise TakenError(to)
    try:
        os.rename(path, to)
        _sync_folder(Path(to).parent)
    except OSError as error:
        raise WriteError(to, error) from error


def remove(path: Target) -> None:
    """Delete a file or folder. Other processes see all of it or nothing, even if this process is killed in between.

    Raises:
        WriteError: it cannot be moved out of the way; it is left unchanged.
    """
    with _writing(path, "remove") as (new, target):
        os.rename(target, new)
        _sync_folder(target.parent)


def recovered(path: Target) -> Path:
    """Return `path`; if it is missing because a kill interrupted its replacement, restore the old version first."""
    if not os.path.lexists(path):
        sweep(Path(path).parent)
    return Path(path)


def sweep(parent: Target) -> None:
    """Clear the working folders that killed writers left in the folder `parent`. Every write does this first.

    Working folders that we may not change, or whose writer may still be running, are left alone.
    """
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
    """Make and lock a working folder, yield (path to write to, final path), and clear the folder whatever happens.

    Args:
        path: what is to be written or removed.
        doing: the verb for error messages, "write" or "remove".

    Raises:
        WriteError: the operating system reported an error, here or in the block (Rust libraries give its number in
            their text).
    """
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
    """Make a new working folder beside the target.

    Returns:
        The folder, and the file descriptor of the lock on it; None where the file system has no locks.
    """
    while True:
        work = target.with_name(f"{BEGINNING}{_boot()}-{secrets.token_hex(8)}{END}")
        os.mkdir(work)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # a sweeper that came between takes it for dead
            lock = _lock(work)
            if lock is None or _is_same(lock, work):
                return work, lock
            os.close(lock)


def _lock(work: Path) -> int | None:
    """Lock a working folder; the lock ends with this process at the latest.

    Returns:
        The file descriptor that holds the lock; None where the file system has no locks.

    Raises:
        FileNotFoundError: the folder is gone.
        BlockingIOError: another process holds the lock.
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
    """Whether the open descriptor still refers to the file or folder at `path`."""
    return os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path))


@contextlib.contextmanager
def _lock_of_dead(work: Path) -> Iterator[None]:
    """Hold the lock of a working folder whose writer is dead, for as long as the block lasts.

    A lock is only conclusive for writers on this machine since it was last started, containers included. For writers on
    other machines, and on file systems without locks, the time of the folder's last change decides.

    Raises:
        BlockingIOError: the writer is running, or may be.
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
    """The newest modification time (Unix seconds) in a working folder, not counting the contents of `old`."""
    old = work / "old"  # of which the contents are as old as the model
    return max(os.lstat(path).st_mtime for path in (work, *work.rglob("*")) if old not in path.parents)


@lru_cache
def _boot() -> str:
    """Eight hexadecimal digits for this machine, on Linux for its current boot; the same in all of its containers."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        text = platform.node()
    return f"{zlib.crc32(text.encode()):08x}"


def _clear(work: Path, tell: bool = False) -> None:
    """Move folders in `old` back where nothing has taken their place, then delete the working folder.

    Args:
        work: the working folder.
        tell: log a warning for each folder that is moved back.
    """
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


def _settle(new: Path, wait: bool = True) -> None:
    """Give everything that was written the mode of new files, and wait until it is on the disk, save for a file of
    which `wait` says otherwise.
    """
    mode = stat.S_IMODE(os.stat(new.parent).st_mode)  # as the umask, or the parent's access list, makes it
    folders = [(root, [os.path.join(root, name) for name in names]) for root, _, names in os.walk(new)]
    for path in [name for _, names in folders for name in names] if folders else [str(new)]:
        if not os.path.islink(path):
            runs = os.stat(path).st_mode & stat.S_IXUSR
            _set_mode(path, mode & (0o777 if runs else 0o666))
            if wait:
                sync(path)
    for root, _ in reversed(folders):
        _set_mode(root, mode & 0o777)
        _sync_folder(root)


def _set_mode(path: str, mode: int) -> None:
    before = stat.S_IMODE(os.stat(path).st_mode)
    if before & 0o777 != mode:
        os.chmod(path, before & ~0o777 | mode)


def _link(new: Path, target: Path) -> bool:
    """Put `new` in place without replacing anything. Returns False if the name is taken."""
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
    """Whether something other than an empty folder exists at `target`."""
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
    """Wait until a file's contents, or a folder's list of names, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Target) -> None:
    """The same as `sync` for a folder, on systems that can do it; on others nothing happens."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise

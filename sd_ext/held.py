"""One process at a time: a lock on a file that the system itself lifts when its holder ends, however that ends."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from . import whole
from .errors import InputError, TakenError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAMED = 200  # bytes that the holder's name may take; what is locked on Windows lies behind them, so that it can be read

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock on a file for as long as the block lasts, or until the process is gone.

    On a disk without locks the block runs all the same, after a warning.

    Args:
        path: the file, which is made if it is missing, and stays. Its text names the last holder.
        doing: what a holder does in the folder of the file, for the message: "trains".

    Raises:
        InputError: another process holds it.
        WriteError: the file cannot be made.
    """
    if not path.exists():
        with contextlib.suppress(TakenError):  # another was faster
            whole.write_text(path, "", overwrite=False)
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            _lock(descriptor)
        except BlockingIOError:
            holder = printable(os.read(descriptor, NAMED).decode(errors="replace").strip()) or "another process"
            raise InputError(
                f"{holder} {doing} in {path.parent} already; wait for it or stop it, or choose another folder"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s); see to it that no other process uses that folder", path, error)
        name = f"process {os.getpid()} on {platform.node()}".encode()[:NAMED]
        os.write(descriptor, name.ljust(NAMED))
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file. Raises `BlockingIOError` if another process has it, else `OSError` if there are no locks."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(descriptor, NAMED, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:
        raise BlockingIOError(*error.args) from error
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)

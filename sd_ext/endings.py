"""How a command ends: with its result, or with one sentence on the standard error and an exit code; never a traceback.

Exit codes: 0 done, 1 failed, 2 input that cannot work, 130 interrupted.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .errors import InputError, SdExtError, one_line

# Operating system errors that the user's input causes (exit code 2); others, such as a full disk, are failures (1).
USERS = {
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "EEXIST", "EINVAL", "EROFS")
}
CLOSED = "standard output was closed before all was written"


def collect_seldom() -> None:
    """For a process that is one command: let Python seldom look for objects that can go, and not at its end.

    torch and Diffusers bring a million objects that stay; going through them again and again took 2.5 of the 8.3 s of a
    first picture.
    """
    gc.set_threshold(100_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def run_to_end(command: Callable[[], Any], name: str) -> int:
    """Call `command` and return its exit code; exceptions become one sentence on the standard error.

    Args:
        command: returns the exit code, where None means 0; it may also raise `SystemExit`.
        name: what the sentence begins with, such as "sd-ext".

    Returns:
        The exit code.
    """

    def say(what: object, code: int) -> int:
        with contextlib.suppress(OSError, ValueError):  # the standard error may be closed too
            print(f"{name}: {one_line(str(what))}", file=sys.stderr)
        return code

    _fill_standard_streams()
    if sys.stdout is None:
        return say("standard output is closed; send it somewhere, such as to /dev/null", 2)
    escaped: list[str] = []
    try:
        os.getcwd()
        with _escaping(escaped):
            code = command() or 0
            sys.stdout.flush()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        # Typer and rich exit this way when the reader of our output has closed it.
        code = say(CLOSED, 1) if isinstance(leaving.__context__, BrokenPipeError) else code or _flush(say)
    except KeyboardInterrupt as stop:
        code = say(stop, 130) if str(stop) else 130
    except InputError as error:
        code = say(error, 2)
    except SdExtError as error:
        code = say(error, 1)
    except BrokenPipeError:
        _discard()
        code = say(CLOSED, 1)
    except OSError as error:
        _discard()
        code = say(_about(error), 2 if error.errno in USERS else 1)
    except MemoryError:
        code = say("there is not enough memory", 1)
    if escaped:
        say(f"what {escaped[0]} cannot hold was written as escapes; PYTHONIOENCODING=utf-8 writes it as it is", 0)
    return code


def _flush(say: Callable[[object, int], int]) -> int:
    """Flush the standard output; return 0, or say what failed and return 1."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard()
        return say(CLOSED if isinstance(error, BrokenPipeError) else _about(error), 1)
    return 0


def _about(error: OSError) -> str:
    """Describe an operating system error, with the file's name if it has one."""
    if error.filename is None and isinstance(error, FileNotFoundError):
        return "the working folder is gone; change to one that exists"
    what = error.strerror or str(error) or type(error).__name__
    return what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"


def _fill_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise a file opened later could get its number (0, 1 or 2), and what others print would be written into that
    file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _discard() -> None:
    """Redirect the standard output to /dev/null, so that no buffered text raises another error at exit."""
    with contextlib.suppress(Exception):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _escaping(escaped: list[str]) -> Iterator[None]:
    r"""Within the block, characters that the standard output's encoding lacks are written as \u escapes.

    Args:
        escaped: a list; the encoding's name is appended each time a character is escaped.
    """

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        with contextlib.suppress(UnicodeEncodeError):  # bytes of a file's name that are no text, as they are
            return codecs.lookup_error("surrogateescape")(error)
        escaped.append(error.encoding)
        return codecs.lookup_error("backslashreplace")(error)

    codecs.register_error("sd_ext.escape", escape)
    stream: Any = sys.stdout
    before = getattr(stream, "errors", None)
    changes = hasattr(stream, "reconfigure") and before in ("strict", "surrogateescape")
    if changes:
        stream.reconfigure(errors="sd_ext.escape")
    try:
        yield
    finally:
        if changes:
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=before)

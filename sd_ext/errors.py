"""Every exception this package raises on purpose.

    SdExtError
    ├── InputError (also ValueError)      an argument, file or setting that cannot work
    │   ├── UnknownNameError              a name that is not in a list we know; carries the closest ones
    │   ├── TableError                    a sampler table that breaks one of its invariants
    │   ├── ModelError                    a model folder that is missing, incomplete or unsafe to load
    │   ├── DamagedError                  a file that does not hold what was written into it
    │   └── WriteError (also OSError)     a file or folder that cannot be written; an existing one is left unchanged
    │       └── TakenError                ... because it exists already (also FileExistsError)
    ├── TrainingError (also RuntimeError) a run that cannot go on; the last good checkpoint is named
    ├── SeamError (also RuntimeError)     a private part of another library that we use is not in the version installed
    └── HubError (also RuntimeError)      the Hub refused, or could not be reached

The command line turns an `InputError` into one sentence and exit code 2. A message is always one line of printable
characters, whatever a stranger's file put into it, so that it is safe to show in a terminal and to paste.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

LONGEST = 2000  # characters of a message; a longer one, such as a list of every module's name, loses its middle


def printable(text: str) -> str:
    """`text` with control and invisible characters written as escapes, so that printing it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """`text` as one printable line: line breaks become spaces; a text longer than `LONGEST` loses its middle."""
    text = printable(re.sub(r"\s*[\n\r]\s*", " ", text.strip()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class SdExtError(Exception):
    """Base of every exception this package raises on purpose.

    Args:
        message: what, where and what to do; kept as one printable line.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


class InputError(SdExtError, ValueError):
    """An argument, file or setting that cannot work. The message says what, where and what is allowed."""


class UnknownNameError(InputError):
    """A name outside a known list.

    Args:
        kind: what was looked up, e.g. `"sampler"`.
        name: what the caller asked for.
        known: the names that exist; the closest are listed in the message.
        closest: those, where the caller knows better than a comparison of letters.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], closest: Iterable[str] = ()):
        known = sorted(known)
        lowered = {k.lower(): k for k in known}
        matches = difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.4)
        close = list(closest) or [lowered[k] for k in matches]
        hint = f"did you mean {', '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.closest = kind, name, close


class TableError(InputError):
    """A sampler table that breaks one of its invariants."""


class ModelError(InputError):
    """A model folder that is missing, incomplete or unsafe to load."""


class DamagedError(InputError):
    """A file that does not hold what was written into it: the disk, a copy or a transfer has changed it."""


class WriteError(InputError, OSError):
    """A file or folder that cannot be written; an existing one is left unchanged.

    Args:
        path: the file or folder.
        reason: why not: an operating system error, whose number is kept as `errno`, or words.
        doing: the verb of the message: "write" or "remove".
    """

    def __init__(self, path: object, reason: object, doing: str = "write"):
        super().__init__(f"cannot {doing} {path}: {getattr(reason, 'strerror', None) or reason}")
        self.errno, self.filename = getattr(reason, "errno", None), str(path)

    def __str__(self) -> str:
        return str(self.args[0])


class TakenError(WriteError, FileExistsError):
    """The file or folder exists already and was not to be replaced.

    Args:
        path: the file or folder.
    """

    def __init__(self, path: object):
        super().__init__(path, FileExistsError(errno.EEXIST, "it exists"))


class TrainingError(SdExtError, RuntimeError):
    """A training run that cannot go on. The message names the last good checkpoint."""


class HubError(SdExtError, RuntimeError):
    """The Hub refused what was asked, or could not be reached. The message never holds a token."""


class SeamError(SdExtError, RuntimeError):
    """A private part of another library that this package uses is missing in the installed version. See `sd_ext.seams`.

    The message names the library, its version, the part, what does not work without it, and what to do.
    """

"""TOML files in, dictionaries out (the standard library's reader since Python 3.11, `tomli` before)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sd_ext.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        InputError: no such file, or not TOML; the message says where.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error

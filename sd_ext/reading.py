"""The one way to read files that others may have written: JSON, JSON lines, TOML, CSV, text, and safetensors files.

Reading any file ends either with values of bounded size and depth, or with an `InputError` of one sentence that names
the file and the place in it. Only plain files are opened: never a named pipe, a device or a socket.

    read_json(path, dict[str, int])         the whole file, checked against a declared type (see `declared`)
    read_toml(path)                         the whole file
    read_json_lines(path)                   (place, value) for each line
    read_csv(path)                          (place, {column: text}) for each row
    open_tensors(path)                      a safetensors file
    read_text(path), read_bytes(path)       from `plain_files`, which says what is opened at all

Refused, because programs disagree about their meaning: an object that has the same key twice, NaN and infinity, and
whole numbers of more than 32 digits.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from .declared import check, joined, shown
from .disguised import FIRST, disguised
from .errors import InputError
from .plain_files import MIB, StrPath, decode, open_file, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

JSON_BYTES, TOML_BYTES = 32 * MIB, MIB
LINE_BYTES = MIB  # of a line of JSON, or of a row of CSV
HEADER_BYTES = 32 * MIB  # of the JSON at the start of a safetensors file
VALUES = 2**21  # in one JSON text: more would take hundreds of MB in memory
DEPTH = 64  # of objects and lists within one another
DIGITS = 32  # of a whole number; tokenizers write 10^30 for "no limit"


class _Unusable(Exception):
    """Says what is wrong with a value; `path` collects the keys and positions that lead to it, innermost first."""

    def __init__(self, problem: str):
        self.problem, self.path = problem, []


# ---- JSON, TOML ------------------------------------------------------------------------------------------------------


def read_json(
    path: StrPath,
    kind: Any = Any,
    *,
    finite: bool = True,
    limit: int = JSON_BYTES,
    error: type[InputError] = InputError,
) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        kind: the declared type of the value; see `declared`.
        finite: refuse NaN and infinity, which JSON does not have but Python and Diffusers write.
        limit: the most bytes the file may have.
        error: the kind of `InputError` to raise.

    Returns:
        The value.

    Raises:
        InputError: no such file, not JSON, too large or too deeply nested, the same key twice, or a value of another
            type.
    """
    try:
        text = read_text(path, limit)
    except InputError as problem:
        raise error(str(problem)) from None
    return parse_json(text, str(path), kind, finite=finite, error=error)


def parse_json(
    text: str | bytes, where: str, kind: Any = Any, *, finite: bool = True, error: type[InputError] = InputError
) -> Any:
    """Parse a JSON text.

    Args:
        text: the text, or its bytes.
        where: what it is called in messages, such as the file's name.
        kind, finite, error: as in `read_json`.

    Returns:
        The value.

    Raises:
        InputError: as in `read_json`.
    """
    try:
        text = decode(text, where) if isinstance(text, bytes) else text
        value = _parsed(text, where)
        _check_sane(value, where, finite)
    except InputError as problem:
        raise error(str(problem)) from None
    check(value, kind, where, error=error)
    return value


def _parsed(text: str, where: str) -> Any:
    if text.count(",") + text.count("[") + text.count("{") > VALUES:
        raise InputError(f"{where} holds more than {VALUES:,} values")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(f"{where} is not valid JSON ({line}column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise InputError(f"{where} is nested more than {DEPTH} levels deep") from None
    except _Unusable as error:
        raise InputError(f"{where}: {error.problem}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of an object's (key, value) pairs; raise `_Unusable` if a key stands twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Unusable(f"the key {shown(twice)} stands twice in one object; keep one")
    return made


def _whole(digits: str) -> int:
    # Python takes quadratic time for whole numbers of thousands of digits, or refuses them.
    """Parse a whole number, cut to twice the digits allowed; `_sane` then refuses numbers that are too long."""
    return int(digits[: 2 * DIGITS])


def read_toml(path: StrPath) -> dict[str, Any]:
    """Read a TOML file.

    Returns:
        Its top-level table.

    Raises:
        InputError: no such file, not TOML, too large or too deeply nested; names the place.
    """
    text = read_text(path, TOML_BYTES)
    # tomllib takes quadratic time for keys of thousands of parts, such as a.a.a.a = 1.
    bare = text.translate(dict.fromkeys(map(ord, " \t'\"")))
    try:
        if any(part.count(".") > DEPTH for part in re.findall(r"[^\n=,\[\]{}]+", bare)):
            raise RecursionError
        values = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path} is nested more than {DEPTH} levels deep") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise InputError(f"{path} is not valid TOML: {str(error).partition(';')[0]}") from None
    _check_sane(values, str(path), finite=True)
    return values


def _check_sane(value: Any, where: str, finite: bool) -> None:
    """Raise `InputError`, naming the place, for a value that `_sane` refuses."""
    try:
        _sane(value, finite, DEPTH)
    except _Unusable as error:
        place = f"{where}: {joined(error.path[::-1])}" if error.path else where
        raise InputError(f"{place} {error.problem}") from None


def _sane(value: Any, finite: bool, levels: int) -> None:
    """Raise `_Unusable` for nesting deeper than `levels`, numbers out of range, and text with unpaired surrogates."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise _Unusable("holds half of a character (a lone surrogate)")
    elif isinstance(value, int):
        if abs(value) >= 10**DIGITS:
            raise _Unusable(f"is a whole number of more than {DIGITS} digits")
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            raise _Unusable(f"is {value}; it must be a finite number")
    elif isinstance(value, dict | list):
        if levels == 0:
            raise _Unusable(f"is nested more than {DEPTH} levels deep")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            try:
                _sane(item, finite, levels - 1)
                if isinstance(key, str) and not key.isascii():
                    _sane(key, finite, 1)
            except _Unusable as error:
                error.path.append(key)
                raise


# ---- line by line ----------------------------------------------------------------------------------------------------


def read_lines(path: StrPath, within: StrPath | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line break) for each line of a text file of any size.

    Args:
        path: the file.
        within: a folder that symbolic links must not lead out of.

    Raises:
        InputError: the file cannot be opened or is not text (see `open_file` and `decode`), or a line is longer than
            `LINE_BYTES`.
    """
    with open_file(path, within) as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            lines: Iterator[Any] = io.StringIO(read_text(path, JSON_BYTES), newline="\n")
            yield from _limited(lines, path)
        else:
            file.seek(0)
            yield from stream_lines(file, path)


def stream_lines(stream: IO[bytes], where: StrPath) -> Iterator[tuple[int, str]]:
    """As `read_lines`, of a stream that is open, such as standard input; UTF-8 only.

    Args:
        stream: in binary mode.
        where: what it is called in messages.
    """
    yield from _limited(iter(lambda: stream.readline(LINE_BYTES + 1), b""), where)


def _limited(lines: Iterator[Any], where: StrPath) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_BYTES:
            raise InputError(f"{where}, line {number} is longer than {LINE_BYTES:,} bytes")
        yield number, line if isinstance(line, str) else _decoded_line(line, where, number)


def _decoded_line(line: bytes, path: StrPath, number: int) -> str:
    try:
        return decode(line, f"{path}, line {number}") if number == 1 or b"\0" in line else line.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text from line {number} on; save it as UTF-8") from None


def read_json_lines(
    path: StrPath, kind: Any = Any, *, finite: bool = True, within: StrPath | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each line of a file that has one JSON value a line; empty lines are skipped.

    Args:
        path: the file.
        kind, finite: as in `read_json`, for the value of each line.
        within: a folder that symbolic links must not lead out of.

    Raises:
        InputError: see `read_lines` and `read_json`; the message names the line.
    """
    for number, line in read_lines(path, within):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line.rstrip("\r\n"), where, kind, finite=finite)


def read_csv(path: StrPath, within: StrPath | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, {column: text}) for each row of a CSV file whose first row names the columns.

    A row with too few cells lacks its last columns; empty rows are skipped.

    Args:
        path: the file.
        within: a folder that symbolic links must not lead out of.

    Raises:
        InputError: see `read_lines`; or quotes that do not close, a column named twice, or more cells than columns.
    """
    rows = csv.reader((line for _, line in read_lines(path, within)), strict=True)
    columns: list[str] = []
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not columns:
                columns = row
                if twice := {name for name in columns if columns.count(name) > 1}:
                    raise InputError(f"{where}: the column {shown(min(twice))} stands twice; keep one")
            elif row:
                if len(row) > len(columns):
                    cells = f"{len(row)} cells and the first row {len(columns)}"
                    raise InputError(f"{where} has {cells}; put texts with commas in quotes")
                yield where, dict(zip(columns, row, strict=False))
    except csv.Error as error:
        raise InputError(f"{path} is not valid CSV (near line {rows.line_num}: {error})") from None


# ---- tensors ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_tensors(path: StrPath, error: type[InputError] = InputError) -> Iterator[Any]:
    """Open a safetensors file (`safetensors.safe_open`) for as long as the block lasts.

    Args:
        path: the file.
        error: the kind of `InputError` to raise.

    Yields:
        The open file; its tensors are read when they are asked for.

    Raises:
        InputError: not a plain file, or not a complete safetensors file. Raised in the block too, where a tensor cannot
            be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(path) as file:
            start = file.read(FIRST)
        if what := disguised(start):
            raise InputError(f"{path} {what}")
        length = int.from_bytes(start[:8], "little")
        if length > HEADER_BYTES:
            raise InputError(f"{path} is not a safetensors file (a header of {length:,} bytes)")
    except InputError as problem:
        raise error(str(problem)) from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} cannot be read as safetensors: {problem}") from problem

"""Files spoiled by chance: the same seed spoils the same file in the same way."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

Spoil = Callable[[bytes, random.Random], bytes]

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**9, 10**31, 1e308, -1e308, 1e-320, 0.5, "", "false", "null",
    "é\u2028", "../../etc/passwd", "a\x1b[2Jb", "x" * 5000, [], [[]], [None], ["a", 1], {}, {"a": {}}, [0] * 100,
]  # fmt: skip
NUMBERS = [
    "9" * 5001,
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "0x10",
    "1_000",
    "-0",
    "00",
    "1e-400",
    "1" * 33,
]
CHARACTERS = ["\0", "\x1b[2J", "\x07", "\r", "\u2028", "\u202e", "\ufeff", "\x85", "\\", '"', "'", "\\ud800", "\\u0000"]


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        if spoiled:
            spoiled[draw.randrange(len(spoiled))] ^= 1 << draw.randrange(8)
    return bytes(spoiled)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def empty(data: bytes, draw: random.Random) -> bytes:
    return draw.choice([b"", b" ", b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\0"])


def repeat_a_part(data: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:stop] + data[start:]


def leave_out_a_part(data: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[min(stop, start + 40) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    what = [draw.randbytes(draw.randrange(1, 20)), b"\0" * draw.randrange(1, 50), draw.choice(CHARACTERS).encode()]
    return data[:at] + draw.choice(what) + data[at:]


def change_encoding(data: bytes, draw: random.Random) -> bytes:
    text = data.decode("utf-8", "replace") + draw.choice(["", "é", "日本 🍎"])
    encoding = draw.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp037", "shift_jis"])
    return text.encode(encoding, "replace")


def change_a_number(data: bytes, draw: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data))
    if not found:
        return insert(data, draw)
    place = draw.choice(found)
    return data[: place.start()] + draw.choice(NUMBERS).encode() + data[place.end() :]


def lengthen(data: bytes, draw: random.Random) -> bytes:
    """A very long line, key or value."""
    at = draw.choice([0, len(data), data.find(b'"') + 1, data.find(b"\n") + 1])
    return (
        data[:at]
        + draw.choice([b"x", b" ", b"\n", b"[", b"a.", b'"a".']) * draw.choice([5000, 200_000, 1_500_000])
        + data[at:]
    )


def nest(data: bytes, draw: random.Random) -> bytes:
    depth = draw.choice([60, 70, 500, 5000, 100_000])
    deep = draw.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth])
    found = list(re.finditer(rb"(?<=[:=\[]) ?[\w.\"-]+", data))
    place = draw.choice(found).span() if found else (0, len(data))
    return data[: place[0]] + deep + data[place[1] :]


def repeat_a_key(data: bytes, draw: random.Random) -> bytes:
    keys = re.findall(rb'"[\w. -]+"(?= *:)', data) or [b'"a"']
    braces = [m.end() for m in re.finditer(rb"\{", data)] or [0]
    at = draw.choice(braces)
    return data[:at] + draw.choice(keys) + b": " + draw.choice([b"1", b"{}", b'"x"']) + b", " + data[at:]


def strange(draw: random.Random) -> Any:
    """A value of any type, of its own: it may be changed further."""
    return copy.deepcopy(draw.choice(STRANGE))


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(place for key, item in items for place in _places(item, (*path, key)))]
    return [path]


def change_types(data: bytes, draw: random.Random) -> bytes:
    """Values of a JSON text (the whole, or one line) by values of other types; keys go or are renamed."""
    lines = data.decode("utf-8", "replace").split("\n") if data.count(b"\n{") else [data.decode("utf-8", "replace")]
    number = draw.randrange(len(lines))
    try:
        value = json.loads(lines[number])
        _places(value)
    except (ValueError, RecursionError):
        return insert(data, draw)
    for _ in range(draw.choice([1, 1, 1, 3])):
        path = draw.choice(_places(value))
        if not path:
            value = strange(draw) if draw.random() < 0.1 else value
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if isinstance(holder, dict) and draw.random() < 0.2:
            renamed = draw.choice(["", "a\x1b", "x" * 3000, "../x", "é"])
            holder.update({renamed: holder.pop(path[-1])} if draw.random() < 0.5 else {})
            holder.pop(path[-1], None)
        else:
            holder[path[-1]] = strange(draw)
    lines[number] = json.dumps(value)
    return "\n".join(lines).encode()


def change_a_setting(data: bytes, draw: random.Random) -> bytes:
    """A value of a TOML text."""
    lines = data.decode("utf-8", "replace").split("\n")
    places = [n for n, line in enumerate(lines) if "=" in line]
    values = [*NUMBERS, "nan", "-inf", "true", '"x"', '""', "[]", "{}", "[1, 'a']", "1979-05-27", "{a = {b = 1}}",
              '"""\n"""',               '"\\u0000"', '"../x"', "'pkg.Class'", '"os.path.Class"']  # fmt: skip
    if places:
        number = draw.choice(places)
        lines[number] = f"{lines[number].partition('=')[0]}= {draw.choice(values)}"
    return "\n".join(lines).encode()


def in_header(spoil: Spoil) -> Spoil:
    """The same in the header of a safetensors file, whose length is then told truly."""

    def spoiled(data: bytes, draw: random.Random) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = spoil(data[8:end].rstrip(), draw)
        return len(header).to_bytes(8, "little") + header + data[end:]

    return spoiled


RAW: tuple[Spoil, ...] = (flip_bits, cut, empty, repeat_a_part, leave_out_a_part, insert)
TEXT: tuple[Spoil, ...] = (*RAW, change_encoding, change_a_number, lengthen, nest)
JSON: tuple[Spoil, ...] = (*TEXT, repeat_a_key, *[change_types] * 4)
TOML: tuple[Spoil, ...] = (*TEXT, *[change_a_setting] * 3)
TENSORS: tuple[Spoil, ...] = (*RAW, *map(in_header, JSON))

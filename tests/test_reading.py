"""Whatever a file holds, reading it gives values of bounded size or one sentence that names the file and the place."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

import pytest

from sd_ext.errors import InputError, ModelError, TrainingError, UnknownNameError
from sd_ext.plain_files import decode, open_file, read_bytes, read_text, why_not
from sd_ext.reading import open_tensors, parse_json, read_csv, read_json, read_json_lines, read_toml

DATA = {"name": "é", "runs": [1, 2.5, None, True], "deep": {"er": "x"}}


def saved(tmp_path, content: bytes, name: str = "file"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_fine_is_read(tmp_path, encoding):
    assert read_json(saved(tmp_path, json.dumps(DATA, ensure_ascii=False).encode(encoding))) == DATA
    assert read_toml(saved(tmp_path, 'a = "é"\n[b]\nc = [1, 2.0]'.encode(encoding))) == {"a": "é", "b": {"c": [1, 2.0]}}
    assert read_text(saved(tmp_path, "é\r\nb".encode(encoding))) == "é\r\nb"
    lines = saved(tmp_path, '{"a": "\u2028é"}\n\n[1]\r\n'.encode(encoding), "file.jsonl")
    assert list(read_json_lines(lines)) == [(f"{lines}, line 1", {"a": "\u2028é"}), (f"{lines}, line 3", [1])]
    table = saved(tmp_path, 'a,b\n1,"é, with\nlines"\n\n3\n'.encode(encoding), "file.csv")
    assert list(read_csv(table)) == [
        (f"{table}, line 3", {"a": "1", "b": "é, with\nlines"}),
        (f"{table}, line 5", {"a": "3"}),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1,\n "b"}', "line 2, column 5"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"a": {"b": [1, NaN]}}', r"a\.b\[1\] is nan; it must be a finite number"),
        (b'{"a": 1e999}', "a is inf"),
        (b'{"a": ' + b"7" * 5001 + b"}", "a is a whole number of more than 32 digits"),
        (b'{"a": 123456789012345678901234567890123}', "a is a whole number of more than 32 digits"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 levels"),
        (b"[" * 10**6, "nested more than 64 levels"),
        (b"[" + b"[]," * 2**21 + b"[]]", "holds more than 2,097,152 values"),
        (b'"' + b"a" * 2**25 + b'"', "such a file may have 33,554,432"),
        (b'"\\ud800"', "half of a character"),
        (b'{"\\udfff": 1}', "half of a character"),
        ('"é"'.encode("latin-1"), "not UTF-8 text from line 1 on; save it as UTF-8"),
        ('"é"'.encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        ('"é"'.encode("utf-16")[:-1], "not UTF-16 text"),
        ('"é"'.encode("utf-32"), "UTF-32"),
        (b'"\x1b[2J"', "not valid JSON"),
    ],
)
def test_what_is_not_fine_is_one_sentence_with_the_place(tmp_path, content, words):
    path = saved(tmp_path, content)
    with pytest.raises(InputError, match=words) as error:
        read_json(path)
    message = str(error.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a = 1\na = 2", "not valid TOML"),
        (b"a = " + b"1" * 5001, "not valid TOML"),
        (b"[a]\nb = " + b"1" * 33, "a.b is a whole number of more than 32 digits"),
        (b"a = [1, inf]", r"a\[1\] is inf"),
        (b"a." * 100_000 + b"a = 1", "nested more than 64 levels"),
        (b'"a". ' * 100_000 + b"a = 1", "nested more than 64 levels"),
        (b"a = " + b"[" * 10_000, "nested more than 64 levels"),
        (b"#" * 2**20 + b"#", "such a file may have 1,048,576"),
    ],
)
def test_toml_that_is_not_fine(tmp_path, content, words):
    start = time.process_time()
    with pytest.raises(InputError, match=words):
        read_toml(saved(tmp_path, content))
    assert time.process_time() - start < 5  # seconds; without a bound a key of 100,000 parts takes minutes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'a,b\n"1,2\n', "not valid CSV"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells and the first row 2; put texts with commas in quotes"),
        (b"a,b,a\n1,2,3\n", "the column 'a' stands twice"),
        (b"a,b\n1," + b"x" * 200_000, "not valid CSV"),
        (b"a,b\n1,\xff\n", "from line 2 on"),
        (b"a,b\n1,\0\n", "NUL"),
        (b"a" * (2**20 + 1), "line 1 is longer than"),
    ],
)
def test_csv_that_is_not_fine(tmp_path, content, words):
    with pytest.raises(InputError, match=words):
        list(read_csv(saved(tmp_path, content)))


def test_lines_name_themselves(tmp_path):
    path = saved(tmp_path, b'{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(InputError, match="line 2: a must be a whole number, got 'x'"):
        list(read_json_lines(path, dict[str, int]))
    with pytest.raises(InputError, match=r"line 2 is not UTF-8|from line 2 on"):
        list(read_json_lines(saved(tmp_path, b"1\n\xff\n")))


def test_infinity_where_it_is_allowed(tmp_path):
    path = saved(tmp_path, b'{"lambda_min_clipped": -Infinity}')
    assert read_json(path, finite=False) == {"lambda_min_clipped": -float("inf")}


def test_the_kind_of_error_is_the_callers(tmp_path):
    for content in (b"{", b"[]"):
        with pytest.raises(ModelError):
            read_json(saved(tmp_path, content), dict, error=ModelError)
    with pytest.raises(ModelError):
        read_json(tmp_path / "none", error=ModelError)


def test_what_is_no_plain_file_is_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    server.bind("socket")
    expected = {
        "pipe": "a named pipe", "link": "a device", "socket": "a socket", ".": "a folder", "circle": "cannot be read",
        "nowhere": "leads nowhere", "gone": "is not there", "x" * 256: "cannot be read", "a\0b": "cannot be read",
    }  # fmt: skip
    opened = []
    monkeypatch.setattr(os, "open", lambda *args, **_: opened.append(args))
    for name, words in expected.items():
        assert words in why_not(tmp_path / name)
        for read in (open_file, read_json, read_toml, lambda path: list(read_csv(path))):
            with pytest.raises(InputError, match=words):
                read(tmp_path / name)
    assert not opened
    server.close()


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("sd_ext.plain_files.why_not", lambda *_: "")
    assert read_bytes(tmp_path / "pipe", 10) == b""


def test_links_may_be_kept_within_a_folder(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    outside, inside = saved(tmp_path, b"out", "out"), saved(inner, b"in", "in")
    (inner / "leads out").symlink_to(outside)
    (inner / "stays").symlink_to(inside)
    (tmp_path / "door").symlink_to(inner)
    assert read_bytes(inner / "stays", 10, within=tmp_path / "door") == b"in"
    assert read_bytes(inner / "leads out", 10) == b"out"
    with pytest.raises(InputError, match="a link that leads out of"):
        read_bytes(inner / "leads out", 10, within=inner)


def test_a_file_of_tensors(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "good", {"made": "here"})
    with open_tensors(tmp_path / "good") as file:
        assert file.metadata() == {"made": "here"} and torch.equal(file.get_tensor("a"), torch.ones(2))
    whole = (tmp_path / "good").read_bytes()
    for content in (b"", whole[:-1], whole[:20], b"\xff" * 8 + whole[8:], whole.replace(b"F32", b"F99")):
        with pytest.raises(ModelError, match="damaged"), open_tensors(saved(tmp_path, content, "damaged"), ModelError):
            pass


def test_messages_are_one_printable_line():
    hostile = "a\x1b[2J\nb\r\n\u202ec\x00"
    for error in (InputError(hostile), TrainingError(hostile), UnknownNameError("thing", hostile, ["known"])):
        assert str(error).isprintable()
    assert str(InputError(hostile)) == r"a\x1b[2J b \u202ec\x00"
    assert str(InputError("é λ 日本 🍎")) == "é λ 日本 🍎"
    assert len(str(InputError("x" * 10**6))) < 2100


@dataclass
class Facts:
    steps: int
    names: tuple[str, ...] = ()
    points: tuple[tuple[int, float], ...] = ()
    more: dict[str, Any] | None = None


def test_text_of_another_file_is_named():
    with pytest.raises(InputError, match="the header: steps must be a whole number, got 'x'"):
        parse_json('{"steps": "x"}', "the header", Facts)
    with pytest.raises(InputError, match="NUL"):
        decode(b"a\0", "a caption")

"""The log: each step once, whatever happened while it was written."""

import json
import os

import pytest

from sd_ext.training.run.history import History, read_history


def test_entries_are_written_as_they_come(tmp_path):
    history = History(tmp_path / "history.jsonl", 0)
    for step in (1, 2):
        history.add(step, {"loss": 1 / step})
        assert read_history(tmp_path / "history.jsonl") == history.entries
    assert history.entries == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_steps_that_are_done_again_are_logged_once(tmp_path):
    path = tmp_path / "history.jsonl"
    first = History(path, 0)
    for step in range(1, 8):
        first.add(step, {"loss": float(step)})
    again = History(path, 4)  # the last checkpoint was of step 4
    assert [e["step"] for e in again.entries] == [1, 2, 3, 4]
    for step in range(5, 10):
        again.add(step, {"loss": float(step)})
    assert [e["step"] for e in read_history(path)] == list(range(1, 10))


def test_a_line_cut_off_at_any_byte_costs_that_line_only(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.1}) + "\n" for step in (1, 2)]
    for cut in range(len(lines[1])):
        path.write_text(lines[0] + lines[1][:cut])
        history = History(path, 9)
        kept = 2 if cut == len(lines[1]) - 1 else 1  # only the line break is missing
        assert [e["step"] for e in history.entries] == [1, 2][:kept]
        history.add(3, {"loss": 0.2})
        assert [e["step"] for e in read_history(path)] == [*[1, 2][:kept], 3]


def test_a_log_that_is_not_what_a_checkpoint_was_told_is_named(tmp_path, caplog):
    """A changed number, which no parser finds; lines that are gone. Later lines, which go, mean nothing."""
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    history.add(1, {"loss": 0.25})
    history.add(2, {"loss": 0.125})
    sealed, text = history.seal(), path.read_text()
    history.add(3, {"loss": 0.1})
    History(path, 2).check(sealed)
    History(path, 2).check(None)
    assert not caplog.records
    for damaged in (text.replace("0.25", "0.35"), text.splitlines(True)[1], ""):
        path.write_text(damaged)
        History(path, 2).check(sealed)
        assert f"{path} is damaged" in caplog.text
        caplog.clear()
    path.write_text("")
    History(path, 2, writes=False).check(sealed)  # the first process says it
    assert not caplog.records


def test_other_processes_write_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    other = History(path, 1, writes=False)
    other.add(2, {"loss": 0.0})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [e["step"] for e in other.entries] == [1, 2]


DAMAGE = [
    b"\xff\xfe",
    b"[1]",
    b'{"loss": 1}',
    b'{"step": "3"}',
    b'{"step": 2, "loss": "x"}',
    b"[" * 9999,
    b"\0" * 99,
    b"x" * 2**21,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=[str(each[:20]) for each in DAMAGE])
def test_damaged_lines_are_left_out_and_said(tmp_path, caplog, damage):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n' + damage + b'\n{"step": 2, "loss": 0.5}\n')
    history = History(path, 9)
    assert [entry["step"] for entry in history.entries] == [1, 2]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"{path}: damaged lines are left out of the log"
    ]
    assert "line 2" in caplog.text
    history.add(3, {"loss": 0.2})
    caplog.clear()
    assert [entry["step"] for entry in read_history(path)] == [1, 2, 3]
    assert not caplog.records


def test_a_log_that_cannot_be_read_at_all_stops_nothing(tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        assert read_history(tmp_path / name) == []
        assert f"{name}: damaged lines are left out" in caplog.text


def test_a_file_that_is_no_log_is_not_read_to_its_end(tmp_path, caplog):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"\n" * 5000 + b'{"step": 2}\n' + b"?\n" * 1_000_000 + b'{"step": 3}\n')
    assert [entry["step"] for entry in read_history(path)] == [1, 2]
    assert "first: line 5003 is not valid JSON" in caplog.text and "nothing is read from line 6003 on" in caplog.text

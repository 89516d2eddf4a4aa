"""The log: each step once, whatever happened while it was written."""

import json

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


def test_other_processes_write_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    other = History(path, 1, writes=False)
    other.add(2, {"loss": 0.0})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [e["step"] for e in other.entries] == [1, 2]

"""The judge of pictures (`benchmarks/scorer.py`): learns facts, is saved whole, and tells how often it errs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.folder import Artist, write_lines

BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks"


@pytest.fixture(scope="module")
def room():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("scorer", BENCHMARKS / "scorer.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
        sys.modules.pop("_report", None)


@pytest.fixture(scope="module")
def drawn(book, tmp_path_factory):
    """A set of 160 pictures."""
    folder, artist, rows = tmp_path_factory.mktemp("drawn"), Artist(book), []
    for number in range(160):
        made = artist.draw(0, number, 64)
        made.picture.save(folder / f"{number}.png")
        split = "drawings" if number % 8 == 0 else "train"
        rows.append({"file_name": f"{number}.png", "text": made.caption, **made.scene.facts(), "split": split})
    write_lines(folder / "metadata.jsonl", rows)
    (folder / "drawings").symlink_to(book.folder)
    return folder


def test_it_learns_is_saved_and_read_back(room, drawn, tmp_path, capsys):
    room.main([str(drawn), "--out", str(tmp_path / "scorer"), "--steps", "40", "--batch", "24"])
    assert "| concept, new drawings |" in capsys.readouterr().out
    about = json.loads((tmp_path / "scorer" / "scorer.json").read_text())
    assert about["accuracy"]["concept, a style it never saw"]["of"] == 8  # the drawings of the held-out style
    scorer = room.load_scorer(tmp_path / "scorer")
    rows = room.read_rows(drawn)
    learnt = [row for row in rows if row["split"] == "train"]
    assert about["pictures"] == len(learnt) == 140
    found = room.accuracy(scorer, drawn, learnt)
    for name in ("concept", "ground"):  # what it learnt it knows better than by guessing the commonest
        wanted = room.targets_of(learnt, scorer.labels)[name][:, 0]
        commonest = 100 * int(wanted[wanted >= 0].bincount().max()) / int((wanted >= 0).sum())
        assert found[name]["percent"] > commonest, name
    pictures = room.read_pictures(drawn, rows[:9])
    together, alone = room.judge(scorer, pictures), room.judge(scorer, pictures[:1])
    for name, labels in scorer.labels.items():
        assert together[name].shape == (9, len(labels))
        assert torch.allclose(together[name].sum(1), torch.ones(9), atol=1e-5)
        assert torch.allclose(together[name][:1], alone[name], atol=1e-4)


def test_what_is_certain_of_a_picture(room):
    one = {"shows": "one", "concepts": ["cat"], "colours": [""], "number": 1, "style": "flat"}
    assert room.truths({**one, "ground": "tint", "ground_colour": "blue"}) == {
        "concept": ["cat"], "style": ["flat"], "colour": [], "number": ["1"], "ground": ["pale"],
    }  # fmt: skip
    two = {**one, "shows": "two", "concepts": ["cat", "dog"], "colours": ["red", "blue"]}
    told = room.truths({**two, "ground": "coloured", "ground_colour": "blue"})
    assert told["concept"] == ["cat", "dog"] and told["colour"] == told["number"] == [] and told["ground"] == ["blue"]


def test_both_of_two_things_must_be_found(room):
    sure = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]])
    wanted = torch.tensor([[1, 0], [1, 0], [1, -1], [-1, -1]])
    assert room.right(sure, wanted) == (2, 3)


def test_intervals_hold_their_share_and_shrink(room):
    for of in (10, 100, 1000):
        for right in (0, of // 3, of):
            low, high = room.interval(right, of)
            assert 0 - 1e-9 <= low <= 100 * right / of + 1e-9 and 100 * right / of - 1e-9 <= high <= 100 + 1e-9
    widths = [room.interval(of // 2, of)[1] - room.interval(of // 2, of)[0] for of in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert room.interval(50, 100) == pytest.approx((40.4, 59.6), abs=0.1)
    assert room.interval(0, 0) == (0.0, 100.0)


def test_what_cannot_work(room, tmp_path, drawn):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    with pytest.raises(InputError, match="metadata lacks the facts"):
        room.read_rows(tmp_path)
    only = [{**row, "split": "train"} for row in room.read_rows(drawn)]
    write_lines(tmp_path / "metadata.jsonl", only)
    with pytest.raises(InputError, match="0 to judge by: draw more"):
        room.main([str(tmp_path), "--out", str(tmp_path / "scorer")])
    (tmp_path / "scorer.json").write_text('{"labels": {"style": ["flat"]}}')
    with pytest.raises(InputError, match="holds no scorer"):
        room.load_scorer(tmp_path)

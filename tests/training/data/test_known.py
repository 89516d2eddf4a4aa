"""What has not changed is not decoded, read or worked out again; what has is."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from PIL import Image

from sd_ext.training.data import known as module
from sd_ext.training.data import look
from sd_ext.training.data.buckets import Buckets
from sd_ext.training.data.known import FILE, Known, state_of
from sd_ext.training.data.pictures import Pictures, fingerprint
from sd_ext.training.encoding.cache import Cache
from sd_ext.training.lora import estimate

from ..lora_cases import a_task


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for each picture that is decoded."""
    seen, real = [], look.decode_picture
    monkeypatch.setattr(look, "decode_picture", lambda data: (seen.append(len(data)), real(data))[1])
    return seen


def test_pictures_are_decoded_once(picture_folder, tmp_path, decoded):
    folder = shutil.copytree(picture_folder, tmp_path / "set")
    Image.new("RGB", (130, 48), "red").save(folder / "red_bar.png")
    (folder / "blue_bar.png").write_bytes(b"no picture")

    def pictures(**more) -> Pictures:
        known = Known(tmp_path)
        made = Pictures(folder, Buckets((32,), 8), keep=False, known=known, **more)
        known.keep()
        return made

    first = pictures()
    assert len(decoded) == 12
    again = pictures()
    assert len(decoded) == 13  # what cannot be used is looked at again
    assert fingerprint(first, first.captions) == fingerprint(again, again.captions)
    assert (first.notes, first.problems, first.sizes) == (again.notes, again.problems, again.sizes)
    assert len(first.notes) == 1
    assert len(pictures(min_size=40).samples) < len(again.samples)  # judged anew, without decoding
    assert len(decoded) == 14
    Image.new("RGB", (130, 48), "blue").save(folder / "red_bar.png")
    changed = pictures()
    assert len(decoded) == 16
    assert fingerprint(first, first.captions) != fingerprint(changed, changed.captions)
    shutil.copy(picture_folder / "black_bar.png", folder / "black_bar.mask.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "black_bar.png", "mask_file_name": "black_bar.mask.png"}')
    assert pictures().masked
    assert len(decoded) == 17
    os.utime(folder / "black_bar.mask.png", (1, 1))
    assert pictures().masked
    assert len(decoded) == 18


def test_entries_of_the_cache_are_read_once(tmp_path, monkeypatch):
    known = Known(tmp_path)
    cache = Cache(tmp_path, known)
    names = [f"{number:064x}" for number in range(3)]
    jobs = {name: ("all", n) for n, name in enumerate(names)}

    def make(numbers):
        return [{"x": torch.tensor([float(number)])} for number in numbers]

    assert cache.fill(jobs, make, 2) == 3
    reads, real = [], Cache.read
    monkeypatch.setattr(Cache, "read", lambda self, key: (reads.append(key), real(self, key))[1])
    assert [cache.fill(jobs, make, 2), cache.fill(jobs, make, 2)] == [0, 0]
    assert len(reads) == 3
    assert cache.fact("spread", names[0], lambda: 0.5) == 0.5 == cache.fact("spread", names[0], lambda: 0.7)
    known.keep()
    assert Cache(tmp_path, Known(tmp_path)).fill(jobs, make, 2) == 0
    assert len(reads) == 3
    data = bytearray(cache.path(names[1]).read_bytes())
    data[-1] ^= 1
    cache.path(names[1]).write_bytes(data)
    cache.path(names[2]).unlink()
    assert Cache(tmp_path, Known(tmp_path)).fill(jobs, make, 2) == 2


def test_the_file_of_answers(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "MOST", 5)
    known = Known(tmp_path)
    for number in range(7):
        known.put("kind", str(number), [1, 2], number)
    known.keep()
    again = Known(tmp_path)
    assert (again.get("kind", "5", [1, 2]), again.get("kind", "5", [1, 3])) == (5, None)
    assert again.get("kind", "1", [1, 2]) is None and again.get("other", "5", [1, 2]) is None
    before = (tmp_path / FILE).stat().st_mtime_ns
    again.keep()
    assert (tmp_path / FILE).stat().st_mtime_ns == before  # nothing new
    (tmp_path / FILE).write_text("{broken")
    assert Known(tmp_path).get("kind", "5", [1, 2]) is None
    assert "what it knew is found out anew" in caplog.text
    assert state_of(tmp_path / "nothing") is None


def test_memory_is_estimated_once_for_the_same_settings(bases, picture_folder, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(estimate, "at_most", lambda work: (made.append(work), 7)[1])
    known = Known(tmp_path)
    for settings, count in (
        ({}, 1),
        ({"steps": 9}, 1),
        ({"learning_rate": 0.1}, 1),
        ({"rank": 3}, 2),
        ({"batch_size": 1}, 3),
    ):
        task = a_task(tmp_path, bases["sd15"], picture_folder, **settings)
        assert estimate.bound(task.workload, known) == 7
        assert len(made) == count

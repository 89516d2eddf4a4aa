"""Digests of weights: of contents, and quick for large files that have not changed."""

from __future__ import annotations

import os
import shutil

import pytest

from sd_ext.checked import file_digest
from sd_ext.models import digests, find_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 10)
    return tmp_path / "cache"


def test_digests_are_of_contents(tiny_pipeline_dir, tmp_path):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "other")
    one, other = (digests.weight_digests(find_model(path)) for path in (tiny_pipeline_dir, tmp_path / "other"))
    assert one == other
    assert set(one) == {"unet", "vae", "text_encoder"}
    file = next((tmp_path / "other" / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    changed = digests.weight_digests(find_model(tmp_path / "other"))
    assert {part for part in one if one[part] != changed[part]} == {"vae"}


def test_a_large_file_is_read_once(tmp_path, monkeypatch):
    path, reads = tmp_path / "large", []
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr("sd_ext.checked.file_digest", lambda path: reads.append(path) or file_digest(path))
    first = digests.quick_digest(path)
    assert digests.quick_digest(path) == first == file_digest(path)
    assert len(reads) == 1
    path.write_bytes(b"y" * 100)
    os.utime(path, ns=(1, 1))
    assert digests.quick_digest(path) == file_digest(path) != first
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 3}', b'{"a": [1, 2]}'])
def test_a_damaged_cache_costs_time_only(tmp_path, cache, content):
    (cache / "sd_ext").mkdir(parents=True)
    (cache / "sd_ext" / "digests.json").write_bytes(content)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 100)
    assert digests.quick_digest(path) == file_digest(path)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "large"
    path.write_bytes(b"x" * 100)
    assert digests.quick_digest(path) == file_digest(path)

"""Editing a header: its texts change, and nothing else, whatever they are."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from sd_ext.errors import InputError, WriteError
from sd_ext.lora import Adapter, Lora, ModuleName, describe, read_lora, save_lora
from sd_ext.models.edit import ENTRIES, edit_header

ONE = ModuleName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
texts = st.dictionaries(st.sampled_from(sorted(ENTRIES)), st.text(max_size=40), min_size=1, max_size=4)


def parts(path) -> tuple[dict, bytes]:
    """A safetensors file's header and everything after it, by the format's definition."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("edit") / "a.safetensors"
    tensors = {"down": torch.randn(4, 320), "up": torch.randn(320, 4)}
    save_lora(Lora({ONE: Adapter("lora", tensors, 2.0)}, {"ss_seed": "7", "x": "ü\n"}, "sd15"), path, "kohya")
    return path.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=1, max_size=3))
def test_any_edits_leave_tensors_and_hashes(made, tmp_path, edits):
    path = tmp_path / "a.safetensors"
    path.write_bytes(made)
    before, data = parts(path)
    said = dict(before["__metadata__"])
    for edit in edits:
        edit_header(path, edit)
        for name, text in edit.items():
            said.pop(ENTRIES[name], None)
            if text:
                said[ENTRIES[name]] = text
    after, same = parts(path)
    assert same == data
    assert after.pop("__metadata__") == said
    before.pop("__metadata__")
    assert after == before
    with safe_open(path, "pt") as file:
        assert file.metadata() == said
    assert hashlib.sha256(data).hexdigest() == said["sshs_model_hash"]
    assert describe(path).intact
    assert read_lora(path).metadata["x"] == "ü\n"


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b"])
def test_a_header_whose_length_begins_as_a_pickle_or_an_archive_does(start, made, tmp_path):
    path = tmp_path / "a.safetensors"
    old, length = int.from_bytes(made[:8], "little"), int.from_bytes(start, "little")
    if length < old:
        length += 1 << 16
    path.write_bytes(length.to_bytes(8, "little") + made[8 : 8 + old].ljust(length) + made[8 + old :])
    assert path.read_bytes().startswith(start)
    assert read_lora(path).metadata["x"] == "ü\n"
    edit_header(path, {"title": "A"})
    assert describe(path).intact


def test_a_file_without_any_text_and_back(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    edit_header(tmp_path / "a.safetensors", {"title": "A"})
    assert parts(tmp_path / "a.safetensors")[0]["__metadata__"] == {"modelspec.title": "A"}
    edit_header(tmp_path / "a.safetensors", {"title": ""})
    assert "__metadata__" not in parts(tmp_path / "a.safetensors")[0]


def test_what_cannot_be_changed_leaves_the_file(made, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(made)
    monkeypatch.setattr("sd_ext.models.edit.HEADER_BYTES", 5000)
    for changes, complaint in (
        ({"titel": "A"}, "did you mean 'title'"),
        ({"ss_seed": "8"}, "unknown entry of the header"),
        ({"title": "a\udc80"}, "no UTF-8 text"),
        ({"title": "a" * 6000}, "its header would have"),
    ):
        with pytest.raises(InputError, match=complaint):
            edit_header(path, changes)
    monkeypatch.setattr("shutil.copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WriteError):
        edit_header(path, {"title": "B"})
    assert path.read_bytes() == made
    (tmp_path / "b.safetensors").write_bytes(made[:-4])
    with pytest.raises(InputError, match="damaged or cut off"):
        edit_header(tmp_path / "b.safetensors", {"title": "B"})

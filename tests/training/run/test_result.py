"""A finished result tells when it is not any more what the run wrote."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from sd_ext import whole
from sd_ext.training.data.images import is_whole_png
from sd_ext.training.diffusion.previews import read_whole_pictures
from sd_ext.training.run.result import check, record


@pytest.fixture
def result(tmp_path) -> Path:
    with whole.folder(tmp_path / "model") as new:
        (new / "samples").mkdir()
        (new / "weights").write_bytes(bytes(range(256)))
        (new / "samples" / "0 1.png").write_bytes(b"picture")
        record(new, tmp_path / "model")
    return tmp_path / "model"


def test_what_is_as_it_was_is_not_said(result, caplog):
    assert check(result) == []
    (result / "mine").write_text("of one's own")
    assert check(result) == []
    result.with_name("model.sha256").unlink()
    (result / "weights").unlink()
    assert check(result) == []
    assert not caplog.records


@pytest.mark.parametrize("name", ["weights", "samples/0 1.png"])
def test_what_is_damaged_or_gone_is_named_with_what_to_do(result, caplog, name):
    data = bytearray((result / name).read_bytes())
    data[random.Random(name).randrange(len(data))] ^= 4
    (result / name).write_bytes(data)
    assert check(result) == [result / name]
    (result / name).unlink()
    assert check(result) == [result / name]
    for message in caplog.messages:
        assert f"{result / name} is not what the run wrote" in message and f"remove {result}, and" in message


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_others_can_check_it_too(result):
    command = ["sha256sum", "--check", "--strict", "model.sha256"]
    assert subprocess.run(command, cwd=result.parent, capture_output=True, check=False).returncode == 0
    (result / "weights").write_bytes(b"else")
    assert subprocess.run(command, cwd=result.parent, capture_output=True, check=False).returncode != 0


def test_pictures_to_read_again_are_whole_or_none(tmp_path, caplog):
    assert read_whole_pictures(tmp_path / "none", 2) is None
    assert not caplog.records
    draw = random.Random(0)
    for number in range(2):
        noise = Image.frombytes("RGB", (8, 8), draw.randbytes(192))
        noise.save(tmp_path / f"{number}.png")
    assert [picture.size for picture in read_whole_pictures(tmp_path, 2) or ()] == [(8, 8)] * 2
    assert read_whole_pictures(tmp_path, 3) is None
    good = (tmp_path / "1.png").read_bytes()
    for _ in range(100):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / "1.png").write_bytes(data)
        assert not is_whole_png(tmp_path / "1.png")
    assert read_whole_pictures(tmp_path, 2) is None
    assert f"{tmp_path / '1.png'} is damaged" in caplog.text and "drawn anew" in caplog.text

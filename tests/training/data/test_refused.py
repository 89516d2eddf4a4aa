"""What a data folder may hold and is not read: links out of it, pipes, sockets; each is left out and named."""

import io
import os
import socket
import tarfile

import pytest
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training.data.items import Item
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.report import report
from sd_ext.training.data.sources import read_folder, read_items


def png(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)
    return path


@pytest.fixture
def secret(tmp_path):
    """A picture, a text and a folder outside the data set."""
    png(tmp_path / "outside" / "secret.png")
    (tmp_path / "outside" / "secret.txt").write_text("a secret")
    return tmp_path / "outside"


@pytest.fixture
def data(tmp_path, secret, monkeypatch):
    """A data set with one good picture, and a bad neighbour of every kind."""
    folder = tmp_path / "set"
    png(folder / "good.png")
    (folder / "good.txt").write_text("good")
    (folder / "out.png").symlink_to(secret / "secret.png")
    png(folder / "told.png")
    (folder / "told.txt").symlink_to(secret / "secret.txt")
    png(folder / "piped.png")
    os.mkfifo(folder / "piped.txt")
    png(folder / "masked.png")
    os.mkfifo(folder / "masked.mask.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "linked").symlink_to(secret)
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)
        server.bind("socket.png")
        monkeypatch.chdir(tmp_path)
    return folder


REASONS = {
    "out.png": "a link that leads out",
    "told.png": "its caption told.txt is a link that leads out",
    "piped.png": "its caption piped.txt is a named pipe",
    "masked.png": "masked.mask.png is a named pipe",
    "pipe.png": "a named pipe",
    "device.png": "a link that leads out",
    "socket.png": "a socket",
    "linked": "a link to a folder, which is not followed",
}


def test_links_out_and_pipes_are_left_out_and_named(data, capsys):
    pictures = Pictures(data, 8)
    assert {sample.item.name for sample in pictures.samples} == {"good.png"}
    told = dict(line.split(": ", 1) for line in pictures.skipped)
    assert set(told) == set(REASONS)
    for name, reason in REASONS.items():
        assert reason in told[name]
    report(pictures, {})
    said = capsys.readouterr().err
    assert all(name in said for name in REASONS)


def test_links_within_a_folder_are_fine(tmp_path):
    png(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "set" / "a.png")
    (tmp_path / "door").symlink_to(tmp_path / "set")
    for folder in ("set", "door"):
        assert len(Pictures(tmp_path / folder, 8)) == 2


def test_metadata_is_held_to_the_same(data):
    lines = [f'{{"file_name": "{name}", "text": "t"}}' for name in ("good.png", "out.png", "pipe.png", "device.png")]
    (data / "metadata.jsonl").write_text("\n".join([*lines, '{"file_name": "linked/secret.png", "text": "t"}']))
    pictures = Pictures(data, 8)
    assert [sample.item.name for sample in pictures.samples] == ["good.png"]
    assert len(pictures.skipped) == 4
    (data / "metadata.jsonl").unlink()
    os.mkfifo(data / "metadata.jsonl")
    with pytest.raises(InputError, match=r"metadata\.jsonl is a named pipe"):
        read_items(data)


def test_metadata_elsewhere_is_left_out_and_named(tmp_path, secret):
    (secret / "metadata.jsonl").write_text('{"file_name": "secret.png", "text": "t"}')
    png(tmp_path / "set" / "train" / "a.png")
    (tmp_path / "set" / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "t"}')
    (tmp_path / "set" / "other").symlink_to(secret)
    pictures = Pictures(tmp_path / "set", 8)
    assert [sample.item.name for sample in pictures.samples] == ["train/a.png"]
    (told,) = pictures.skipped
    assert told.startswith("other: is a link to a folder, which is not followed")
    (tmp_path / "set" / "train").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="links to other folders are not followed"):
        read_items(tmp_path / "set")


def test_shards_are_held_to_the_same(tmp_path, secret):
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        archive.add(secret / "secret.png", "a.png")
    os.mkfifo(folder / "1.tar")
    (folder / "2.tar").symlink_to(tmp_path / "elsewhere.tar")
    (tmp_path / "elsewhere.tar").write_bytes((folder / "0.tar").read_bytes())
    pictures = Pictures(folder, 8)
    assert len(pictures) == 1
    assert [line.split(":")[0] for line in pictures.skipped] == ["1.tar", "2.tar"]
    (folder / "0.tar").unlink()
    with pytest.raises(InputError, match=r"1\.tar is a named pipe"):
        read_items(folder)


def test_a_table_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet is a named pipe"):
        read_folder(tmp_path, "train", None, None)


@pytest.mark.parametrize("repeats", ["1001", "2024", "9" * 5000])
def test_repeats_have_a_bound(tmp_path, repeats):
    png(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,repeats\na.png,{repeats}\n")
    with pytest.raises(InputError, match=r"line 2: repeats is .*; it must be a whole number from 1 to 1000"):
        read_items(tmp_path)
    if len(repeats) < 100:
        png(tmp_path / "set" / f"{repeats}_holiday" / "a.png")
        assert [item.repeats for item in read_items(tmp_path / "set")] == [1]
        with pytest.raises(InputError, match=f"{repeats}_holiday: repeats is '{repeats}'"):
            read_items(tmp_path / "set", folder_repeats=True)


def test_an_epoch_has_a_bound():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.raises(InputError, match="an epoch would have 30,000,000 samples"):
        Pictures([Item(str(n), file.getvalue, "a", repeats=1000) for n in range(30)], 8, repeats=1000)


def test_names_of_pictures_cannot_steer_the_terminal(tmp_path, capsys):
    png(tmp_path / "good.png")
    (tmp_path / "bad\x1b[2J.png").write_bytes(b"?")
    report(Pictures(tmp_path, 8), {})
    told = capsys.readouterr().err
    assert "bad" in told and "\x1b" not in told


def test_what_to_do_about_columns_and_folders_that_are_read_otherwise(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name;text\na.png;A\n")
    with pytest.raises(InputError, match="line 2: no file_name; separate columns by commas"):
        read_items(tmp_path)
    (tmp_path / "metadata.csv").write_text("a.png,A\n")
    with pytest.raises(InputError, match="no line below the first, which names the columns"):
        read_items(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "2023_holiday").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "2023_holiday" / "a.png")
    with pytest.raises(InputError, match=r"repeats is '2023'; .* rename the folder, or leave out"):
        read_items(tmp_path, folder_repeats=True)
    assert [item.repeats for item in read_items(tmp_path)] == [1]

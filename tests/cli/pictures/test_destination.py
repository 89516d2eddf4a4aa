"""Names of picture files: nothing is replaced unless told, and a refused one leaves nothing behind."""

from __future__ import annotations

import pytest

from sd_ext.cli.pictures import Destination, name_stem
from sd_ext.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return Destination(tmp_path)


def test_numbers_go_on_after_the_highest(tmp_path, folder):
    for name in ("apple-0002.png", "apple-pie-0009.png", "apple-x.png"):
        (tmp_path / name).write_bytes(b"")
    assert folder.write(b"a", "apple").name == "apple-0003.png"
    assert folder.write(b"b", "apple").name == "apple-0004.png"
    assert not list(tmp_path.glob(".*"))


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path, folder, monkeypatch):
    (tmp_path / "apple-0001.png").write_bytes(b"theirs")
    numbers = iter([1, 2])
    monkeypatch.setattr("sd_ext.cli.pictures.destination._free_number", lambda folder, stem: next(numbers))
    assert folder.write(b"ours", "apple").name == "apple-0002.png"
    assert (tmp_path / "apple-0001.png").read_bytes() == b"theirs"


def test_a_disk_without_links(tmp_path, folder, monkeypatch):
    def no_link(*names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    assert folder.write(b"a", "apple").read_bytes() == b"a"
    assert folder.write(b"b", "apple").name == "apple-0002.png"
    (tmp_path / "one.png").write_bytes(b"theirs")
    with pytest.raises(InputError, match="exists"):
        Destination(tmp_path, "one.png").write(b"ours", "apple")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apple-0001.png", "apple-0002.png", "one.png"]


def test_a_full_disk_leaves_nothing(tmp_path, folder, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*apple-0001\.png: No space left"):
        folder.write(b"a", "apple")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "apple.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="exists"):
        Destination.check(path, 1, overwrite=False)
    assert Destination.check(path, 1, overwrite=True).write(b"new", "") == path
    assert path.read_bytes() == b"new"


def test_where_pictures_cannot_go(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for out, pictures in [("file/deep/er", 1), ("file/a.png", 1), ("two.png", 2), ("a.gif", 1)]:
        with pytest.raises(InputError, match=r"cannot write|one file|only \.png"):
            Destination.check(tmp_path / out, pictures, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_checking_a_folder_does_not_make_it(tmp_path):
    destination = Destination.check(tmp_path / "deep" / "er", 2, overwrite=False)
    assert not list(tmp_path.iterdir())
    assert destination.write(b"a", "apple") == tmp_path / "deep" / "er" / "apple-0001.png"


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A red apple!", "a-red-apple"),
        ("../../etc", "etc"),
        ("リンゴ", "リンゴ"),
        ("?!", "picture"),
        ("a" * 99, "a" * 40),
    ],
)
def test_names_come_from_prompts(prompt, stem):
    assert name_stem(prompt) == stem

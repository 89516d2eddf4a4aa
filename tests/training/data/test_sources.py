"""Where pictures come from: folders with metadata or text files, shards, tables; and what metadata may not name."""

import csv
import io
import json
import sys
import tarfile

import pytest
from PIL import Image

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.data.items import Item, inside
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.report import report
from sd_ext.training.data.sources import hold_out, read_items
from sd_ext.training.data.unused import unused_files


def png(colour="red", size=(20, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def put(folder, **files):
    """Files by name, `__` for a dot; text or bytes."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def listed(source, *args, **options):
    return {item.name: item.caption for item in read_items(source, *args, **options)}


# Folders with metadata


def entries(folder, *rows, name="metadata.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_metadata_says_everything(tmp_path):
    put(tmp_path, a__png=png("red"), b__png=png("blue"), m__png=png("white"))
    entries(
        tmp_path,
        {"file_name": "a.png", "text": " a  red\nsquare ", "mask_file_name": "m.png", "repeats": 3},
        {"file_name": "b.png", "text": None, "split": "test"},
    )
    (a,) = read_items(tmp_path)
    assert (a.name, a.caption, a.repeats, a.read()) == ("a.png", "a red square", 3, png("red"))
    assert a.mask is not None
    assert a.mask() == png("white")
    assert listed(tmp_path, "test") == {"b.png": ""}
    assert list(listed(tmp_path, "all")) == ["a.png", "b.png"]
    with pytest.raises(InputError, match="no pictures with split 'held_out'; there are test, train"):
        read_items(tmp_path, "held_out")


def test_csv_says_the_same(tmp_path):
    rows = [
        {"file_name": "a.png", "text": 'tags, "quoted"', "split": "train", "repeats": 2, "mask_file_name": "m.png"},
        {"file_name": "b.png", "text": "", "split": "test", "repeats": "", "mask_file_name": ""},
    ]
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    by_csv = read_items(tmp_path, "all")
    (tmp_path / "metadata.csv").unlink()
    entries(tmp_path, *rows)
    assert by_csv == read_items(tmp_path, "all")
    put(tmp_path, metadata__csv="file_name\n")
    with pytest.raises(InputError, match="both"):
        read_items(tmp_path)


def test_subfolders_with_metadata_are_splits(tmp_path):
    entries(tmp_path / "train", {"file_name": "x.png", "text": "one"})
    entries(tmp_path / "test", {"file_name": "sub/x.png", "text": "two"})
    assert listed(tmp_path) == {"train/x.png": "one"}
    assert listed(tmp_path, "test") == {"test/sub/x.png": "two"}
    assert len(listed(tmp_path, "all")) == 2


def test_captions_in_a_field_of_another_name(tmp_path):
    entries(tmp_path, {"file_name": "a.png", "prompt": "p", "de": "d"}, {"file_name": "b.png"})
    assert listed(tmp_path) == {"a.png": "p", "b.png": ""}
    assert listed(tmp_path, text="de") == {"a.png": "d", "b.png": ""}
    with pytest.raises(UnknownNameError, match="'promt'; did you mean 'prompt'"):
        read_items(tmp_path, text="promt")


OUTSIDE = [
    "../a.png",
    "sub/../../a.png",
    "/etc/passwd",
    "..\\a.png",
    "C:\\a.png",
    "C:a.png",
    "\\\\host\\a.png",
    "",
    " ",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["file_name", "mask_file_name"])
def test_metadata_does_not_lead_out_of_its_folder(tmp_path, name, field):
    if field == "mask_file_name" and not name:
        return  # no mask
    (tmp_path / "a.png").write_bytes(png())
    entries(tmp_path / "set", {"file_name": "ok.png", "text": "t", field: name})
    with pytest.raises(InputError, match=r"line 1: .* is not a path inside"):
        read_items(tmp_path / "set")


def test_paths_inside_are_fine(tmp_path):
    for name in ("a.png", "sub/a.png", "sub\\a.png", "..a.png", "a..png", "./a.png"):
        assert inside(tmp_path, name, "here").resolve().is_relative_to(tmp_path)


@pytest.mark.parametrize("repeats", [0, -1, 1.5, "many", [2]])
def test_repeats_that_are_no_count(tmp_path, repeats):
    entries(tmp_path, {"file_name": "a.png", "repeats": repeats})
    with pytest.raises(InputError, match="line 1: repeats is"):
        read_items(tmp_path)


# Folders with text files


def test_pictures_with_text_files(tmp_path):
    put(tmp_path, a__png=png(), a__txt="\ufeffa cat, sitting\n", b__jpg=png(), b__caption="a dog", c__webp=png())
    put(tmp_path, **{"a.mask.png": png("white"), "b-masklabel.png": png("white"), "notes.txt": "no picture"})
    put(tmp_path, **{".hidden/x.png": png(), "._a.png": b"", "sub/d.PNG": png(), "sub/d.txt": "deep"})
    assert listed(tmp_path) == {"a.png": "a cat, sitting", "b.jpg": "a dog", "c.webp": "", "sub/d.PNG": "deep"}
    assert [item.name for item in read_items(tmp_path) if item.mask] == ["a.png", "b.jpg"]


def test_numbered_folders_repeat_and_name(tmp_path):
    put(
        tmp_path,
        **{"10_sks cat/a.png": png(), "10_sks cat/b.png": png(), "10_sks cat/b.txt": "own", "plain/c.png": png()},
    )
    plain = {item.name: (item.caption, item.repeats) for item in read_items(tmp_path)}
    assert plain == {"10_sks cat/a.png": ("", 1), "10_sks cat/b.png": ("own", 1), "plain/c.png": ("", 1)}
    notes = {item.name: item.notes for item in read_items(tmp_path)}
    assert [bool(note) for note in notes.values()] == [True, True, False]
    found = {item.name: (item.caption, item.repeats) for item in read_items(tmp_path, folder_repeats=True)}
    assert found == {"10_sks cat/a.png": ("sks cat", 10), "10_sks cat/b.png": ("own", 10), "plain/c.png": ("", 1)}
    assert len(Pictures(tmp_path, 8, folder_repeats=True)) == 21
    put(tmp_path, **{"0_none/d.png": png()})
    for pictures in (Pictures(tmp_path, 8), Pictures(tmp_path, 8, folder_repeats=True)):
        assert pictures.skipped == ["0_none/d.png: its folder 0_none says 0 repeats; rename it to train on it"]


def test_subfolders_are_splits_where_they_are_named_so(tmp_path):
    put(tmp_path, **{"train/a.png": png(), "test/b.png": png()})
    assert list(listed(tmp_path)) == ["a.png"]
    assert list(listed(tmp_path, "test")) == ["b.png"]
    assert len(listed(tmp_path, "all")) == 2
    with pytest.raises(InputError, match="no subfolder 'held_out'"):
        read_items(tmp_path, "held_out")


@pytest.mark.parametrize("bad", [b"\xff\xfe\x00", "caf\u00e9".encode("latin-1"), "hello".encode("utf-16-le")])
def test_a_caption_that_is_not_text_costs_its_picture_alone(tmp_path, bad):
    put(tmp_path, a__png=png(), a__txt=bad, b__png=png(), b__txt="B")
    pictures = Pictures(tmp_path, 8)
    assert pictures.captions == ["B"]
    (told,) = pictures.skipped
    assert told.startswith("a.png: its caption a.txt ") and told.endswith("save it as UTF-8")


def test_a_bad_entry_costs_its_picture_alone(tmp_path):
    put(tmp_path, **{f"{name}.png": png() for name in "abcde"})
    lines = [{"file_name": "a.png", "text": "A"}, {"file_name": "b.png", "text": {"en": "B"}}, {"text": "C"}]
    entries(
        tmp_path, *lines, {"file_name": "../d.png", "text": "D"}, {"file_name": "e.png", "text": ["E", "", "e", "E"]}
    )
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write("\n{not json\n")
    pictures = Pictures(tmp_path, 8)
    assert pictures.several == [("A",), ("E", "e")]
    assert [line.split(" (")[0].split(":")[0] for line in pictures.skipped] == [
        "b.png", "metadata.jsonl, line 3", "../d.png", "metadata.jsonl, line 6"
    ]  # fmt: skip
    unused = unused_files(tmp_path, "train", pictures.items)
    assert unused == {f"{name}.png": "a picture that the metadata does not list" for name in "bcd"}


def test_captions_of_all_spellings(tmp_path):
    put(tmp_path, a__png=png(), a__TXT="A", b__png=png(), **{"b.png.txt": "B", "c.jpg": png(), "c.Caption": "C"})
    assert listed(tmp_path) == {"a.png": "A", "b.png": "B", "c.jpg": "C"}
    entries(tmp_path / "lines", {"file_name": "a.png", "text": "", "prompt": "one\u2028two"})
    assert listed(tmp_path / "lines") == {"a.png": "one two"}


def test_files_that_are_not_used_are_named_with_the_reason(tmp_path):
    put(tmp_path, a__png=png(), a__txt="A", a__caption="second", b__txt="no picture", notes__md="x", film__mp4="x")
    put(
        tmp_path, **{"dog.mask.png": png(), "old.zip": "x", "meta_cap.json": "{}", ".DS_Store": "x", "sub/d.png": png()}
    )
    assert unused_files(tmp_path, "train", read_items(tmp_path)) == {
        "a.caption": "a caption, but a.txt is taken for a.png",
        "b.txt": "a text, and there is no picture b",
        "notes.md": "no picture, caption or metadata",
        "film.mp4": "a video",
        "dog.mask.png": "named like a mask, and there is no picture dog",
        "old.zip": "an archive, which is not opened",
        "meta_cap.json": "metadata of another name; only metadata.jsonl and metadata.csv are read",
        ".DS_Store": "hidden: its name begins with a dot",
    }
    put(tmp_path, **{"train/t.png": png()})
    assert unused_files(tmp_path, "train", read_items(tmp_path))["a.png"] == "outside of train, the folder of the split"


def test_what_is_left_out_not_used_or_changed_is_told(tmp_path, capsys):
    put(tmp_path, a__png=png(size=(90, 20)), a__txt="one\ntwo", b__png=b"?", c__zip="x")
    pictures = Pictures(tmp_path, 8)
    report(pictures, unused_files(tmp_path, "train", pictures.items))
    said = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "data: 1 picture, 1 sample an epoch, 1 size, 1 left out, 1 other file not used",
        "1 picture left out:",
        "b.png: no picture that Pillow can read",
        "1 file not used: an archive, which is not opened",
        "a.png: the 2 lines of its caption are read as one",
        "a.png: 78% of it is cut off at 8 x 8",
    ]


# Shards


def shard(path, **files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            data = content if isinstance(content, bytes) else content.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_shards_as_folder_glob_and_file(tmp_path):
    shard(tmp_path / "0.tar", a__png=png("red"), a__txt="red", b__jpg=png(), b__json='{"caption": "blue", "x": "y"}')
    shard(
        tmp_path / "1.tar", **{"d/c.png": png("green"), "d/c.mask.png": png("white"), "d/c.cls": "3", "e.txt": "alone"}
    )
    expected = {"0.tar/a.png": "red", "0.tar/b.jpg": "blue", "1.tar/d/c.png": ""}
    assert listed(tmp_path) == listed(str(tmp_path / "*.tar")) == expected
    assert listed(tmp_path / "0.tar", text="x") == {"0.tar/a.png": "", "0.tar/b.jpg": "y"}
    items = read_items(tmp_path, "all")
    assert [items[0].read(), items[2].read()] == [png("red"), png("green")]
    assert items[2].mask is not None
    assert items[2].mask() == png("white")
    with pytest.raises(InputError, match="shards have no splits"):
        read_items(tmp_path, "test")


def test_shards_are_never_extracted(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../up.png", "/abs.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    items = read_items(path)
    assert len(items) == 2
    assert all(item.read() == png() for item in items)
    assert [p.name for p in tmp_path.iterdir()] == ["0.tar"]


def test_damaged_shards(tmp_path):
    path = shard(tmp_path / "0.tar", a__png=png(size=(300, 300)), b__png=png())
    whole = path.read_bytes()
    for damage in (b"not an archive" * 99, whole[:700], whole[: whole.index(b"b.png") + 600]):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="not a whole, uncompressed tar archive"):
            read_items(tmp_path)
    shard(path, a__txt="no picture")
    with pytest.raises(InputError, match="no pictures"):
        read_items(tmp_path)


def test_a_shard_that_is_cut_later_is_a_broken_picture(tmp_path):
    path = shard(tmp_path / "0.tar", a__png=png(), b__png=png())
    items = read_items(path)
    path.write_bytes(path.read_bytes()[:1100])
    pictures = Pictures(items, 8)
    assert len(pictures) == 1
    assert pictures.skipped[0].startswith("0.tar/b.png: ")
    assert "bytes early" in pictures.skipped[0]


# Tables


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    library.disable_progress_bars()
    return library


def table(datasets, path, column="image", **columns):
    features = {name: datasets.Value("string") for name in columns}
    features |= {name: datasets.Image() for name in (column, "mask") if name == column or name in columns}
    count = len(next(iter(columns.values())))
    rows = {column: [{"bytes": png(size=(20 + i, 20)), "path": None} for i in range(count)], **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)


def test_a_folder_of_parquet_files(datasets, tmp_path):
    folder = tmp_path / "set"
    mask = [None, {"bytes": png("white"), "path": None}]
    table(datasets, folder / "data" / "train-00000-of-00001.parquet", text=["one", "two"], other=["x", "y"], mask=mask)
    table(datasets, folder / "data" / "test-00000-of-00001.parquet", text=["three"], other=["z"], mask=mask[:1])
    items = read_items(folder)
    assert [item.caption for item in items] == ["one", "two"]
    assert [Image.open(io.BytesIO(item.read())).width for item in items] == [20, 21]
    assert items[0].mask is None
    assert items[1].mask is not None
    assert items[1].mask() == png("white")
    assert [item.caption for item in read_items(folder, "test")] == ["three"]
    assert [item.caption for item in read_items(folder, "train", text="other")] == ["x", "y"]
    assert len(read_items(folder, "all")) == 3
    assert len(read_items(str(folder / "data" / "train*.parquet"))) == 2
    with pytest.raises(InputError, match="split 'nowhere'"):
        read_items(folder, "nowhere")
    with pytest.raises(UnknownNameError, match="column of text"):
        read_items(folder, "train", text="texd")
    with pytest.raises(UnknownNameError, match="column of pictures"):
        read_items(folder, "train", image="text")


def test_columns_are_found_by_what_they_hold(datasets, tmp_path):
    table(datasets, tmp_path / "a" / "x.parquet", column="photo", words=["w"])
    assert [item.caption for item in read_items(tmp_path / "a")] == ["w"]
    table(datasets, tmp_path / "b" / "x.parquet", this=["t"], that=["u"])
    with pytest.raises(InputError, match=r"which column .* holds the captions"):
        read_items(tmp_path / "b")
    datasets.Dataset.from_dict({"text": ["t"]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="no column of pictures"):
        read_items(tmp_path / "c.parquet")


def test_a_table_does_not_read_other_files_of_this_machine(datasets, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}], "text": ["a"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "x.parquet")
    items = read_items(tmp_path / "x.parquet")
    with pytest.raises(OSError, match="outside the data set"):
        items[0].read()


def test_a_data_set_of_the_hub(datasets, tmp_path, monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        if name != "owner/name":
            raise FileNotFoundError("no such repository")
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        return datasets.Dataset.from_dict({"image": [{"bytes": png(), "path": None}], "text": ["t"]}, features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    assert listed("owner/name", "validation") == {"owner/name[0]": "t"}
    assert asked == [("owner/name", "validation")]
    with pytest.raises(InputError, match=r"no folder of pictures at data/set, and as a data set of the Hub: .*no such"):
        read_items("data/set")


def test_without_the_library_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "x.parquet").write_bytes(b"")
    for source in (str(tmp_path), "owner/name"):
        with pytest.raises(InputError, match="pip install datasets"):
            read_items(source)


# Sources that are none


def test_what_is_no_source(tmp_path):
    (tmp_path / "file.zip").write_text("")
    (tmp_path / "empty").mkdir()
    for source, message in [
        ("", "no pictures named"),
        (tmp_path / "nowhere", "no folder of pictures"),
        (tmp_path / "file.zip", "is a file"),
        (tmp_path / "empty", "holds no pictures"),
        (tmp_path / "*.tar", "no file matches"),
        (tmp_path / "*.zip", "end in .zip"),
    ]:
        with pytest.raises(InputError, match=message):
            read_items(source)


def test_a_folder_of_two_kinds_is_asked_about(tmp_path):
    put(tmp_path, a__png=png())
    shard(tmp_path / "0.tar", b__png=png())
    with pytest.raises(InputError, match=r"holds pictures and \*.tar; say which"):
        read_items(tmp_path)
    assert list(listed(tmp_path / "*.tar")) == ["0.tar/b.png"]


# Holding out


def test_held_out_items_are_always_the_same_and_never_trained_on():
    items = [Item(f"{n}.png", bytes) for n in range(40)]
    train, held = hold_out(items, 0.25)
    assert (len(train), len(held)) == (30, 10)
    assert sorted(i.name for i in train + held) == sorted(i.name for i in items)
    again = hold_out(items[::-1], 0.25)[1]
    assert {i.name for i in again} == {i.name for i in held}
    assert (
        [len(part) for part in hold_out(items[:2], 0.01)] == [len(part) for part in hold_out(items[:2], 0.99)] == [1, 1]
    )
    with pytest.raises(InputError, match="single picture"):
        hold_out(items[:1], 0.5)

"""Whole or not at all: proven by a failure, and by a kill, at every single thing that a writer does to the disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sd_ext import whole
from sd_ext.errors import InputError, TakenError, WriteError

from .faults import disk_full, faulty_disk, in_child, input_output_error, interrupt, kill


def write_file(path: Path, text: str) -> None:
    whole.write_text(path, text)


def write_folder(path: Path, text: str) -> None:
    with whole.folder(path, overwrite=True) as new:
        (new / "part").mkdir()
        (new / "part" / "weights").write_text(text)
        (new / "index").write_text(text)


def read(path: Path) -> str | None:
    """What is at the path: one text, which all files must hold; None for nothing."""
    if path.is_file():
        return path.read_text()
    if not path.exists():
        return None
    texts = {p.relative_to(path).as_posix(): p.read_text() for p in path.rglob("*") if p.is_file()}
    assert set(texts) == {"part/weights", "index"} and len(set(texts.values())) == 1, texts
    return texts["index"]


WRITERS = pytest.mark.parametrize("write", [write_file, write_folder])
THERE = pytest.mark.parametrize("there", [None, "old"])


@WRITERS
@THERE
@pytest.mark.parametrize("fault", [input_output_error, disk_full, interrupt])
def test_after_an_error_at_any_operation_it_is_as_it_was_or_whole(tmp_path, write, there, fault):
    """And an error before the last rename leaves what was there; nothing stays beside it."""
    for at in range(1000):
        folder = tmp_path / str(at)
        folder.mkdir()
        target = folder / "mine"
        if there:
            write(target, there)
        raised = False
        with faulty_disk(folder, at, fault) as disk:
            try:
                write(target, "new")
            except (WriteError, KeyboardInterrupt):
                raised = True
        done = [operation.name for operation in disk.done]
        assert read(target) in ((there, "new") if raised else ("new",)), done
        if raised and not {"rename", "replace"} & set(done[: at + 1]):
            assert read(target) == there
        whole.sweep(folder)
        assert os.listdir(folder) in ([], ["mine"])
        if len(done) <= at:
            break
    assert at > 6 and not raised


@WRITERS
@THERE
def test_after_a_kill_at_any_operation_a_reader_finds_old_or_new(tmp_path, write, there):
    missing = 0
    for at in range(1000):
        folder = tmp_path / str(at)
        folder.mkdir()
        target = folder / "mine"
        if there:
            write(target, there)

        def work(folder: Path = folder, target: Path = target, at: int = at) -> None:
            with faulty_disk(folder, at, kill):
                write(target, "new")

        code = in_child(work)
        missing += bool(there) and not target.exists()
        assert read(whole.recovered(target)) in (there, "new")
        write(folder / "other", "next")
        assert sorted(os.listdir(folder)) in (["mine", "other"], ["other"])
        if code == 0:
            break
    assert at > 6 and code == 0
    assert missing == (write is write_folder and there is not None)  # between the two renames


def test_a_failing_second_rename_gives_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "mine", "old")
    rename, asked = os.rename, []

    def failing(source, target, **more):
        asked.append(target)
        if len(asked) == 2:
            raise OSError(errno.EIO, "Input/output error", str(source), None, str(target))
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_folder(tmp_path / "mine", "new")
    assert str(caught.value) == f"cannot write {tmp_path / 'mine'}: Input/output error"
    assert read(tmp_path / "mine") == "old" and os.listdir(tmp_path) == ["mine"]


def test_what_cannot_be_put_back_is_kept_and_comes_back_later(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "mine", "old")
    rename, asked = os.rename, []

    def failing(source, target, **more):
        asked.append(target)
        if len(asked) > 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="Input/output error"):
            write_folder(tmp_path / "mine", "new")
    assert not (tmp_path / "mine").exists()
    assert read(whole.recovered(tmp_path / "mine")) == "old"
    assert "mine is back" in caplog.text


def test_nothing_shows_before_the_end(tmp_path):
    with whole.file(tmp_path / "a") as new:
        new.write_text("half")
        assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="mine"), whole.file(tmp_path / "b") as new:
        new.write_text("half")
        raise ValueError("mine")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), Exception("I/O: oh no (os error 28)")])
def test_a_failing_disk_is_one_sentence_whoever_says_so(tmp_path, error):
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}/a: No space") as caught, whole.file(tmp_path / "a"):
        raise error
    assert isinstance(caught.value, OSError) and caught.value.errno == errno.ENOSPC
    sentence = f"^cannot write {tmp_path}/a: .*No such file.*'/no/source'$"
    with pytest.raises(InputError, match=sentence), whole.file(tmp_path / "a") as new:
        new.write_bytes(Path("/no/source").read_bytes())


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_modes_are_those_of_new_files(tmp_path, mask):
    from safetensors.numpy import save_file

    before = os.umask(mask)
    try:
        with whole.file(tmp_path / "weights") as new:
            save_file({}, new)  # its owner's alone
        with whole.folder(tmp_path / "model") as folder:
            save_file({}, folder / "weights")
            (folder / "run").touch(0o700)
            (folder / "part").mkdir(0o700)
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
    finally:
        os.umask(before)
    mode = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert mode["weights"] == mode["model/weights"] == mode["file"]
    assert mode["model"] == mode["model/part"] == mode["model/run"] == mode["folder"]


@contextmanager
def living_writer(target: Path) -> Iterator[None]:
    """Another process is within a block that writes `target`, and is killed there in the end."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with whole.file(target) as new:
            new.write_text("half")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(9)
    os.read(ready[0], 1)
    try:
        yield
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if whole.is_temporary(name)]


def test_living_writers_are_left_alone_and_dead_ones_swept(tmp_path):
    with living_writer(tmp_path / "theirs"):
        (theirs,) = temporaries(tmp_path)
        write_file(tmp_path / "mine", "text")
        assert (tmp_path / theirs / "new" / "theirs").read_text() == "half"
    assert temporaries(tmp_path) == [theirs]
    write_file(tmp_path / "mine", "text")
    assert os.listdir(tmp_path) == ["mine"]


def test_writers_of_one_process_leave_each_other_alone(tmp_path):
    with whole.file(tmp_path / "a") as a, whole.file(tmp_path / "b") as b:
        a.write_text("a")
        b.write_text("b")
        write_file(tmp_path / "c", "c")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize("where", ["another machine", "no locks"])
def test_where_locks_mean_nothing_age_decides(tmp_path, monkeypatch, where):
    with living_writer(tmp_path / "theirs"):
        pass
    (left,) = tmp_path.iterdir()
    if where == "another machine":
        left = left.rename(tmp_path / f"{whole.BEGINNING}00000000-1{whole.END}")
    else:
        monkeypatch.setattr(whole, "fcntl", None)
    whole.sweep(tmp_path)
    assert left.exists()
    for path in (left, *left.rglob("*")):
        os.utime(path, (0, 0))
    write_file(tmp_path / "mine", "text")
    assert os.listdir(tmp_path) == ["mine"]


def test_after_a_power_cut_between_the_renames_the_old_folder_is_back_soon(tmp_path, caplog):
    """The machine has started anew, so that no lock tells; but a minute does."""
    left = tmp_path / f"{whole.BEGINNING}00000000-1{whole.END}"
    write_folder(left / "old" / "mine", "old")
    write_folder(left / "new" / "mine", "new")
    assert not whole.recovered(tmp_path / "mine").exists()
    for path in (left, left / "new", left / "old", *(left / "new").rglob("*")):
        os.utime(path, (time.time() - 70,) * 2)
    assert read(whole.recovered(tmp_path / "mine")) == "old"
    assert os.listdir(tmp_path) == ["mine"] and "mine is back" in caplog.text


def test_a_sweep_between_making_and_locking_does_no_harm(tmp_path, monkeypatch):
    lock, swept = whole._lock, []

    def late(work: Path) -> int | None:
        if not swept:
            swept.append(work)
            whole.sweep(tmp_path)
            assert not work.exists()
        return lock(work)

    monkeypatch.setattr(whole, "_lock", late)
    write_file(tmp_path / "mine", "text")
    assert swept and os.listdir(tmp_path) == ["mine"]


def no_link(*names: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_without_overwrite_the_first_wins(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with whole.file(tmp_path / "a", overwrite=False) as new:
        new.write_text("mine")
    with pytest.raises(FileExistsError) as caught, whole.file(tmp_path / "a", overwrite=False):
        raise AssertionError("refused before anything is written")
    assert isinstance(caught.value, TakenError) and caught.value.errno == errno.EEXIST
    with pytest.raises(TakenError, match="b: it exists"), whole.file(tmp_path / "b", overwrite=False) as new:
        new.write_text("mine")
        (tmp_path / "b").write_text("meanwhile")
    assert (tmp_path / "b").read_text() == "meanwhile"
    with pytest.raises(TakenError), whole.folder(tmp_path / "c"):
        write_folder(tmp_path / "c", "meanwhile")
    assert read(tmp_path / "c") == "meanwhile"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_of_many_at_once_one_wins_and_all_are_whole(tmp_path):
    def one(number: int) -> None:
        try:
            whole.write_text(tmp_path / "first", str(number) * 10_000, overwrite=False)
            won.append(number)
        except TakenError:
            pass
        whole.write_text(tmp_path / "last", str(number) * 10_000)

    won: list[int] = []
    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    for path in (tmp_path / "first", tmp_path / "last"):
        assert len(path.read_text()) == 10_000 and len(set(path.read_text())) == 1
    assert sorted(os.listdir(tmp_path)) == ["first", "last"]


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "mine").mkdir()
    with whole.folder(tmp_path / "mine") as new:
        (new / "index").write_text("x")
    assert os.listdir(tmp_path / "mine") == ["index"]


def test_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    for name, write in (("a", write_file), ("b", write_folder)):
        write(tmp_path / "disk" / name, "old")
        (tmp_path / name).symlink_to(Path("disk") / name)
        write(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and read(tmp_path / "disk" / name) == "new"
    assert sorted(os.listdir(tmp_path / "disk")) == ["a", "b"]


def test_folders_are_made_and_no_file_is_taken_for_one(tmp_path):
    write_file(tmp_path / "x" / "y" / "z", "text")
    with pytest.raises(WriteError, match=rf"cannot write {tmp_path}/x/y/z/a: .*Not a directory: '{tmp_path}/x/y/z'"):
        write_file(tmp_path / "x" / "y" / "z" / "a", "text")


def test_the_longest_name_works_and_a_longer_one_is_named(tmp_path):
    write_file(tmp_path / ("n" * 255), "text")
    write_folder(tmp_path / ("m" * 255), "text")
    with pytest.raises(WriteError, match=f"cannot write {tmp_path}/{'n' * 256}: File name too long"):
        write_file(tmp_path / ("n" * 256), "text")
    assert not temporaries(tmp_path)


@pytest.mark.parametrize("number, raises", [(errno.EINVAL, False), (errno.EIO, True)])
def test_disks_that_cannot_sync_folders_will_do_but_failing_ones_will_not(tmp_path, monkeypatch, number, raises):
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if raises:
        with pytest.raises(OSError, match="Input/output error"):
            write_folder(tmp_path / "mine", "text")
    else:
        write_folder(tmp_path / "mine", "text")
        assert read(tmp_path / "mine") == "text"


def test_a_removed_folder_is_whole_until_it_is_gone(tmp_path):
    for at in range(100):
        write_folder(tmp_path / "mine", "text")

        def work(at: int = at) -> None:
            with faulty_disk(tmp_path, at, kill):
                whole.remove(tmp_path / "mine")

        code = in_child(work)
        assert read(whole.recovered(tmp_path / "mine")) in ("text", None)
        if code == 0:
            break
    whole.sweep(tmp_path)
    assert code == 0 and os.listdir(tmp_path) == []


def test_logs_grow_and_names_change(tmp_path):
    for line in ("one", "two"):
        whole.append(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    whole.move(tmp_path / "log", tmp_path / "moved")
    whole.append(tmp_path / "log", "three")
    with pytest.raises(TakenError):
        whole.move(tmp_path / "log", tmp_path / "moved")
    assert (tmp_path / "moved").read_text() == "one\ntwo\n"
    with faulty_disk(tmp_path, 1, disk_full), pytest.raises(WriteError, match=r"cannot write .*log: No space left"):
        whole.append(tmp_path / "log", "four")
    with pytest.raises(WriteError, match=r"cannot write .*/to: No such file"):
        whole.move(tmp_path / "none", tmp_path / "to")


def test_readers_of_what_is_nowhere_are_not_stopped(tmp_path):
    assert whole.recovered(tmp_path / "no" / "such") == tmp_path / "no" / "such"
    whole.sweep(tmp_path / "no")

"""The cache: named by content, whole whatever happens, filled by any number of processes."""

import errno
import logging
import os
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sd_ext import whole
from sd_ext.errors import InputError, TrainingError
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.encoding.cache import Cache, Cached, key, latent_key, text_key
from sd_ext.training.encoding.keys import encode

from ...faults import in_child

PARTS = st.recursive(
    st.one_of(st.text(), st.binary(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


def entry(number: int) -> dict[str, torch.Tensor]:
    return {"mean": torch.full((2, 3), float(number)), "std": torch.full((2, 3), number + 0.5, dtype=torch.bfloat16)}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def jobs(*numbers: int, group=None):
    return {key(n): (group(n) if group else None, n) for n in numbers}


def make(numbers):
    return [entry(n) for n in numbers]


# Keys


@given(PARTS, PARTS)
@settings(max_examples=60, deadline=None)
def test_no_two_parts_are_written_alike(a, b):
    assert (encode(a) == encode(b)) == (repr(a) == repr(b))


def test_keys_tell_apart_what_concatenation_would_not():
    lists = [("ab", "c"), ("a", "bc"), ("abc",), (("a", "b"), "c"), (1,), (1.0,), (True,), ("1",), (b"1",), (None,), ()]
    assert all(key(*a) != key(*b) for a, b in permutations(lists, 2))
    with pytest.raises(TypeError, match="set"):
        key({1})


def test_a_latent_is_found_again_by_content_only(picture_folder, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "other_name.png").write_bytes((picture_folder / "red_bar.png").read_bytes())
    pictures = Pictures(picture_folder, 16)
    copy = Pictures(tmp_path / "copy", 16)
    index = pictures.captions.index("red bar")
    encoder = "d" * 64
    base = latent_key(*pictures.content(index), encoder, torch.float16)
    assert base == latent_key(*copy.content(0), encoder, torch.float16)
    others = [
        latent_key(*pictures.content(0), encoder, torch.float16),  # another picture
        latent_key(*Pictures(picture_folder, 8).content(index), encoder, torch.float16),
        latent_key(*pictures.content(index, flipped=True), encoder, torch.float16),
        latent_key(pictures.digest(index), (16, 16), (0, 1), False, encoder, torch.float16),
        latent_key(*pictures.content(index), "e" * 64, torch.float16),
        latent_key(*pictures.content(index), encoder, torch.float32),
        latent_key(*pictures.content(index), encoder, torch.float16, "bf16 encoder"),
        text_key(pictures.digest(index), encoder, torch.float16),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_changed_bytes_of_a_picture_are_a_miss(picture_folder, tmp_path):
    data = (picture_folder / "red_bar.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data)
    before = Pictures(tmp_path, 16).digest(0)
    (tmp_path / "a.png").write_bytes((picture_folder / "blue_bar.png").read_bytes())
    assert Pictures(tmp_path, 16).digest(0) != before


def test_texts_are_found_by_text_encoder_and_settings():
    base = ("a cat", "digest", torch.float16, 2)
    others = [
        ("a dog", *base[1:]),
        (base[0], "other", *base[2:]),
        (*base[:2], torch.float32, 2),
        (*base[:3], 1),
        base[:3],
    ]
    assert len({text_key(*parts) for parts in [base, *others]}) == 6
    assert text_key(*base) == text_key(*base)


# Entries


def test_round_trip(tmp_path):
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.read(key(1)) is None
    cache.write(key(1), entry(1))
    assert same(cache.read(key(1)), entry(1))
    assert cache.path(key(1)).parent.name == key(1)[:2]


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped", "renamed", "foreign"])
def test_a_damaged_entry_is_removed_and_made_anew_and_told_once(tmp_path, caplog, damage):
    cache = Cache(tmp_path)
    cache.fill(jobs(1, 2), make, 4)
    path = cache.path(key(1))
    data = path.read_bytes()
    path.write_bytes(
        {
            "emptied": b"",
            "cut": data[:-1],
            "flipped": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
            "renamed": cache.path(key(2)).read_bytes(),
            "foreign": b"\x80\x04pickle" * 9,
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert cache.fill(jobs(1, 2), make, 4) == 1
        assert cache.fill(jobs(1, 2), make, 4) == 0
    assert [str(path) in record.message for record in caplog.records] == [True]
    assert same(cache.read(key(1)), entry(1))


def test_what_cannot_be_opened_is_not_removed(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.write(key(1), entry(1))

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="Too many open files"):
        patch.setattr("sd_ext.checked.safe_open", refuse)
        cache.read(key(1))
    assert same(cache.read(key(1)), entry(1))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_no_partial_entry(tmp_path, monkeypatch, code):
    cache = Cache(tmp_path)
    cache.write(key(1), entry(1))

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError if code == errno.ENOSPC else OSError) as caught:
        cache.fill(jobs(1, 2), make, 1)
    if code == errno.ENOSPC:
        assert str(tmp_path) in str(caught.value)
        assert "Free some space" in str(caught.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [cache.path(key(1))]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no cache can be kept"):
        Cache(tmp_path / "file")


def test_a_full_cache_that_may_only_be_read_is_used_and_one_with_gaps_is_refused(tmp_path, monkeypatch):
    Cache(tmp_path).fill(jobs(1, 2), make, 1)
    monkeypatch.setattr("sd_ext.training.encoding.cache.os.access", lambda *_: False)
    cache = Cache(tmp_path)
    assert cache.fill(jobs(1, 2), make, 1) == 0
    with pytest.raises(InputError, match="cannot be written to, and 1 of 3 entries are missing"):
        cache.fill(jobs(1, 2, 3), make, 1)
    cache.path(key(1)).write_bytes(b"damaged")
    with pytest.raises(InputError, match="1 of 2 entries are missing or damaged"):
        cache.fill(jobs(1, 2), make, 1)
    assert cache.path(key(1)).exists()


# Filling


def test_only_what_is_missing_is_made_in_batches_of_one_group(tmp_path):
    cache, seen = Cache(tmp_path), []

    def watched(numbers):
        seen.append(numbers)
        return make(numbers)

    odd = jobs(*range(10), group=lambda n: n % 2)
    assert cache.fill(odd, watched, 3) == 10
    assert all(len(batch) <= 3 and len({n % 2 for n in batch}) == 1 for batch in seen)
    assert sorted(n for batch in seen for n in batch) == list(range(10))
    seen.clear()
    assert cache.fill(odd, watched, 3) == 0
    assert not seen


def test_batches_do_not_depend_on_what_is_there_or_on_processes(tmp_path):
    """An encoder's last bits depend on the batch: after an interruption they must be those of a run without."""

    def sums(numbers):
        return [{"sum": torch.tensor([float(sum(numbers))])} for _ in numbers]

    def filled(name, **shares):
        cache = Cache(tmp_path / name)
        for share in shares.values():
            cache.fill(jobs(*range(8)), sums, 3, "", *share)
        return [cache.read(name)["sum"] for name in jobs(*range(8))]

    whole = filled("whole", one=(0, 1))
    assert filled("two", a=(0, 2), b=(1, 2)) == whole
    cache = Cache(tmp_path / "whole")
    for lost in (1, 5, 7):
        cache.path(key(lost)).unlink()
    assert cache.fill(jobs(*range(8)), sums, 3) == 3
    assert [cache.read(name)["sum"] for name in jobs(*range(8))] == whole


@pytest.mark.parametrize("threads", [0, 3])
def test_loading_ahead(tmp_path, threads):
    cache = Cache(tmp_path)
    cache.fill(jobs(*range(9)), make, 2, load=lambda n: n + 1, threads=threads)
    assert all(same(cache.read(key(n)), entry(n + 1)) for n in range(9))


def test_what_is_made_is_kept_when_interrupted(tmp_path):
    cache = Cache(tmp_path)

    def interrupted(numbers):
        if 5 in numbers:
            raise KeyboardInterrupt
        return make(numbers)

    with pytest.raises(KeyboardInterrupt):
        cache.fill(jobs(*range(9)), interrupted, 2)
    assert [n for n in range(9) if cache.read(key(n))] == [0, 1, 2, 3]
    assert cache.fill(jobs(*range(9)), make, 2) == 5


def test_a_bar_only_when_something_is_missing(tmp_path):
    cache, console = Cache(tmp_path), Console(record=True, force_terminal=True, file=open(os.devnull, "w"))  # noqa: SIM115
    cache.fill(jobs(1), make, 1, "encoding pictures", console=console)
    assert "encoding pictures" in console.export_text()
    cache.fill(jobs(1), make, 1, "encoding pictures", console=console)
    assert console.export_text() == ""


def test_what_dead_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    cache = Cache(tmp_path)
    cache.write(key(1), entry(1))

    def die() -> None:
        with whole.file(cache.path(key(1))):
            os._exit(9)

    assert in_child(die) == 9
    assert len(list(tmp_path.glob("*/.*"))) == 1
    with whole.file(cache.path(key(1)).with_name("mine")) as mine:
        cache.fill(jobs(1), make, 1)
        assert len(list(tmp_path.glob("*/.*"))) == 1 and mine.parent.exists()
        mine.touch()


PROCESSES = """
import os, signal, sys, time
import torch
from sd_ext.training.encoding.cache import Cache, key
torch.set_num_threads(1)
folder, what = sys.argv[1:]
jobs = {key(n): (None, n) for n in range(400 if what == "together" else 20000)}
make = lambda numbers: [{"x": torch.full((40, 50), float(n))} for n in numbers]

def start(process, processes):
    child = os.fork()
    if not child:
        Cache(folder).fill(jobs, make, 8, "", process, processes)
        os._exit(0)
    return child

def entries():
    return sum(name.endswith(".safetensors") for _, _, names in os.walk(folder) for name in names)

if what == "together":
    children = [start(0, 1), start(0, 1), start(0, 2), start(1, 2)]
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
else:
    for round in range(6):
        before, child = entries(), start(0, 1)
        while entries() < before + 15 + round:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
@pytest.mark.parametrize("what", [pytest.param("together", marks=pytest.mark.slow), "killed"])
def test_processes(tmp_path, what, caplog, fresh):
    """Four at once, two of them making the same and two sharing; and six in turn, each killed while it writes."""
    done = fresh(PROCESSES, tmp_path, what)
    assert done.returncode == 0, done.stderr
    cache = Cache(tmp_path)
    made = [path.stem for path in tmp_path.glob("??/*.safetensors")]
    assert (len(made) == 400) if what == "together" else (100 < len(made) < 20000)
    assert all(cache.read(name) is not None for name in made)
    assert not caplog.records
    numbers = [n for n in range(20000) if cache.path(key(n)).exists()]
    assert all(torch.equal(cache.read(key(n))["x"], torch.full((40, 50), float(n))) for n in numbers)  # type: ignore[index]


# Memory


def test_cached_reads_once_up_to_a_limit(tmp_path):
    cache = Cache(tmp_path)
    cache.fill(jobs(*range(4)), make, 4)
    size = sum(tensor.nbytes for tensor in entry(0).values())
    cached = Cached(cache, [key(n) for n in (0, 1, 2, 3, 0)], limit=2 * size)
    assert len(cached) == 5
    assert all(same(cached[i], entry(n)) for i, n in enumerate((0, 1, 2, 3, 0)))
    assert cached[0] is cached[4]
    assert cached.held == 2 * size
    for n in range(4):
        cache.path(key(n)).unlink()
    assert same(cached[1], entry(1))
    with pytest.raises(TrainingError, match="gone from the cache; start again"):
        cached[2]


def test_cached_by_any_name_and_stacked(tmp_path):
    cache = Cache(tmp_path)
    cache.fill(jobs(1, 2), make, 4)
    cached = Cached(cache, {(0, False): key(1), (0, True): key(2)})
    stacked = cached.stack([(0, True), (0, False)])
    assert torch.equal(stacked["mean"][:, 0, 0], torch.tensor([2.0, 1.0]))
    assert stacked["std"].shape == (2, 2, 3)

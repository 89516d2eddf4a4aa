"""A checkpoint is whole or not there; the old one goes only after the new one is complete."""

import errno
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from sd_ext import whole
from sd_ext.errors import DamagedError, InputError, TrainingError
from sd_ext.training.run import checkpoint

from ...faults import disk_full, faulty_disk, in_child, input_output_error, interrupt, kill

GROUPS = {"model.safetensors": {"w": torch.arange(4.0)}, "ema.safetensors": {"w": torch.ones(4)}}


def test_round_trip(tmp_path):
    target = tmp_path / "step-00000007"
    checkpoint.write_folder(target, GROUPS, {"step": 7})
    tensors, state = checkpoint.load(target)
    assert state == {"step": 7}
    assert torch.equal(tensors["model.safetensors"]["w"], torch.arange(4.0))
    assert checkpoint.checkpoints(tmp_path) == [target]


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 9):
        checkpoint.write_folder(tmp_path / f"step-{step:08d}", GROUPS, {"step": step})
    checkpoint.prune(tmp_path, keep=2)
    assert [checkpoint.load(p)[1]["step"] for p in checkpoint.checkpoints(tmp_path)] == [9, 10]


def bits(path: Path) -> list[tuple[int, int]]:
    """Some bits of a file, (byte, bit), its first and last bytes among them."""
    size, draw = path.stat().st_size, random.Random(path.name)
    return [(0, 0), (size - 1, 7), *((draw.randrange(size), draw.randrange(8)) for _ in range(60))]


def flip(path: Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json"])
def test_a_flipped_bit_is_found_or_means_nothing(tmp_path, name):
    """In the header, in the tensors, in the state: it is named, but for spaces that may be any."""
    target, found = tmp_path / "step-00000003", 0
    checkpoint.write_folder(target, GROUPS, {"step": 3, "loss": 0.1, "words": ["a"]})
    expected = repr(checkpoint.load(target))
    for byte, bit in bits(target / name):
        flip(target / name, byte, bit)
        try:
            assert repr(checkpoint.load(target)) == expected
        except DamagedError as error:
            found += 1
            assert "step-00000003 is damaged" in str(error) and name in str(error)
        flip(target / name, byte, bit)
    assert found > 40
    assert repr(checkpoint.load(target)) == expected


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_file_that_is_gone_or_another_steps_is_damage(tmp_path, name):
    for step in (3, 4):
        checkpoint.write_folder(tmp_path / f"step-0000000{step}", GROUPS, {"step": step})
    (tmp_path / "step-00000003" / name).unlink()
    with pytest.raises(DamagedError, match=name):
        checkpoint.load(tmp_path / "step-00000003")
    if name != "state.json":
        shutil.copy(tmp_path / "step-00000004" / name, tmp_path / "step-00000003" / name)
        with pytest.raises(DamagedError, match=name):
            checkpoint.load(tmp_path / "step-00000003")


def test_the_one_before_a_damaged_one_is_taken_and_said(tmp_path, caplog):
    for step in (1, 2, 3):
        checkpoint.write_folder(tmp_path / f"step-0000000{step}", GROUPS, {"step": step})
    for step in (2, 3):
        flip(tmp_path / f"step-0000000{step}" / "model.safetensors", -3, 2)
    path, _, state = checkpoint.newest_whole(tmp_path)
    assert (path.name, state) == ("step-00000001", {"step": 1})
    for step, said in zip((3, 2), caplog.messages, strict=True):
        assert f"step-0000000{step} is damaged" in said and "goes on from" in said and "step-00000001" in said
        assert f"set aside as {tmp_path}/damaged-step-0000000{step}" in said
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000001"]
    checkpoint.write_folder(tmp_path / "step-00000003", GROUPS, {"step": 3})  # it is made again
    assert checkpoint.newest_whole(tmp_path)[0].name == "step-00000003"
    flip(tmp_path / "step-00000003" / "model.safetensors", -3, 2)
    assert checkpoint.newest_whole(tmp_path)[0].name == "step-00000001"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "damaged-step-00000002", "damaged-step-00000003", "step-00000001",
    ]  # fmt: skip


def test_where_all_are_damaged_nothing_is_begun_anew_in_silence(tmp_path):
    assert checkpoint.newest_whole(tmp_path) is None
    checkpoint.write_folder(tmp_path / "step-00000001", GROUPS, {"step": 1})
    flip(tmp_path / "step-00000001" / "model.safetensors", -3, 2)
    with pytest.raises(TrainingError, match=r"no checkpoint is whole: .*step-00000001.*Remove"):
        checkpoint.newest_whole(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_what_only_cannot_be_read_now_is_not_set_aside(tmp_path, monkeypatch):
    checkpoint.write_folder(tmp_path / "step-00000001", GROUPS, {"step": 1})

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("sd_ext.checked.safe_open", refuse)
    with pytest.raises(TrainingError, match=r"step-00000001 cannot be read: .*Too many open files"):
        checkpoint.newest_whole(tmp_path)


def test_restore_copies_or_says_what_differs(tmp_path):
    kept = {"a": torch.ones(2), "b": torch.ones(3, 2), "c": torch.ones(1), "d": torch.ones(1)}
    into = {name: torch.zeros_like(value) for name, value in kept.items()}
    checkpoint.restore(tmp_path, kept, into)
    assert all(torch.equal(into[name], kept[name]) for name in kept)

    other = {
        "a": torch.zeros(2),
        "b": torch.zeros(4, 2),
        "c": torch.zeros(1, dtype=torch.bfloat16),
        "e": torch.zeros(1),
    }
    expected = (
        r"step-1 is from another configuration: only the checkpoint has d; it lacks e; "
        r"b is float32 \(3, 2\) in it and float32 \(4, 2\) here; c is float32 \(1,\) in it and bfloat16 \(1,\) here"
    )
    with pytest.raises(InputError, match=expected):
        checkpoint.restore(tmp_path / "step-1", kept, other)
    assert not any(value.any() for value in other.values())


def write_and_prune(folder: Path, step: int) -> None:
    checkpoint.write_folder(folder / f"step-{step:08d}", GROUPS, {"step": step})
    checkpoint.prune(folder, keep=1)


@pytest.mark.parametrize(
    "fault",
    [kill, *(pytest.param(each, marks=pytest.mark.slow) for each in (disk_full, input_output_error, interrupt))],
)
def test_there_is_always_a_whole_checkpoint(tmp_path, fault):
    """Whichever operation fails: step 1 or step 2 is whole, what is said names it, and the run goes on."""
    stopped, log = set(), tmp_path / "log"
    for at in range(1000):
        folder = tmp_path / str(at)
        write_and_prune(folder, 1)

        def work(folder: Path = folder, at: int = at) -> int:
            with faulty_disk(folder, at, fault):
                try:
                    write_and_prune(folder, 2)
                except (TrainingError, OSError) as error:
                    print(error)
                    return 1
                except KeyboardInterrupt:
                    return 130
            return 0

        log.unlink(missing_ok=True)
        code, said = in_child(work, log), log.read_text()
        assert code in ({kill: -9, interrupt: 130}.get(fault, 1), 0), said
        found = [checkpoint.load(path)[1]["step"] for path in checkpoint.checkpoints(folder)]
        assert found in ([1], [1, 2], [2])
        stopped.add(tuple(found))
        if "cannot write" in said:
            assert re.search(rf"cannot write {folder}/step-00000002: .* needs 1 MB", said), said
            assert re.search(r"last whole checkpoint: .*step-0000000[12], from which the run resumes", said), said
        if code and fault is not kill:
            whole.sweep(folder)
            assert {path.name for path in folder.iterdir()} <= {"step-00000001", "step-00000002"}
        write_and_prune(folder, 2)
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
        if code == 0 and found == [2] and at > 40:
            break
    assert {(1,), (1, 2), (2,)} <= stopped


def test_a_disk_that_is_really_full(tmp_path):
    """The operating system's own refusal of a file too large, inside safetensors' writer, which is not Python's."""
    resource = pytest.importorskip("resource")
    checkpoint.write_folder(tmp_path / "step-00000001", GROUPS, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"last whole checkpoint: .*step-00000001") as caught:
            large = {"model.safetensors": {"w": torch.zeros(1_000_000)}}
            checkpoint.write_folder(tmp_path / "step-00000002", large, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "It needs 5 MB" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_first_checkpoint_has_none_before_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="last whole checkpoint: none"):
        checkpoint.write_folder(tmp_path / "file" / "step-00000001", GROUPS, {"step": 1})


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    """bitsandbytes keeps one table for all weights."""
    table = torch.arange(3.0)
    checkpoint.write_folder(tmp_path / "step-1", {"o.safetensors": {"a": table, "b": table}}, {})
    tensors, _ = checkpoint.load(tmp_path / "step-1")
    assert torch.equal(tensors["o.safetensors"]["a"], table)
    assert torch.equal(tensors["o.safetensors"]["b"], table)


def test_one_that_is_there_is_not_written_again(tmp_path):
    checkpoint.write_folder(tmp_path / "step-1", GROUPS, {"step": 1})
    before = (tmp_path / "step-1" / "state.json").stat()
    checkpoint.write_folder(tmp_path / "step-1", GROUPS, {"step": 1})
    assert (tmp_path / "step-1" / "state.json").stat() == before

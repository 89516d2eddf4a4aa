"""A checkpoint is whole or not there; the old one goes only after the new one is complete."""

import contextlib
import errno
import re
from pathlib import Path

import pytest
import torch

from sd_ext.errors import InputError, TrainingError
from sd_ext.training.run import checkpoint

GROUPS = {"model.safetensors": {"w": torch.arange(4.0)}, "ema.safetensors": {"w": torch.ones(4)}}


def test_round_trip(tmp_path):
    target = tmp_path / "step-00000007"
    checkpoint.write_folder(target, GROUPS, {"step": 7})
    tensors, state = checkpoint.load(target)
    assert state == {"step": 7}
    assert torch.equal(tensors["model.safetensors"]["w"], torch.arange(4.0))
    assert checkpoint.checkpoints(tmp_path) == [target]


@pytest.mark.parametrize("survives", [0, 1])
def test_a_kill_while_writing_leaves_the_last_one_whole(tmp_path, monkeypatch, survives):
    checkpoint.write_folder(tmp_path / "step-00000001", GROUPS, {"step": 1})
    real, calls = checkpoint.save_file, []

    def dies(tensors, path):
        if len(calls) == survives:
            path.write_bytes(b"half a fi")
            raise KeyboardInterrupt  # like a kill: no handler of ours runs
        calls.append(path)
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_folder(tmp_path / "step-00000002", GROUPS, {"step": 2})
    monkeypatch.setattr(checkpoint, "save_file", real)

    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000001"]
    assert checkpoint.load(tmp_path / "step-00000001")[1] == {"step": 1}
    checkpoint.write_folder(tmp_path / "step-00000002", GROUPS, {"step": 2})  # the resumed run passes there again
    checkpoint.prune(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_a_kill_before_the_rename_leaves_the_last_one_whole(tmp_path, monkeypatch):
    checkpoint.write_folder(tmp_path / "step-00000001", GROUPS, {"step": 1})

    def dies(path):
        if path.name.startswith(checkpoint.PARTIAL):
            raise KeyboardInterrupt
        return None

    monkeypatch.setattr(checkpoint, "flush", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_folder(tmp_path / "step-00000002", GROUPS, {"step": 2})
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00000001"]


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 9):
        checkpoint.write_folder(tmp_path / f"step-{step:08d}", GROUPS, {"step": step})
    checkpoint.prune(tmp_path, keep=2)
    assert [checkpoint.load(p)[1]["step"] for p in checkpoint.checkpoints(tmp_path)] == [9, 10]


def test_damage_is_named(tmp_path):
    target = tmp_path / "step-00000003"
    checkpoint.write_folder(target, GROUPS, {"step": 3})
    (target / "model.safetensors").write_bytes(b"?")
    with pytest.raises(TrainingError, match="step-00000003 is damaged"):
        checkpoint.load(target)


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


class Disk:
    """Lets the first `survives` operations of a checkpoint's writing and pruning through, then fails."""

    def __init__(self, monkeypatch, survives: int, failure: BaseException):
        self.left, self.failure, self.done = survives, failure, []
        for owner, name in (
            (checkpoint, "save_file"), (checkpoint, "flush"), (checkpoint.shutil, "rmtree"),
            (Path, "mkdir"), (Path, "write_text"), (Path, "rename"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name), name))

    def watched(self, real, name: str):
        def call(*args, **more):
            if self.left == 0 and not (name == "rmtree" and isinstance(self.failure, Exception)):
                if name in ("save_file", "write_text"):  # it fails half-way
                    (args[1] if name == "save_file" else args[0]).write_bytes(b"half a fi")
                raise self.failure
            self.left -= 1
            self.done.append(name)
            return real(*args, **more)

        return call


def write_and_prune(folder: Path, step: int) -> None:
    checkpoint.write_folder(folder / f"step-{step:08d}", GROUPS, {"step": step})
    checkpoint.prune(folder, keep=1)


FULL = OSError(errno.ENOSPC, "No space left on device")


def operations(folder: Path) -> int:
    """How many there are to write a second checkpoint and prune the first."""
    with pytest.MonkeyPatch.context() as patch:
        write_and_prune(folder, 1)
        disk = Disk(patch, -1, FULL)
        write_and_prune(folder, 2)
    assert disk.done.count("rename") == 2
    return len(disk.done)


@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt()], ids=["full disk", "kill"])
def test_there_is_always_a_whole_checkpoint(tmp_path, failure):
    """Whichever operation fails: step 1 or step 2 is whole, nothing damaged passes for whole, and the run goes on."""
    stopped = set()
    for survives in range(operations(tmp_path / "counted")):
        folder = tmp_path / str(survives)
        write_and_prune(folder, 1)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, survives, failure)
            with contextlib.suppress(TrainingError, OSError, KeyboardInterrupt):
                write_and_prune(folder, 2)
        found = [checkpoint.load(path)[1]["step"] for path in checkpoint.checkpoints(folder)]
        assert found in ([1], [1, 2], [2])
        stopped.add(tuple(found))
        write_and_prune(folder, 2)
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    assert {(1,), (1, 2)} <= stopped


def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path):
    for survives in range(operations(tmp_path / "counted")):
        folder = tmp_path / str(survives)
        write_and_prune(folder, 1)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, survives, FULL)
            try:
                checkpoint.write_folder(folder / "step-00000002", GROUPS, {"step": 2})
            except TrainingError as error:
                message = str(error)
                assert re.search(r"cannot write .*step-00000002: .*No space left on device.* needs 1 MB", message)
                assert re.search(r"last whole checkpoint: .*step-0000000[12], from which the run resumes", message)
        assert not list(folder.glob(f"{checkpoint.PARTIAL}*"))
        assert (folder / "step-00000001" / "state.json").exists()


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

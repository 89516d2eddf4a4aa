"""A checkpoint is whole or not there; the old one goes only after the new one is complete."""

import pytest
import torch

from sd_ext.errors import TrainingError
from sd_ext.training import checkpoint

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


def test_optimizer_state_comes_back_exactly():
    def trained(steps, state=None):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)  # moments must follow this layout
        names = {p: name for name, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        if state:
            checkpoint.restore_optimizer(optimizer, names, state[0])
            with torch.no_grad():
                for p, name in names.items():
                    p.copy_(state[1][name])
        for _ in range(steps):
            model(torch.ones(1, 3, 4, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return checkpoint.optimizer_tensors(optimizer, names), {n: p.detach().clone() for p, n in names.items()}

    half = trained(3)
    assert set(half[0]) == {f"{n}|{k}" for n in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")}
    resumed, whole = trained(3, half), trained(6)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

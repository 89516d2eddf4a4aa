"""Every optimizer stopped, written to a file and restored goes on as if it had never stopped, bit for bit."""

import json
import math

import pytest
import torch
from torch import nn

from sd_ext.errors import InputError, TrainingError
from sd_ext.training.optimizer.make import make_optimizer, parameter_groups
from sd_ext.training.optimizer.state import optimizer_state, restore_optimizer
from sd_ext.training.run import checkpoint

from .cases import CASES, descend, small_model

HALF, WHOLE = 4, 9


def names_of(model: nn.Module) -> dict:
    return {p: name for name, p in model.named_parameters()}


def stop(model: nn.Module, optimizer, folder):
    """Write everything to a checkpoint; returns what is read back."""
    tensors, scalars = optimizer_state(optimizer, names_of(model))
    files = {"model.safetensors": dict(model.named_parameters()), "optimizer.safetensors": tensors}
    checkpoint.write_folder(folder / "step-1", files, {"optimizer": scalars})
    return checkpoint.load(folder / "step-1")


def go_on(name: str, kept, steps: int = WHOLE, model: nn.Module | None = None):
    """Fresh objects, restored, trained up to `steps`."""
    model, optimizer = descend(name, 0, model)
    tensors, state = kept
    checkpoint.restore("it", tensors["model.safetensors"], dict(model.named_parameters()))
    restore_optimizer(optimizer, names_of(model), tensors["optimizer.safetensors"], state["optimizer"])
    return descend(name, steps, model, optimizer, first=HALF)


def everything(model: nn.Module, optimizer) -> tuple[dict, dict]:
    tensors, scalars = optimizer_state(optimizer, names_of(model))
    return {**tensors, **dict(model.named_parameters())}, scalars


def assert_same(one, other):
    (a, scalars), (b, others) = everything(*one), everything(*other)
    assert a.keys() == b.keys()
    assert scalars == others
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_is_as_never_stopped(name, dtype, tmp_path):
    whole = descend(name, WHOLE, small_model(dtype=dtype))
    half = descend(name, HALF, small_model(dtype=dtype))
    kept = stop(*half, tmp_path)
    assert_same(go_on(name, kept, model=small_model(dtype=dtype)), whole)
    assert_same(half, descend(name, HALF, small_model(dtype=dtype)))  # to write is to look only


@pytest.mark.parametrize("name", CASES)
def test_the_state_is_needed(name, tmp_path):
    """The test above can fail: without the state the same weights go elsewhere."""
    tensors, _ = stop(*descend(name, HALF), tmp_path)
    model, optimizer = descend(name, 0)
    checkpoint.restore("it", tensors["model.safetensors"], dict(model.named_parameters()))
    forgetful, _ = descend(name, WHOLE, model, optimizer, first=HALF)
    whole, _ = descend(name, WHOLE)
    pairs = zip(forgetful.parameters(), whole.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["adamw", "sgd", "schedulefree-adamw", "lion", "torch.optim.Adam"])
def test_into_another_memory_layout(name, tmp_path):
    """Moments follow their weights; these optimizers work elementwise, so the layout cannot show.

    But for rounding in fused kernels, which take the last few numbers of an array one by one.
    """
    if name not in CASES:
        pytest.skip("not installed")
    kept = stop(*descend(name, HALF, small_model(torch.channels_last)), tmp_path)
    resumed = go_on(name, kept, model=small_model(torch.contiguous_format))
    weight = resumed[0].conv.weight
    state = inner_state(resumed[1], weight)
    assert weight.is_contiguous()
    assert all(value.stride() == weight.stride() for value in state if value.shape == weight.shape)
    whole = descend(name, WHOLE, small_model(torch.channels_last))
    if name != "adamw":
        assert_same(resumed, whole)
    for ours, theirs in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def inner_state(optimizer, p) -> list[torch.Tensor]:
    return [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]


def test_numbers_that_change_are_in_the_groups():
    """Prodigy's estimate and schedule-free's average are nowhere else."""
    for name, keys in (("prodigy", {"d", "d_max", "k"}), ("schedulefree-adamw", {"weight_sum", "k", "train_mode"})):
        if name in CASES:
            model, optimizer = descend(name, HALF)
            fresh = descend(name, 0)[1].param_groups[0]
            kept = optimizer_state(optimizer, names_of(model))[1]["groups"][0]
            changed = {key for key in fresh if key != "params" and fresh[key] != optimizer.param_groups[0][key]}
            assert keys - {"train_mode"} <= changed
            assert keys <= kept.keys()


class Odd(torch.optim.SGD):
    """A state of every kind a checkpoint can hold."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p] = {
                "nothing": None, "yes": True, "count": 3, "third": 1 / 3, "never": math.inf, "lost": math.nan,
                "text": "x|y", "pair": (1, [2.5, None]), "factors": [torch.arange(3), {"deep": torch.ones(2, 1)}],
                "empty": torch.zeros(0), "whole": torch.tensor(7),
            }  # fmt: skip
        self.param_groups[0]["best"] = torch.tensor(0.1, dtype=torch.float64)


def test_every_kind_of_state(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = Odd(model.parameters(), lr=0.1)
    optimizer.step()
    tensors, state = stop(model, optimizer, tmp_path)
    fresh = Odd(model.parameters(), lr=0.1)
    restore_optimizer(fresh, names_of(model), tensors["optimizer.safetensors"], state["optimizer"])
    for p in model.parameters():
        ours, theirs = fresh.state[p], optimizer.state[p]
        assert ours.keys() == theirs.keys()
        for key in ("nothing", "yes", "count", "third", "never", "text", "pair"):
            assert ours[key] == theirs[key]
            assert type(ours[key]) is type(theirs[key])
        assert math.isnan(ours["lost"])
        assert torch.equal(ours["factors"][0], torch.arange(3))
        assert torch.equal(ours["factors"][1]["deep"], torch.ones(2, 1))
        assert ours["whole"].dtype == torch.int64
        assert ours["empty"].shape == (0,)
    assert fresh.param_groups[0]["best"] == torch.tensor(0.1, dtype=torch.float64)


def test_json_is_strict(tmp_path):
    """No NaN or Infinity literals, which other readers refuse: Prodigy's growth_rate is infinite."""
    for name in CASES:
        model, optimizer = descend(name, 2)
        json.dumps(optimizer_state(optimizer, names_of(model))[1], allow_nan=False)


def test_another_optimizer_or_other_parameters_are_refused_untouched(tmp_path):
    model, optimizer = descend("adamw", HALF)
    tensors, scalars = optimizer_state(optimizer, names_of(model))
    other = make_optimizer("sgd", parameter_groups(model.named_parameters(), 0.01), 0.1)
    with pytest.raises(InputError, match=r"of optimizer torch\.optim\.adamw\.AdamW, this run's is torch\.optim\.sgd"):
        restore_optimizer(other, names_of(model), tensors, scalars)

    larger = nn.ModuleDict({**small_model(), "more": nn.Linear(2, 2)})
    del larger["low"]
    groups = parameter_groups(larger.named_parameters(), 0.01)
    with pytest.raises(InputError, match=r"only the checkpoint has low\.bias, low\.weight; it lacks more\.bias, more"):
        restore_optimizer(make_optimizer("adamw", groups, 0.1), names_of(larger), tensors, scalars)

    split = make_optimizer("adamw", parameter_groups(model.named_parameters(), 0.01, {"low": 2.0}), 0.1)
    with pytest.raises(InputError, match=r"in other groups.*weight_decay and learning-rate ratios"):
        restore_optimizer(split, names_of(model), tensors, scalars)
    assert not split.state


def test_state_of_what_is_not_trained_is_an_error():
    _, optimizer = descend("adamw", 1)
    with pytest.raises(TrainingError, match="not among the trained parameters"):
        optimizer_state(optimizer, {})


def test_restored_state_is_its_own():
    """Training on does not write into what was loaded."""
    model, optimizer = descend("adamw", HALF)
    tensors, scalars = optimizer_state(optimizer, names_of(model))
    kept = {key: value.clone() for key, value in tensors.items()}
    copy = small_model()
    copy.load_state_dict(model.state_dict())
    fresh = descend("adamw", 0, copy)[1]
    restore_optimizer(fresh, names_of(copy), kept, scalars)
    before = {key: value.clone() for key, value in kept.items()}
    descend("adamw", WHOLE, copy, fresh, first=HALF)
    assert all(torch.equal(kept[key], before[key]) for key in kept)

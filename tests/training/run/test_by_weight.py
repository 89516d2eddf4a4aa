"""Weights in bfloat16 keep what is added to them; steps in the backward pass are the same steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sd_ext.training.run.by_weight import REST, WeightByWeight, round_stochastically


def test_rounding_is_right_on_average_and_leaves_exact_numbers():
    random = torch.Generator().manual_seed(0)
    x = torch.tensor([1.0, -2.5, 0.0, float("inf"), float("-inf"), 2.0**-130])
    assert torch.equal(round_stochastically(x, random).float(), x)
    assert round_stochastically(torch.tensor([float("nan")]), random).isnan().all()
    for value in (1.001, -1.001, 3e-5):
        drawn = round_stochastically(torch.full((200_000,), value), random).float()
        step = torch.finfo(torch.bfloat16).eps * abs(value)
        assert len(drawn.unique()) == 2
        assert ((drawn - value).abs() < step).all()
        assert abs(float(drawn.double().mean()) - value) < step / 150


def steps_of(rounding: str, count: int, weights: torch.dtype = torch.bfloat16, fused: bool = False) -> nn.Linear:
    """A layer after steps of SGD whose gradients are 1: each adds 1e-4 to weights of about 1."""
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer.to(weights)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-4)
    stepper = WeightByWeight(optimizer, rounding, 0, fused)
    for step in range(count):
        stepper.step_number = step
        (-layer.weight.float().sum()).backward()
        if not fused:
            stepper.step()
        optimizer.zero_grad()
    return layer


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_steps_too_small_for_bfloat16_add_up(rounding):
    """A thousand steps of 1e-4 make 0.1; rounded to the nearest each would be lost."""
    weight = steps_of(rounding, 1000).weight
    assert weight.dtype == torch.bfloat16
    assert torch.tensor(1.0).bfloat16() + torch.tensor(1e-4).bfloat16() == 1.0
    assert abs(float(weight.detach().float().mean()) - 1.1) < 2e-3
    if rounding == "kahan":
        assert len(weight.unique()) == 1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 2))


def trained(
    model: nn.Module, rounding: str, fused: bool, steps: int = 20
) -> tuple[WeightByWeight, torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)
    stepper = WeightByWeight(optimizer, rounding, 3, fused)
    for step in range(20):
        stepper.step_number = step
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
        model(x).float().square().mean().backward()
        if not fused:
            stepper.step()
        optimizer.zero_grad()
    return stepper, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_steps_in_the_backward_pass_are_the_same_to_the_bit(dtype, rounding):
    one, other = network().to(dtype), network().to(dtype)
    trained(one, rounding, fused=False)
    stepper, _ = trained(other, rounding, fused=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(p.grad is None for p in other.parameters())
    assert float(stepper.norm()) > 0
    assert float(stepper.norm()) == 0


def test_float32_weights_are_stepped_as_by_the_optimizer_itself():
    one, other = network(), network()
    trained(one, "stochastic", fused=True)
    optimizer = torch.optim.AdamW(other.parameters(), 1e-2, weight_decay=0.01)
    for step in range(20):
        other(torch.randn(16, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_state_is_in_float32_and_the_rest_is_kept():
    model = network().bfloat16()
    _, optimizer = trained(model, "kahan", fused=False)
    exact = network()
    trained(exact, "kahan", fused=False)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        state = optimizer.state[p]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
        assert state[REST].dtype == torch.bfloat16
        assert (p.float() + state[REST].float() - q).abs().max() < 0.05  # bfloat16's forward passes differ
    assert copy.deepcopy(optimizer.state_dict())

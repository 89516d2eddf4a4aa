"""Schedules against closed forms, and against Diffusers and Transformers after the warm-up."""

import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers.optimization import get_inverse_sqrt_schedule

from sd_ext.errors import InputError
from sd_ext.training.optimizer.schedules import SCHEDULES, RateSettings, learning_rate

FALLING = [name for name in SCHEDULES if name not in ("constant", "inverse_sqrt")]


STEPS = 110


def settings(schedule: str, **more) -> RateSettings:
    return RateSettings(**{"learning_rate": 2.0, "warmup": 10, "lr_schedule": schedule, **more})


def rate(settings: RateSettings, step: int, steps: int = STEPS) -> float:
    return learning_rate(settings, step, steps)


def theirs(make, peak: float, steps: int) -> list[float]:
    """What a LambdaLR sets, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("final", [0.0, 0.1, 0.3])
def test_exact_at_the_ends(name, final):
    config = settings(name, lr_end=final)
    assert [rate(config, s) for s in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    if name in FALLING:
        assert rate(config, 110) == rate(config, 500) == 2.0 * final
    if name == "constant":
        assert rate(config, 109) == 2.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_between_the_ends_never_above_the_peak_or_below_the_end(name):
    config = settings(name, lr_end=0.25, lr_cycles=3, lr_power=2.5)
    assert all(0.5 <= rate(config, step) <= 2.0 for step in range(10, 300))


def test_closed_forms_half_way():
    half = 60
    assert rate(settings("linear"), half) == pytest.approx(1.0)
    assert rate(settings("linear", lr_end=0.5), half) == pytest.approx(1.5)
    assert rate(settings("cosine"), half) == pytest.approx(1.0)
    assert rate(settings("cosine"), 35) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(settings("polynomial", lr_power=3.0), half) == pytest.approx(2 / 8)
    assert rate(settings("inverse_sqrt"), 40) == pytest.approx(2.0 * math.sqrt(10 / 40))
    restarting = settings("cosine_with_restarts", lr_cycles=2)
    assert rate(restarting, half) == 2.0  # the second cycle begins
    assert rate(restarting, half - 1) < 0.01


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_as_diffusers_after_the_warm_up(name, warmup):
    steps, more = 50, {}
    if name == "cosine_with_restarts":
        more = {"num_cycles": 3}
    if name == "polynomial":
        more = {"power": 2.0}
    expected = theirs(lambda o: get_scheduler(name, o, None, warmup, steps, **more), 0.02, steps)
    config = settings(
        name.removesuffix("_with_warmup"), learning_rate=0.02, warmup=warmup, lr_cycles=3, lr_power=2.0,
        lr_end=1e-7 / 0.02 if name == "polynomial" else 0.0,  # Diffusers' default
    )  # fmt: skip
    ours = [rate(config, s, steps) for s in range(steps)]
    assert ours[warmup:] == pytest.approx(expected[warmup:], rel=1e-9, abs=1e-15)
    assert ours[: max(0, warmup - 1)] == pytest.approx(expected[1:warmup])  # ours does not waste the first step


@pytest.mark.parametrize("warmup", [0, 7])
def test_inverse_sqrt_as_transformers(warmup):
    expected = theirs(lambda o: get_inverse_sqrt_schedule(o, warmup), 0.02, 60)
    config = settings("inverse_sqrt", learning_rate=0.02, warmup=warmup)
    assert [rate(config, s) for s in range(warmup, 60)] == pytest.approx(expected[warmup:])


def test_a_warm_up_as_long_as_the_run_or_longer():
    assert rate(settings("cosine", warmup=110), 109) == 2.0
    assert rate(settings("cosine", warmup=220), 109) == 1.0


def test_settings_that_cannot_be():
    with pytest.raises(InputError, match=r"lr_schedule is 'cosin'; it can be .*cosine"):
        settings("cosin")
    for wrong in ({"lr_end": 1.5}, {"lr_cycles": 0}, {"lr_power": 0.0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
            settings("cosine", **wrong)

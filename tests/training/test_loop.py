"""The loop: its schedule, average, clipping, accumulation, and what it does with a NaN."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sd_ext.errors import TrainingError
from sd_ext.training.configs import RunConfig
from sd_ext.training.loop import Ema, Run, learning_rate, parameter_groups, train


class Line(nn.Module):
    """loss = mean (w x - y)^2"""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x, y):
        return {"loss": (x @ self.weight - y).square().mean()}


def start(make_batch, ema=None, **settings) -> Run:
    config = RunConfig(**{"steps": 5, "warmup": 0, "weight_decay": 0.0, "ema": 0.0, **settings})
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.accumulation)
    model = Line()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=config.learning_rate)
    model, optimizer = accelerator.prepare(model, optimizer)

    def batches(first):
        number = first
        while True:
            yield make_batch(number)
            number += 1

    return Run(config, accelerator, model, optimizer, batches, Ema(model, ema) if ema else None)


def test_learning_rate():
    config = RunConfig(steps=110, warmup=10, learning_rate=2.0)
    assert [learning_rate(config, s) for s in (0, 4, 9)] == [0.2, 1.0, 2.0]
    assert learning_rate(config, 60) == pytest.approx(1.0)  # half-way down the cosine
    assert learning_rate(config, 109) == pytest.approx(0, abs=1e-2)
    linear = RunConfig(steps=110, warmup=10, learning_rate=2.0, lr_schedule="linear")
    assert learning_rate(linear, 35) == pytest.approx(1.5)
    assert learning_rate(RunConfig(steps=9, warmup=0, learning_rate=2.0, lr_schedule="constant"), 8) == 2.0


def test_loss_falls_and_metrics_are_yielded():
    run = start(lambda n: (torch.ones(4, 1), torch.ones(4, 1)), steps=40, learning_rate=0.1, lr_schedule="constant")
    metrics = list(train(run))
    assert len(metrics) == 40 == run.step
    assert metrics[0]["loss"] == 1.0
    assert metrics[-1]["loss"] < 0.05
    assert set(metrics[0]) == {"loss", "lr", "gradient_norm"}


def test_ema_formula():
    model = Line()
    ema = Ema(model, 0.9)
    expected = 0.0
    for step, value in enumerate([1.0, 5.0, -2.0, 3.0] * 30, 1):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.average["weight"]) == pytest.approx(expected, rel=1e-5)
    ema.swap()
    assert float(model.weight) == pytest.approx(expected, rel=1e-5)
    ema.swap()
    assert float(model.weight) == 3.0


def test_clipping_acts():
    """SGD, so that the step shows the gradient's size: AdamW would hide it."""
    steps = {}
    for clip in (0.0, 0.5):
        run = start(lambda n: (torch.ones(4, 1), 100 * torch.ones(4, 1)), steps=1, clip=clip)
        run.optimizer.optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
        run.config = RunConfig(steps=1, warmup=0, clip=clip, learning_rate=1.0, lr_schedule="constant")
        [metrics] = train(run)
        assert metrics["gradient_norm"] == pytest.approx(200)  # the norm before clipping
        steps[clip] = float(run.model.weight.detach())
    assert steps == {0.0: pytest.approx(200), 0.5: pytest.approx(0.5)}


def test_accumulation_is_a_larger_batch():
    torch.manual_seed(0)
    x, y = torch.randn(48, 1), torch.randn(48, 1)

    def batch(size):
        return lambda n: (x[n * size : (n + 1) * size], y[n * size : (n + 1) * size])

    large = start(batch(12), steps=4, learning_rate=0.1)
    expected = [m["loss"] for m in train(large)]  # before the next start: accelerate's accumulation is global
    small = start(batch(4), steps=4, learning_rate=0.1, accumulation=3)
    assert [m["loss"] for m in train(small)] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(small.model.weight, large.model.weight)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(poison):
    def batch(number):
        return torch.ones(2, 1), torch.full((2, 1), poison if number == 3 else 1.0)

    run = start(batch, steps=9)
    run.last_checkpoint = "out/checkpoints/step-00000002"
    with pytest.raises(TrainingError, match=r"at step 4; last good checkpoint: out/checkpoints/step-00000002"):
        list(train(run))
    assert run.step == 3
    assert torch.isfinite(run.model.weight).all()


def test_no_weight_decay_for_vectors():
    groups = parameter_groups(nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2)), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [len(g["params"]) for g in groups] == [1, 3]

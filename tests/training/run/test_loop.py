"""The loop: its gradient, average, clipping, learning rates, and what it does with a NaN."""

import math

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sd_ext.errors import TrainingError
from sd_ext.training.data.order import Pass, StepOrder
from sd_ext.training.optimizer.make import parameter_groups
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.loop import Ema, Run, train


class Line(nn.Module):
    """loss = mean (w x - y)^2"""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x, y):
        error = (x @ self.weight - y).square().mean()
        return {"loss": error, "half": error / 2}


class Picture(nn.Module):
    """A loss for pictures of any size: the mean over each, then over the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.low, self.up = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return {"loss": self.up(torch.tanh(self.low(x))).square().flatten(1).mean(1).mean()}


def whole(step: int, count: int) -> Pass:
    """All samples of a step in one pass."""
    return Pass(step, tuple(range(count)), tuple(range(count)), count)


def one_pass(make_batch):
    """Batches of one pass a step."""

    def batches(first):
        step = first
        while True:
            x, y = make_batch(step)
            yield [(whole(step, len(x)), (x, y))]
            step += 1

    return batches


def start(batches, model=None, ema=None, optimizer=None, ratios=None, **settings) -> Run:
    config = RunConfig.of(**{"steps": 5, "warmup": 0, "weight_decay": 0.0, "ema": 0.0, **settings})
    accelerator, model = Accelerator(cpu=True), model or Line()
    groups = parameter_groups(model.named_parameters(), 0.0, ratios)
    optimizer = (optimizer or torch.optim.AdamW)(groups, lr=config.rate.learning_rate)
    model, optimizer = accelerator.prepare(model, optimizer)
    names = lambda each: ", ".join(f"picture {s}" for s in each.samples)  # noqa: E731
    return Run(config, accelerator, model, optimizer, batches, Ema(model, ema) if ema else None, names)


def ones(step):
    return torch.ones(4, 1), torch.ones(4, 1)


def test_loss_falls_and_metrics_are_yielded():
    run = start(one_pass(ones), steps=40, learning_rate=0.1, lr_schedule="constant")
    metrics = list(train(run))
    assert len(metrics) == 40 == run.step
    assert metrics[0]["loss"] == 1.0
    assert metrics[-1]["loss"] < 0.05
    assert set(metrics[0]) == {"loss", "half", "lr", "gradient_norm"}
    assert all(m["half"] == pytest.approx(m["loss"] / 2) for m in metrics)


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
    with ema.applied():
        assert float(model.weight) == pytest.approx(expected, rel=1e-5)
    assert float(model.weight) == 3.0


def test_clipping_acts_at_every_step():
    """SGD, so that the step shows the gradient's size: AdamW would hide it."""
    moved = {}
    for clip in (0.0, 0.5):
        batches = one_pass(lambda n: (torch.ones(4, 1), 100 * torch.ones(4, 1)))
        run = start(batches, None, None, torch.optim.SGD, steps=3, clip=clip, learning_rate=0.1, lr_schedule="constant")
        before, steps = 0.0, []
        for metrics in train(run):
            after = float(run.model.weight.detach())
            assert metrics["gradient_norm"] == pytest.approx(2 * (100 - before), rel=1e-5)  # the norm before clipping
            steps.append(after - before)
            before = after
        moved[clip] = steps
    assert moved[0.5] == pytest.approx([0.05] * 3, rel=1e-4)
    assert moved[0.0] == pytest.approx([20.0, 16.0, 12.8], rel=1e-4)


def gradient_of_a_step(cuts: list[list[int]], pictures: list[torch.Tensor], idle: int = 0) -> dict[str, torch.Tensor]:
    """The loop's gradient: what SGD with learning rate 1 subtracts; and its mean loss."""
    parts = [Pass(0, tuple(cut), tuple(cut), len(pictures)) for cut in cuts]
    parts += [Pass(0, parts[0].samples, parts[0].positions, len(pictures), idle=True)] * idle

    def batches(first):
        yield [(each, (torch.stack([pictures[i] for i in each.samples]),)) for each in parts]

    run = start(batches, Picture(), None, torch.optim.SGD, steps=1, clip=0.0, learning_rate=1.0, lr_schedule="constant")
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    [metrics] = train(run)
    moved = {name: before[name] - p.detach() for name, p in run.model.named_parameters()}
    return {**moved, "loss": torch.tensor(metrics["loss"])}


@given(data=st.data(), idle=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_the_gradient_is_that_of_the_mean_over_the_step_however_it_is_cut(data, idle):
    """Passes of one to all samples, of two sizes, idle ones among them."""
    wide = data.draw(st.lists(st.booleans(), min_size=1, max_size=7))
    draw = torch.Generator().manual_seed(1)
    pictures = [torch.randn(1, 5, 9 if w else 5, generator=draw) for w in wide]
    left, cuts = {w: [i for i, each in enumerate(wide) if each is w] for w in (False, True)}, []
    for members in left.values():
        while members:
            n = data.draw(st.integers(1, len(members)))
            cuts.append(members[:n])
            del members[:n]
    found = gradient_of_a_step(data.draw(st.permutations(cuts)), pictures, idle)

    model = Picture()
    mean = torch.stack([model(picture[None])["loss"] for picture in pictures]).mean()
    mean.backward()
    torch.testing.assert_close(found["loss"], mean.detach())
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_accumulation_is_a_larger_batch():
    """Over a whole run with AdamW, in the order the trainer has it, with a step of fewer samples in each epoch."""
    torch.manual_seed(0)
    x, y = torch.randn(10, 1), torch.randn(10, 1)

    def batches(batch_size):
        order = StepOrder([1] * 10, batch_size, 4, 0)

        def steps(first):
            step = first
            while True:
                parts = order.passes(step)
                yield [(each, (x[list(each.samples)], y[list(each.samples)])) for each in parts]
                step += 1

        return steps

    ends = []
    for batch_size in (4, 2, 1, 3):
        run = start(batches(batch_size), steps=9, learning_rate=0.1)
        ends.append(([m["loss"] for m in train(run)], float(run.model.weight)))
    for losses, weight in ends[1:]:
        assert losses == pytest.approx(ends[0][0], rel=1e-5)
        assert weight == pytest.approx(ends[0][1], rel=1e-5)


def test_learning_rate_ratios():
    """A group's rate is the schedule's times its ratio, at every step."""
    run = start(
        lambda first: iter([[(whole(s, 2), (torch.ones(2, 1, 5, 5),))] for s in range(9)]),
        Picture(), ratios={"up": 16.0}, steps=6, warmup=2, learning_rate=1e-3,
    )  # fmt: skip
    for metrics in train(run):
        groups = run.optimizer.param_groups
        assert sorted(g["lr"] / metrics["lr"] for g in groups) == pytest.approx([1, 1, 16, 16])
    assert metrics["lr"] < 1e-3


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(poison):
    def batch(step):
        return torch.ones(2, 1), torch.full((2, 1), poison if step == 3 else 1.0)

    run = start(one_pass(batch), steps=9)
    run.last_checkpoint = "out/checkpoints/step-00000002"
    weights = []
    with pytest.raises(TrainingError) as caught:
        for _ in train(run):
            weights.append(float(run.model.weight.detach()))
    for said in ("at step 4", "samples: picture 0, picture 1", "last good checkpoint: out/checkpoints/step-00000002"):
        assert said in str(caught.value)
    assert run.step == 3
    assert float(run.model.weight.detach()) == weights[-1]


def test_a_gradient_that_is_not_finite_stops_too():
    """sqrt'(0) is infinite where sqrt(0) is not."""

    class Root(Line):
        def forward(self, x, y):
            return {"loss": (x @ self.weight).abs().sqrt().mean()}

    run = start(one_pass(ones), Root())
    with pytest.raises(TrainingError, match="the gradient's norm is nan at step 1"):
        list(train(run))
    assert float(run.model.weight.detach()) == 0


def test_no_weight_decay_for_vectors():
    groups = parameter_groups(nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2)).named_parameters(), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [len(g["params"]) for g in groups] == [1, 3]

"""The teacher's steps are those of the sampler's table, each by itself; the jump meets its boundary condition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn

from sd_ext.errors import InputError
from sd_ext.schedulers import make_scheduler
from sd_ext.training.few_step.loss import ConsistencyLoss
from sd_ext.training.few_step.teacher import TeacherSteps, place_of

NOISE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
}  # fmt: skip
KINDS = ("epsilon", "v_prediction", "sample")
MEAN, SPREAD = 0.3, 0.6


def noise(**changed: Any) -> dict[str, Any]:
    return {**NOISE, **changed}


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at timesteps, from Diffusers."""
    kept, t = DDIMScheduler(**NOISE).alphas_cumprod.double(), t.round().long()
    alpha = kept[t].sqrt()[:, None, None, None]
    return alpha, (1 - kept[t]).sqrt()[:, None, None, None]


def of_x0(kind: str, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The prediction that means x0."""
    alpha, sigma = levels(t)
    eps = (x - alpha * x0) / sigma
    return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[kind]


class Known(nn.Module):
    """A network of data N(mean, spread^2), the mean given by the condition. As a teacher it predicts E[x0 | x]; with
    its adapters it is the consistency function: what the path through x ends in.
    """

    def __init__(self, kind: str, spread: float):
        super().__init__()
        self.kind, self.spread, self.adapted = kind, spread, True

    def disable_adapters(self) -> None:
        self.adapted = False

    def enable_adapters(self) -> None:
        self.adapted = True

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        alpha, sigma = levels(t)
        mean = encoder_hidden_states.reshape(-1, 1, 1, 1).double()
        variance = (alpha * self.spread) ** 2 + sigma**2
        gain = self.spread / variance.sqrt() if self.adapted else alpha * self.spread**2 / variance
        x0 = mean + gain * (x - alpha * mean)
        return SimpleNamespace(sample=of_x0(self.kind, x0, x.double(), t))


def points(steps: TeacherSteps, spread: float, count: int = 4) -> tuple[Tensor, Tensor]:
    """Noisy latents of the data N(MEAN, spread^2) at every place, and the places."""
    random = torch.Generator().manual_seed(0)
    place = torch.arange(len(steps.t)).repeat(count)
    alpha, sigma = levels(steps.t[place])
    x0 = MEAN + spread * torch.randn(len(place), 1, 1, 1, generator=random, dtype=torch.float64)
    return alpha * x0 + sigma * torch.randn(len(place), 1, 2, 2, generator=random, dtype=torch.float64), place


def told(count: int, mean: float = MEAN) -> dict[str, Tensor]:
    return {"states": torch.full((count, 1, 1), mean)}


def losses(kind: str, spread: float, solver: str, skip: int) -> float:
    """The mean squared distance of the two jumps of a network that is the consistency function, but at the last place,
    where a step to sigma = 0 is of first order by any solver.
    """
    steps = TeacherSteps(solver, skip, noise(prediction_type=kind), timestep_scaling=1e6).double()
    loss = ConsistencyLoss(Known(kind, spread), steps, "l2")
    x, place = points(steps, spread)
    if spread:
        x, place = x[place < len(steps.t) - 1], place[place < len(steps.t) - 1]
    ones = torch.ones(len(x))
    return float(loss(x, place, ones, ones, ones, told(len(x)), told(len(x)))["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_every_jump_is_exact(kind):
    """Where the data are one point every path ends in it, and one step of DDIM is exact: there is no loss."""
    assert losses(kind, 0.0, "ddim", 20) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_the_known_consistency_function_has_no_loss_but_the_solver_s_error(kind):
    """DDIM's error in a step is of the second power of the step, Heun's of the third; squared, 16 and 64."""
    coarse, fine = losses(kind, SPREAD, "ddim", 20), losses(kind, SPREAD, "ddim", 10)
    assert coarse < 2e-4
    assert 8 < coarse / fine < 32
    assert losses(kind, SPREAD, "heun", 20) < coarse / 50


def test_guidance_moves_the_teacher_s_point():
    """Of two points, guidance 3 leads to the first plus twice the difference, and DDIM is exact on it."""
    steps = TeacherSteps("ddim", 50, NOISE).double()
    seen: list[Tensor] = []
    x, place = points(steps, 0.0)
    loss = ConsistencyLoss(Known("epsilon", 0.0), steps)
    take = steps.take
    steps.take = lambda *a: seen.append(take(*a)) or seen[-1]  # type: ignore[func-returns-value,method-assign]
    loss.target(x, place, torch.full((len(x),), 3.0), told(len(x), 0.5), told(len(x), 0.2))
    alpha, sigma = levels(steps.t[place])
    guided = 0.2 + 3 * 0.3
    eps = (x - alpha * guided) / sigma
    after = torch.cat([steps.t, torch.zeros(1, dtype=torch.int64)])[place + 1]
    alpha, sigma = levels(after)
    last = (place == len(steps.t) - 1)[:, None, None, None]
    wanted = torch.where(last, torch.full_like(eps, guided), alpha * guided + sigma * eps)
    assert (seen[0] - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm2", "dpm++ 2s"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_all_steps_in_a_row_are_the_sampler(solver, kind):
    """Taken one after another from the noisiest on, they end where the sampler ends."""
    steps = TeacherSteps(solver, 50, noise(prediction_type=kind)).double()
    network = Known(kind, SPREAD)
    network.adapted = False
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, torch.full((len(x), 1), MEAN)).sample

    scheduler: Any = make_scheduler(solver, noise(prediction_type=kind, clip_sample=False))
    scheduler.set_timesteps(timesteps=list(range(999, -1, -50)))
    other = x
    for t in scheduler.timesteps:
        other = scheduler.step(predict(other, t.expand(2)), t, other).prev_sample
    for place in range(len(steps.t)):
        x = steps.take(x, torch.full((2,), place), predict)
    assert (x - other).abs().max() < 1e-5


@pytest.mark.parametrize("skip", [20, 100])
def test_places_are_those_that_the_samplers_for_few_steps_ask_for(skip):
    """Whatever timestep is drawn, one is trained at which LCM (Diffusers' and ours) may call the network."""
    steps = TeacherSteps("ddim", skip, NOISE)
    known = LCMScheduler(**NOISE, original_inference_steps=1000 // skip)
    known.set_timesteps(1000 // skip)
    ours: Any = make_scheduler("lcm", NOISE, original_inference_steps=1000 // skip)
    ours.set_timesteps(1000 // skip)
    assert steps.t.tolist() == known.timesteps.tolist() == ours.timesteps.tolist()
    t = torch.arange(1000)
    found = steps.t[place_of(t, steps.t)]
    assert ((found >= t) & (found - t < skip)).all()


def test_the_jump_is_x_itself_at_the_end_and_lcm_s_elsewhere():
    steps = TeacherSteps("ddim", 20, NOISE)
    x, m = torch.randn(2, 50, 1, 2, 2)
    assert torch.equal(steps.jump(x, torch.full((50,), 50), m), x)
    scheduler = LCMScheduler(**NOISE)
    scheduler.set_timesteps(50)
    wanted = [scheduler.step(m[i : i + 1], t, x[i : i + 1]).denoised for i, t in enumerate(scheduler.timesteps)]
    assert torch.allclose(steps.jump(x, torch.arange(50), m), torch.cat(wanted), atol=2e-4, rtol=1e-4)


class Lines(nn.Module):
    """A network whose x0 is a line of x at each timestep, which is trained; the teacher when its adapters are off."""

    def __init__(self, teacher: Known, grid: Tensor):
        super().__init__()
        self.teacher, self.grid = teacher, grid
        self.line = nn.Parameter(torch.zeros(len(grid), 2, dtype=torch.float64))
        self.adapted = True

    def disable_adapters(self) -> None:
        self.adapted = self.teacher.adapted = False

    def enable_adapters(self) -> None:
        self.adapted = True

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        if not self.adapted:
            return self.teacher(x, t, encoder_hidden_states)
        a, b = self.line[place_of(t, self.grid)].unbind(-1)
        return SimpleNamespace(sample=a[:, None, None, None] * x + b[:, None, None, None])


def test_training_finds_the_consistency_function():
    """Of a Gaussian, by gradients alone, from a line of zeros: what the teacher's own steps to the end lead to."""
    settings = noise(prediction_type="sample")
    steps = TeacherSteps("heun", 250, settings, timestep_scaling=1e6).double()
    network = Lines(Known("sample", SPREAD), steps.t)
    loss = ConsistencyLoss(network, steps, "l2")
    optimizer = torch.optim.Adam([network.line], 0.05)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 250)
        x, place = points(steps, SPREAD, 32)
        ones = torch.ones(len(x))
        optimizer.zero_grad()
        loss(x, place, ones, ones, ones, told(len(x)), told(len(x)))["loss"].backward()
        optimizer.step()
    x, place = points(steps, SPREAD)
    found = steps.jump(x, place, network(x, steps.t[place], told(len(x))["states"]).sample)
    network.disable_adapters()
    for number in range(len(steps.t)):  # the teacher's own way to the end, from every place
        here = place <= number
        x[here] = steps.take(
            x[here], torch.full_like(place[here], number), lambda x, t: network(x, t, told(len(x))["states"]).sample
        )
    assert (found - x).abs().max() < 0.01


@pytest.mark.parametrize(
    ("solver", "skip", "said"),
    [
        ("dpm++ 2m", 20, "looks back"),
        ("euler a", 20, "adds noise"),
        ("ddim", 30, "must divide"),
        ("dddim", 20, "unknown"),
    ],
)
def test_solvers_that_cannot_teach_are_refused(solver, skip, said):
    with pytest.raises(InputError, match=said):
        TeacherSteps(solver, skip, NOISE)

"""Brownian noise: N(0, I), additive, one path per seed; stochastic runs converge to one picture as their steps grow."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.noise import BrownianNoise, BrownianPath

from .conftest import SD
from .over import ONE_FIELD, STOCHASTIC, over


def network(x):
    return torch.tanh(0.3 * x.sum(1, keepdim=True) + 0.5 * x)


def sample(name, calls, generator, x, **options):
    scheduler = sd_ext.make_scheduler(name, SD, noise_type="brownian", **options)
    scheduler.set_timesteps(calls)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x), t, x, generator=generator).prev_sample
    return x


def start(batch=1):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_increments_are_standard_normal_and_independent():
    path = BrownianPath((200, 200), seed=7)
    draws = torch.stack([path.increment(a, b) for a, b in ((0.01, 0.5), (0.5, 0.51), (0.51, 900.0))]).flatten(1)
    covariance = torch.cov(draws)
    torch.testing.assert_close(covariance, torch.eye(3), atol=4.5 * (2 / 40_000) ** 0.5, rtol=0)
    assert draws.mean(1).abs().max() < 4.5 / 200


@over("middle", [0.0101, 0.1, 1.0, 2.7, 31.4])
def test_increments_add_up(middle):
    """W(c) - W(a) = W(c) - W(b) + W(b) - W(a), asked in either order, up to the rounding of b to its tick."""
    whole = BrownianPath((64, 64), seed=3).increment(0.01, 40.0) * (40.0 - 0.01) ** 0.5
    path = BrownianPath((64, 64), seed=3)
    late = path.increment(middle, 40.0) * (40.0 - middle) ** 0.5
    early = path.increment(0.01, middle) * (middle - 0.01) ** 0.5
    torch.testing.assert_close(early + late, whole, atol=0.02 * middle**0.5 + 1e-3, rtol=1e-3)


def test_a_path_is_its_seed():
    draws = [BrownianPath((4, 8, 8), seed).increment(0.3, 0.9) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert (draws[0] - draws[2]).abs().max() > 0.1


STRONG = ["dpm++ 2m sde", "dpm++ 3m sde exact", "dpm++ sde", "seeds-3", "euler a", "dpm++ 2s a", "dpm2 a"]


@over("name", ["dpm++ 2m sde", "dpm++ 2s a"], full=STRONG)
@over("counts", [(20, 80, 160)], full=[(25, 100, 200, 400)])
def test_the_picture_stays_as_the_steps_grow(counts, name):
    """The distance to the picture of the most calls falls with the calls; with fresh noise it does not."""

    def distances(noise_type):
        def picture(calls):
            scheduler = sd_ext.make_scheduler(name, SD, noise_type=noise_type)
            scheduler.set_timesteps(calls)
            x, generator = start(), torch.Generator().manual_seed(5)
            for t in scheduler.timesteps:
                x = scheduler.step(network(x), t, x, generator=generator).prev_sample
            return x

        last = picture(counts[-1])
        return [float((picture(calls) - last).pow(2).mean().sqrt()) for calls in counts[:-1]]

    brownian, fresh = distances("brownian"), distances("gaussian")
    assert brownian[-1] < 0.5 * brownian[0]
    assert brownian[-1] < 0.2 * fresh[-1]


def test_a_picture_does_not_depend_on_its_batch():
    def seeds(*numbers):
        return [torch.Generator().manual_seed(n) for n in numbers]

    x = start(3)
    together = sample("dpm++ 2m sde", 8, seeds(1, 2, 3), x)
    alone = sample("dpm++ 2m sde", 8, seeds(2), x[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-6)


@over("name", ["euler a", "dpm++ sde", "restart"], full=[name for name in STOCHASTIC if name in ONE_FIELD])
def test_every_stochastic_sampler_runs_on_a_path(name):
    generator = torch.Generator().manual_seed(1)
    x = sample(name, 9, generator, start(2))
    assert torch.isfinite(x).all()
    assert torch.equal(x, sample(name, 9, torch.Generator().manual_seed(1), start(2)))


def test_noise_that_is_added_back_is_no_increment_of_the_path(schedule):
    levels = schedule.at([500.0, 300.0, 600.0, 100.0])
    noise = BrownianNoise(levels, (1, 4, 64, 64), torch.Generator().manual_seed(0))
    down, up, again = noise.draw(0), noise.draw(1), noise.draw(2)
    for a, b in ((down, up), (up, again)):
        assert abs(float(np.corrcoef(a.flatten(), b.flatten())[0, 1])) < 0.05
    assert abs(float(up.std()) - 1) < 0.05


def test_without_torchsde_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(InputError, match=r"sd_ext\[brownian\]"):
        sample("euler a", 4, torch.Generator().manual_seed(0), start())


def test_an_unknown_noise_type_is_refused():
    with pytest.raises(InputError, match="noise_type"):
        sd_ext.make_scheduler("euler a", SD, noise_type="pink")

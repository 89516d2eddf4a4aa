"""Timesteps: one in every stratum, each by itself with the density promised."""

import pytest
import torch

from sd_ext.errors import InputError
from sd_ext.training.objective.timesteps import stratified_timesteps


def draw(seed, count, **settings):
    return stratified_timesteps(count, 1000, torch.Generator().manual_seed(seed), **settings)


def test_they_fill_the_range_in_random_order():
    t = draw(0, 10)
    assert sorted(int(x) // 100 for x in t) == list(range(10))
    assert not torch.equal(t, t.sort().values)  # a step's samples may be sorted by size
    assert torch.equal(t, draw(0, 10))
    assert not torch.equal(t, draw(1, 10))


def test_a_range():
    t = draw(0, 4000, first=200, last=240)
    assert torch.equal(t.bincount(minlength=1000)[200:240], torch.full((40,), 100))
    assert set(t.tolist()) == set(range(200, 240))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_density(power):
    """The distribution function of x is x^(1 / power); strata make the empirical one all but exact."""
    x = (draw(3, 20_000, power=power).double() + 1) / 1000
    for at in (0.1, 0.35, 0.8, 1.0):
        assert float((x <= at).double().mean()) == pytest.approx(at ** (1 / power), abs=1e-3)


@pytest.mark.parametrize("position", [0, 2])
def test_the_density_of_one_position_is_that_of_all(position):
    """Pooled over steps of three: Kolmogorov-Smirnov distance of a uniform sample, below its 1 in 10^5 bound."""
    count = 3000
    t = torch.stack([draw(seed, 3)[position] for seed in range(count)]).double().add(0.5).div(1000).sort().values
    steps = torch.arange(count) / count
    assert (t - steps).abs().max() < 2.5 / count**0.5


@pytest.mark.parametrize("wrong", [{"first": 5, "last": 5}, {"first": -1}, {"last": 1001}])
def test_ranges_that_cannot_be(wrong):
    with pytest.raises(InputError, match=r"within 0\.\.1000"):
        draw(0, 4, **wrong)


def test_a_power_that_cannot_be():
    with pytest.raises(InputError, match="more than 0"):
        draw(0, 4, power=0)

"""Noise: its moments, and that a sample's depends on its own generator only."""

import math

import pytest
import torch

from sd_ext.training.objective.noise import draw_noise, offset_noise, perturbed, pyramid_noise
from sd_ext.training.objective.settings import NoiseSettings

SHAPE = (2, 6, 9)
KINDS = [{}, {"offset_noise": 0.3}, {"pyramid_iterations": 4}, {"input_perturbation": 0.2},
         {"offset_noise": 0.1, "pyramid_iterations": 3, "input_perturbation": 0.1}]  # fmt: skip


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("kind", KINDS)
def test_a_samples_noise_does_not_depend_on_its_batch(kind):
    whole = draw_noise(SHAPE, generators(1, 2, 3, 4), NoiseSettings(**kind))
    parts = [draw_noise(SHAPE, generators(*seeds), NoiseSettings(**kind)) for seeds in ((1,), (2, 3, 4))]
    for at in (0, 1):
        assert torch.equal(whole[at], torch.cat([part[at] for part in parts]))
    assert not torch.equal(whole[0][0], whole[0][1])


def test_without_strength_it_is_white_noise_bit_for_bit():
    [white] = generators(7)
    expected = torch.randn(SHAPE, generator=white)
    for kind in KINDS[:1]:
        wanted, seen = draw_noise(SHAPE, generators(7), NoiseSettings(**kind))
        assert torch.equal(wanted[0], expected)
        assert torch.equal(seen[0], expected)
    assert torch.equal(
        draw_noise(SHAPE, generators(7), NoiseSettings(input_perturbation=0.2))[0][0], expected
    )  # the target stays
    for same in (offset_noise(expected, 0, white), perturbed(expected, 0, white), pyramid_noise(expected, 0, 1, white)):
        assert torch.equal(same, expected)


def test_offset_is_constant_over_a_channel_and_has_its_strength():
    count, strength = 4000, 0.3
    [generator] = generators(0)
    shifts = torch.stack([offset_noise(torch.zeros(SHAPE), strength, generator) for _ in range(count)])
    assert torch.equal(shifts, shifts[..., :1, :1].expand_as(shifts))
    drawn = shifts[..., 0, 0]  # (count, 2): independent normal numbers
    error = 4 / math.sqrt(count)
    assert drawn.std(0).tolist() == pytest.approx([strength] * 2, rel=error / math.sqrt(2))
    assert abs(torch.corrcoef(drawn.T)[0, 1]) < error


def test_every_pixel_of_pyramid_noise_has_unit_variance_and_its_neighbours_are_alike():
    count = 4000
    eps, _ = draw_noise(SHAPE, generators(*range(count)), NoiseSettings(pyramid_iterations=5, pyramid_discount=0.7))
    error = 4.5 / math.sqrt(count)
    assert (eps.mean(0).abs() < error).all()
    assert ((eps.var(0) - 1).abs() < error * math.sqrt(2)).all()  # corners too, which interpolation makes noisier
    assert ((eps[..., 1:] * eps[..., :-1]).mean(0) > error).all()
    assert ((eps[:, 0] * eps[:, 1]).mean(0).abs() < error).all()


def test_one_level_of_pyramid_noise_is_white():
    eps, _ = draw_noise(SHAPE, generators(*range(2000)), NoiseSettings(pyramid_iterations=1))
    flat = eps.flatten(1)
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(flat.shape[1])).abs().max() < 6 / math.sqrt(len(flat))


def test_perturbation_is_independent_of_the_target():
    gamma = 0.25
    wanted, seen = draw_noise((4, 32, 32), generators(*range(8)), NoiseSettings(input_perturbation=gamma))
    extra = ((seen - wanted) / gamma).flatten()
    error = 4 / math.sqrt(len(extra))
    assert float(extra.var()) == pytest.approx(1, abs=error * math.sqrt(2))
    assert abs((extra * wanted.flatten()).mean()) < error

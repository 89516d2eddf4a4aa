"""Multi-call samplers against k-diffusion's formulas, restated in float64 in its own coordinates, y = x / alpha and
sigma / alpha, and against Diffusers' classes.
"""

from __future__ import annotations

import inspect
import itertools
import warnings

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.schedulers.kernel import Kernel
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.samplers.exponential_rk import seeds
from sd_ext.schedulers.samplers.heun import dpm2, heun
from sd_ext.schedulers.samplers.res_multistep import res_multistep
from sd_ext.schedulers.schedule import ZERO, Levels

from ..conftest import SD
from ..mixture import run_table
from ..over import over
from ..test_parity import assert_close, sample


def setup(name, calls=11, **options):
    """(table, levels of its solver steps with the end, start) on SD's schedule."""
    scheduler = sd_ext.make_scheduler(name, SD, **options)
    scheduler.set_timesteps(calls)
    table = scheduler.table()
    levels = scheduler.levels
    steps = Levels(levels.t, levels.alpha, levels.sigma)[np.append(levels.stage == 0, True)]
    return table, steps


def start(mixture, levels):
    return mixture.sample(8, levels.alpha[0], levels.sigma[0], seed=3)


class Reference:
    """A denoiser D(y, sigma) as k-diffusion has it, over the mixture's."""

    def __init__(self, mixture):
        self.mixture = mixture

    def denoise(self, y, sigma):
        alpha = 1 / np.sqrt(1 + sigma**2)
        return self.mixture.x0(alpha * y, alpha, alpha * sigma)

    def slope(self, y, sigma):
        return (y - self.denoise(y, sigma)) / sigma


def ancestral(sigma, target, eta=1.0):
    up = min(target, eta * np.sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
    return np.sqrt(target**2 - up**2), up


def k_dpm2(d, y, sigmas, noise, eta):
    for sigma, target in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, target, eta)
        slope = d.slope(y, sigma)
        if down == 0:
            y = y + slope * (down - sigma)
        else:
            middle = np.exp((np.log(sigma) + np.log(down)) / 2)
            y = y + d.slope(y + slope * (middle - sigma), middle) * (down - sigma)
        if up:
            y = y + up * noise()
    return y


def k_2s_ancestral(d, y, sigmas, noise, eta):
    for sigma, target in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, target, eta)
        if down == 0:
            y = y + d.slope(y, sigma) * (down - sigma)
        else:
            t, t_next = -np.log(sigma), -np.log(down)
            s = t + (t_next - t) / 2
            y2 = np.exp(-s) / np.exp(-t) * y - np.expm1(-(s - t)) * d.denoise(y, sigma)
            y = np.exp(-t_next) / np.exp(-t) * y - np.expm1(-(t_next - t)) * d.denoise(y2, np.exp(-s))
        if up:
            y = y + up * noise()
    return y


def k_heunpp(d, y, sigmas):
    for i, (sigma, target) in enumerate(itertools.pairwise(sigmas)):
        slope = d.slope(y, sigma)
        ahead = y + slope * (target - sigma)
        if i == len(sigmas) - 2:
            return ahead
        second = d.slope(ahead, target)
        if i == len(sigmas) - 3:
            w = target / (2 * sigmas[0])
            y = y + (slope * (1 - w) + second * w) * (target - sigma)
            continue
        far = sigmas[i + 2]
        third = d.slope(ahead + second * (far - target), far)
        w2, w3 = target / (3 * sigmas[0]), far / (3 * sigmas[0])
        y = y + (slope * (1 - w2 - w3) + second * w2 + third * w3) * (target - sigma)
    return y


@over("calls", [1, 3, 11, 25])
@over("name, eta", [("dpm2", 0.0), ("dpm2 a", 1.0), ("dpm2 a", 0.4)])
def test_dpm2_is_k_diffusions(name, eta, calls, mixture):
    table, steps = setup(name, calls, grid="karras", **({"eta": eta} if eta else {}))
    x, rng = start(mixture, steps), np.random.default_rng(5)
    expected = k_dpm2(Reference(mixture), x / steps.alpha[0], steps.ratio, lambda: rng.standard_normal(x.shape), eta)
    np.testing.assert_allclose(run_table(table, mixture, x, seed=5), expected, atol=1e-10)


@over("eta", [0.0, 0.4, 1.0])
def test_2s_ancestral_is_k_diffusions(eta, mixture):
    table, steps = setup("dpm++ 2s a", grid="karras", eta=eta)
    x, rng = start(mixture, steps), np.random.default_rng(5)
    expected = k_2s_ancestral(
        Reference(mixture), x / steps.alpha[0], steps.ratio, lambda: rng.standard_normal(x.shape), eta
    )
    np.testing.assert_allclose(run_table(table, mixture, x, seed=5), expected, atol=1e-10)


@over("calls", [3, 12, 30])
def test_heunpp_is_the_known_blend(calls, mixture):
    table, steps = setup("heun++", calls, grid="karras")
    x = start(mixture, steps)
    expected = k_heunpp(Reference(mixture), x / steps.alpha[0], steps.ratio)
    np.testing.assert_allclose(run_table(table, mixture, x), expected, atol=1e-10)


def test_dpmpp_sde_is_k_diffusions(mixture):
    """Each step's mean and total noise; k-diffusion's two noises per step are replaced by the path's."""
    table, steps = setup("dpm++ sde", grid="karras")
    x, rng, d = start(mixture, steps), np.random.default_rng(5), Reference(mixture)
    y, sigmas = x / steps.alpha[0], steps.ratio
    for sigma, target in itertools.pairwise(sigmas[:-1]):
        middle = np.sqrt(sigma * target)
        down, up = ancestral(sigma, middle)
        first, second = rng.standard_normal(x.shape), rng.standard_normal(x.shape)
        denoised = d.denoise(y, sigma)
        y2 = down / sigma * y + (1 - down / sigma) * denoised + up * first
        down, up = ancestral(sigma, target)
        carried = (target / middle) ** 2 * ancestral(sigma, middle)[1]
        drawn = (carried * first + np.sqrt(up**2 - carried**2) * second) / up
        y = down / sigma * y + (1 - down / sigma) * d.denoise(y2, middle) + up * drawn
    y = d.denoise(y, sigmas[-2])
    np.testing.assert_allclose(run_table(table, mixture, x, seed=5), y, atol=1e-9)


@over("eta", [0.3, 1.0])
@over("solver", ["midpoint", "heun"])
def test_2m_sde_is_k_diffusions(solver, eta, mixture):
    table, steps = setup_multistep(2, eta, solver_type=solver)
    x, rng, d = start(mixture, steps), np.random.default_rng(5), Reference(mixture)
    y, old, h_last = x / steps.alpha[0], None, None
    for sigma, target in zip(steps.ratio, steps.ratio[1:], strict=False):
        denoised = d.denoise(y, sigma)
        if target == 0:
            y = denoised
            continue
        h = np.log(sigma) - np.log(target)
        y = target / sigma * np.exp(-eta * h) * y - np.expm1(-h - eta * h) * denoised
        if old is not None:
            r = h_last / h
            if solver == "heun":
                y += ((-np.expm1(-h - eta * h)) / (-h - eta * h) + 1) * (1 / r) * (denoised - old)
            else:
                y += 0.5 * (-np.expm1(-h - eta * h)) * (1 / r) * (denoised - old)
        y += rng.standard_normal(x.shape) * target * np.sqrt(-np.expm1(-2 * eta * h))
        old, h_last = denoised, h
    np.testing.assert_allclose(run_table(table, mixture, x, seed=5), y, atol=1e-10)


def test_3m_sde_is_k_diffusions(mixture):
    options = sd_ext.make_scheduler("dpm++ 3m sde").config
    table, steps = setup_multistep(3, 1.0, solver_type=options["solver_type"])
    x, rng, d = start(mixture, steps), np.random.default_rng(5), Reference(mixture)
    y, past, hs = x / steps.alpha[0], [], []
    for sigma, target in zip(steps.ratio, steps.ratio[1:], strict=False):
        denoised = d.denoise(y, sigma)
        if target == 0:
            y = denoised
            continue
        h = np.log(sigma) - np.log(target)
        h_eta = 2 * h
        y = np.exp(-h_eta) * y - np.expm1(-h_eta) * denoised
        phi_2 = np.expm1(-h_eta) / h_eta + 1
        if len(past) == 1:
            y += phi_2 * (denoised - past[0]) / (hs[0] / h)
        elif len(past) >= 2:
            r0, r1 = hs[0] / h, hs[1] / h
            d1_0, d1_1 = (denoised - past[0]) / r0, (past[0] - past[1]) / r1
            d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
            y += phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        y += rng.standard_normal(x.shape) * target * np.sqrt(-np.expm1(-2 * h))
        past, hs = [denoised, *past], [h, *hs]
    np.testing.assert_allclose(run_table(table, mixture, x, seed=5), y, atol=1e-10)


def setup_multistep(order, eta, **options):
    schedule = sd_ext.NoiseSchedule.from_config(SD)
    steps = schedule.at_lambda(np.linspace(-2.6, 3.0, 17)).then(ZERO)
    options = {"lower_order_final": False, "eta": eta, **options}
    return multistep(steps, order, "sde-dpmsolver++", **options), steps


def test_res_multistep_is_2m_with_the_whole_line(schedule):
    levels = schedule.at_lambda(np.linspace(-2.5, 2.0, 12)).then(ZERO)
    twin = multistep(levels, 2, "dpmsolver++", "heun", lower_order_final=False)
    np.testing.assert_allclose(res_multistep(levels).rows, twin.rows, atol=1e-12)


def test_stochastic_steps_without_noise_are_their_twins(schedule):
    levels = schedule.at_lambda(np.linspace(-2.5, 2.0, 13)).then(ZERO)
    stages = levels.with_stages([*[0, 1] * 6, 0])
    ode = sd_ext.make_scheduler("dpm++ 2s")._table(stages, 0.0)
    np.testing.assert_allclose(seeds(stages, eta=0.0).rows, ode.rows, atol=1e-12)
    np.testing.assert_allclose(
        multistep(levels, 3, "sde-dpmsolver++", eta=0.0).rows, multistep(levels, 3).rows, atol=1e-12
    )
    np.testing.assert_array_equal(dpm2(stages, eta=0.0).rows, dpm2(stages).rows)


def test_strength_of_the_sde_grows_the_noise(schedule):
    levels = schedule.at_lambda([-1.0, -0.4])
    noise = [Kernel.of(levels, 0, 1, "x0", eta=eta).noise for eta in (0.0, 0.25, 0.5, 1.0)]
    assert noise[0] == 0 and noise == sorted(noise)
    assert noise[-1] == pytest.approx(levels.sigma[1] * np.sqrt(1 - np.exp(-2 * 0.6)))


@over("n", [1, 2, 3, 4])
@over("h", [1e-3, 0.3, 2.0])
@over("basis, eta", [("x0", 0.0), ("x0", 0.7), ("eps", 0.0)])
def test_moments_are_the_integrals(n, h, basis, eta, schedule):
    from scipy.integrate import quad

    levels = schedule.at_lambda([-1.0, -1.0 + h])
    kernel = Kernel.of(levels, 0, 1, basis, eta=eta)
    k, scale = kernel.k, kernel.scale
    expected = [scale * quad(lambda s, m=m: k * np.exp(-k * (1 - s)) * s**m, 0, 1, epsabs=1e-14)[0] for m in range(n)]
    np.testing.assert_allclose(kernel.moments(n), expected, rtol=1e-10)


# ---- Diffusers


def pair(name, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**SD, **config), getattr(sd_ext, name)(**SD, **config)


@over("spacing", ["linspace", "trailing"])
@over("steps", [2, 5, 15])
def test_dpm2_is_diffusers(steps, spacing):
    """n steps of Diffusers' are 2n - 1 calls, which is what ours counts."""
    theirs, ours = pair("KDPM2DiscreteScheduler", timestep_spacing=spacing)
    assert_close(sample(ours, 2 * steps - 1), sample(theirs, steps))


@over("steps", [2, 5, 15])
def test_dpm2_ancestral_is_diffusers(steps):
    theirs, ours = pair("KDPM2AncestralDiscreteScheduler", timestep_spacing="trailing")
    options = {"generator": True, "dtype": torch.float32}
    assert_close(sample(ours, 2 * steps - 1, **options), sample(theirs, steps, **options), 2e-4)


def test_deviation_dpm_solver_sde_uses_the_generator():
    """Diffusers' DPMSolverSDEScheduler takes no generator: two runs from one seed are two pictures. Ours are one."""
    theirs, ours = pair("DPMSolverSDEScheduler")

    def run(scheduler, **source):
        scheduler.set_timesteps(9)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x, **source).prev_sample
        return x

    assert "generator" not in inspect.signature(theirs.step).parameters
    assert (run(theirs) - run(theirs)).abs().max() > 1e-3
    first, second = (run(ours, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@over("calls", [5, 8, 11, 20, 31])
@over("algorithm", ["dpmsolver", "dpmsolver++"])
def test_deviation_singlestep_3_is_finite_and_third_order(calls, algorithm):
    """Diffusers' singlestep order 3 is NaN at 3n - 1 calls with a clean end (#9007)."""
    ours = sd_ext.DPMSolverSinglestepScheduler(**SD, solver_order=3, algorithm_type=algorithm)
    assert torch.isfinite(sample(ours, calls)).all()


def test_heun_keeps_its_rows(schedule):
    """Heun's pair of calls, against algorithm 1 of arXiv 2206.00364 written out."""
    levels = schedule.at_lambda([-1.0, -0.5, -0.5, 0.2]).with_stages([0, 1, 0])[:3].with_stages([0, 1])
    alpha, ratio = levels.alpha, levels.ratio
    row = heun(levels).rows[1, 0]
    step = alpha[2] * (ratio[2] - ratio[0])
    # x_pred = alpha' / alpha x + step eps_0; x' = x_pred + step (eps_1 - eps_0) / 2
    np.testing.assert_allclose(row[[0, 2, 3]], [1.0, step / 2, -step / 2], atol=1e-12)

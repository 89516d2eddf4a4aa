"""Parity with Diffusers' same-named schedulers wherever they are right; every deviation is a test with its reason.

The network of these tests does not look at the timestep, so that whole and fractional timesteps cannot hide a wrong
coefficient. Diffusers computes in float32, which is what the tolerance allows for.
"""

from __future__ import annotations

import warnings

import diffusers
import numpy as np
import pytest
import torch

import sd_ext

from .conftest import SD
from .over import over


def network(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.3 * x.sum(1, keepdim=True) + 0.5 * x)


def sample(
    scheduler, calls: int, *, generator: bool = False, model=network, dtype=torch.float64, **step_args
) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(calls)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        x = x * float(scheduler.init_noise_sigma)
        if generator:
            step_args["generator"] = torch.Generator().manual_seed(7)
        for t in scheduler.timesteps:
            out = model(scheduler.scale_model_input(x, t)).to(dtype)
            x = scheduler.step(out, t, x, return_dict=False, **step_args)[0].to(dtype)
    return x.double()


def both(name: str, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (getattr(lib, name)(**{**SD, **config}) for lib in (diffusers, sd_ext))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert (ours - theirs).abs().max() / theirs.abs().max() < tolerance


MULTISTEP = "DPMSolverMultistepScheduler"
SAME = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, ("leading", "trailing")),
    ("DDIMScheduler", {"clip_sample": False}, ("leading", "trailing")),
    ("DDPMScheduler", {"clip_sample": False}, ("leading", "trailing", "linspace")),
    ("DDPMScheduler", {"clip_sample": True}, ("leading", "trailing", "linspace")),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, ("leading",)),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small_log"}, ("leading",)),
    ("EulerDiscreteScheduler", {"steps_offset": 1}, ("leading", "trailing", "linspace")),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, ("linspace",)),
    ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}, ("leading", "trailing")),
    (MULTISTEP, {"solver_order": 1}, ("leading", "trailing", "linspace")),
    (MULTISTEP, {}, ("leading", "trailing", "linspace")),
    (MULTISTEP, {"solver_type": "heun"}, ("leading", "trailing", "linspace")),
    (MULTISTEP, {"solver_order": 3}, ("leading", "trailing", "linspace")),
    (MULTISTEP, {"use_karras_sigmas": True}, ("linspace",)),
    (MULTISTEP, {"use_lu_lambdas": True}, ("linspace",)),
    (MULTISTEP, {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, ("trailing",)),
    (MULTISTEP, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, ("trailing",)),
    (MULTISTEP, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, ("trailing", "linspace")),
    (MULTISTEP, {"algorithm_type": "dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}, ("trailing",)),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}, ("leading", "trailing", "linspace")),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, ("trailing",)),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}, ("trailing",)),
    (MULTISTEP, {"thresholding": True, "sample_max_value": 2.0}, ("trailing",)),
    (MULTISTEP, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, ("leading",)),
    (MULTISTEP, {"prediction_type": "v_prediction"}, ("trailing",)),
    (MULTISTEP, {"prediction_type": "sample"}, ("trailing",)),
]


@over("calls", [1, 2, 20], full=[1, 2, 5, 10, 20, 50])
@over(
    "name, config, spacing",
    [(name, config, spacing) for name, config, spacings in SAME for spacing in spacings],
)
def test_same_samples(name, config, spacing, calls):
    theirs, ours = both(name, **config, timestep_spacing=spacing)
    if calls == 1 and spacing == "linspace" and name != MULTISTEP:
        calls = 3  # one call: see test_deviation_one_call_starts_at_full_noise
    noisy = (
        "generator" if name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") or "sde" in str(config) else None
    )
    options = {"generator": bool(noisy), "dtype": torch.float32}
    assert_close(sample(ours, calls, **options), sample(theirs, calls, **options), 2e-4 if noisy else 1e-4)


@over("eta", [0.3, 1.0])
def test_ddim_with_eta(eta):
    theirs, ours = both("DDIMScheduler", clip_sample=False)
    options = {"generator": True, "dtype": torch.float32, "eta": eta}
    assert_close(sample(ours, 20, **options), sample(theirs, 20, **options))


@over("solver_type", ["midpoint", "heun"])
@over("calls", [3, 10, 20, 31])
def test_singlestep(solver_type, calls):
    theirs, ours = both("DPMSolverSinglestepScheduler", solver_type=solver_type)
    theirs.register_to_config(lower_order_final=True)
    assert_close(sample(ours, calls), sample(theirs, calls))


@over("steps", [2, 5, 15])
def test_heun(steps):
    """n steps of Diffusers' Heun are 2n - 1 calls, which is what ours counts."""
    theirs, ours = both("HeunDiscreteScheduler", timestep_spacing="trailing")
    assert_close(sample(ours, 2 * steps - 1), sample(theirs, steps))


def test_learned_range_variance():
    theirs, ours = both("DDPMScheduler", variance_type="learned_range", clip_sample=False)

    def model(x):
        return torch.cat([network(x), torch.sin(x)], dim=1)

    options = {"generator": True, "model": model, "dtype": torch.float32}
    assert_close(sample(ours, 25, **options), sample(theirs, 25, **options))


# ---- deviations
# ----------------------------------------------------------------------------------------------------------


def test_deviation_ddim_linspace_steps_to_the_next_timestep():
    """Diffusers' DDIM steps by a fixed stride, which on linspace is not the next timestep (#12633, #11347, #9261)."""
    theirs, ours = both("DDIMScheduler", clip_sample=False, timestep_spacing="linspace")
    euler = sd_ext.EulerDiscreteScheduler(**SD)
    theirs.set_timesteps(10)
    euler.set_timesteps(timesteps=theirs.timesteps)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in euler.timesteps:  # the same first-order steps, between the timesteps that were announced
        x = euler.step(network(x), t, x).prev_sample
    ours.set_timesteps(timesteps=theirs.timesteps)
    mine = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in ours.timesteps:
        mine = ours.step(network(mine), t, mine).prev_sample
    assert_close(mine, x, 1e-9)
    assert (sample(theirs, 10) - x).abs().max() > 0.1


def test_deviation_one_call_starts_at_full_noise():
    """Diffusers' closed linspace of one timestep is t = 0, where there is nothing to remove."""
    theirs, ours = both("DDPMScheduler", timestep_spacing="linspace")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(1)
    assert (theirs.timesteps.tolist(), ours.timesteps.tolist()) == ([0], [999])


def test_deviation_clipping_retakes_eps():
    """Diffusers' DDIM mixes a clipped x0 with the unclipped eps, which leaves the noise level; ours retakes eps."""
    theirs, ours = both("DDIMScheduler", clip_sample=True)
    retaken = sample(theirs, 10, use_clipped_model_output=True)
    assert_close(sample(ours, 10), retaken)
    assert (sample(theirs, 10) - retaken).abs().max() > 0.01


def test_deviation_plms_makes_no_extra_call():
    """Diffusers' PNDM makes n + 1 calls for n steps (#1106, #9090). After the start the rows are the same."""
    theirs = diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
    ours = sd_ext.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    assert (len(theirs.timesteps), len(ours.timesteps)) == (21, 20)
    eps = [torch.randn(1, 1, 1, 1, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    theirs.ets, theirs.counter = eps[1:4], 10
    x = torch.ones(1, 1, 1, 1)
    expected = theirs.step(eps[4], theirs.timesteps[10], x).prev_sample
    row = ours.table().rows[9, 0]
    got = row[0] * x + sum(w * e for w, e in zip(row[2:6], [eps[4], *eps[3:0:-1]], strict=True))
    torch.testing.assert_close(got.float(), expected, atol=1e-5, rtol=1e-5)


def test_deviation_fixed_large_log_is_finite():
    """Diffusers takes the square root of a logarithm: NaN."""
    theirs, ours = both("DDPMScheduler", variance_type="fixed_large_log", clip_sample=False)
    large = sd_ext.DDPMScheduler(**SD, variance_type="fixed_large", clip_sample=False)
    options = {"generator": True, "dtype": torch.float32}
    assert torch.isnan(sample(theirs, 10, **options)).any()
    assert torch.equal(sample(ours, 10, **options), sample(large, 10, **options))


def test_deviation_third_order_sde():
    """Diffusers' third-order SDE has "- 0.5" for "+ 0.5" in its quadratic moment: at h = 0.3 the weight of D2 is -0.913
    where k-diffusion's published form is +0.087."""
    h = 0.3
    theirs = (1 - np.exp(-2 * h) - 2 * h) / (2 * h) ** 2 - 0.5
    ours = sd_ext.make_scheduler("dpm++ 2m sde", solver_order=3)
    schedule = ours.schedule
    ours.set_timesteps(sigmas=np.exp(-np.array([-1.5, -1.2, -0.9, -0.6, -0.3])))
    levels = ours.table().levels
    row = ours.table().rows[2, 0]
    # With equal steps p2 appears in D1 (1/2 of the first moment) and in D2 (1/2): solve for the weight of D2.
    first = levels.alpha[3] * (1 - (1 - np.exp(-2 * h)) / (2 * h))
    quadratic = (row[4] - first / 2) * 2 / levels.alpha[3]
    assert theirs == pytest.approx(-0.913, abs=5e-3)
    assert quadratic == pytest.approx(0.087, abs=5e-3)
    assert schedule.t_max == 999


def test_deviation_float64_coefficients():
    """Diffusers rounds sigmas to float32; on the mixture its DPM-Solver-3 error stops falling. Ours is a float64
    table.
    """
    scheduler = sd_ext.make_scheduler("dpm++ 2m karras")
    scheduler.set_timesteps(20)
    table = scheduler.table()
    assert np.abs(table.rows - table.rows.astype(np.float32)).max() > 1e-9
    assert table.rows.dtype == np.float64


def test_deviation_cosine_karras_keeps_its_timesteps_apart():
    """Diffusers repeats truncated timesteps there and loses its place in the run (#12771)."""
    ours = sd_ext.make_scheduler("dpm++ 2m karras", {"beta_schedule": "squaredcos_cap_v2"})
    ours.set_timesteps(40)
    assert len(set(ours.timesteps.tolist())) == 40
    assert torch.isfinite(sample(ours, 40)).all()


def test_deviation_exponential_timesteps_are_not_truncated():
    """Diffusers cuts the timestep told to the network to a whole number (#13768); ours belongs to its sigma."""
    theirs, ours = both(MULTISTEP, use_exponential_sigmas=True)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(12)
    np.testing.assert_allclose(ours.sigmas.numpy(), theirs.sigmas.numpy(), rtol=1e-4)
    levels = ours.schedule.at(ours.timesteps.double().numpy())
    np.testing.assert_allclose(levels.ratio, ours.sigmas[:-1].numpy(), rtol=1e-4)
    truncated = ours.schedule.at(theirs.timesteps.double().numpy())
    assert np.abs(truncated.ratio / theirs.sigmas[:-1].numpy() - 1).max() > 0.01


def test_deviation_ancestral_is_finite_on_the_cosine_schedule():
    """Diffusers' Euler a gives NaN there (#14213)."""
    ours = sd_ext.make_scheduler("euler a", {"beta_schedule": "squaredcos_cap_v2"})
    assert torch.isfinite(sample(ours, 20, generator=True)).all()

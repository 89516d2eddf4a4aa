"""Our classes with a name of Diffusers' have what its class has, as far as Diffusers itself can say what that is."""

from __future__ import annotations

import inspect
import itertools
import warnings

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.drop_in import INNER, ORDERS

from .conftest import SD
from .over import over

SAME = sorted(name for name in sd_ext.__all__ if name.endswith("Scheduler") and hasattr(diffusers, name))
OWN_DEFAULTS = {"DDIMInverseScheduler": {"clip_sample": False}}
"""Other than in Diffusers, on purpose: see `test_deviation_inverse_ddim_does_not_clip`."""

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def both(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**options), getattr(sd_ext, name)(**options)


@over("name", SAME)
def test_constructors_take_diffusers_arguments_in_its_order_with_its_defaults(name):
    theirs = list(inspect.signature(getattr(diffusers, name).__init__).parameters.values())[1:]
    theirs = [p for p in theirs if p.kind is not inspect.Parameter.VAR_KEYWORD]  # old names
    ours = list(inspect.signature(getattr(sd_ext, name).__init__).parameters.values())[1:]
    assert [p.name for p in theirs] == ORDERS[name].split() == [p.name for p in ours[: len(theirs)]]
    other = {p.name: q.default for p, q in zip(theirs, ours, strict=False) if p.default != q.default}
    assert other == OWN_DEFAULTS.get(name, {})
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@over("name", SAME)
def test_attributes_and_methods_are_here_or_refused_by_name(name):
    theirs, ours = both(name)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    for attribute in (each for each in dir(theirs) if not each.startswith("_")):
        if attribute in INNER and not hasattr(ours, attribute):
            with pytest.raises(InputError, match=f"{name} has no '{attribute}'"):
                getattr(ours, attribute)
        else:
            assert hasattr(ours, attribute), attribute


@over("name", SAME)
def test_init_noise_sigma_is_of_diffusers_type_and_a_number(name):
    for spacing in (None, "leading", "trailing"):
        given = {} if spacing is None or "timestep_spacing" not in ORDERS[name] else {"timestep_spacing": spacing}
        theirs, ours = both(name, **given)
        for _ in range(2):
            assert isinstance(ours.init_noise_sigma, torch.Tensor) or not isinstance(
                getattr(theirs, "init_noise_sigma", 1.0), torch.Tensor
            )
            assert 0.9 < float(ours.init_noise_sigma) <= 1
            x = torch.ones(2, 3) * ours.init_noise_sigma
            assert x.dtype == torch.float32 and float(x[0, 0]) == pytest.approx(float(ours.init_noise_sigma))
            ours.set_timesteps(10)


@over("name", [name for name in SAME if name not in FLOW and name != "IPNDMScheduler"])
def test_tables_of_the_trained_process_are_diffusers(name):
    theirs, ours = both(name, **SD)
    for attribute in ("alphas_cumprod", "alphas", "betas", "alpha_t", "sigma_t", "lambda_t", "final_alpha_cumprod"):
        if hasattr(theirs, attribute):
            got, expected = getattr(ours, attribute), getattr(theirs, attribute)
            torch.testing.assert_close(got, torch.as_tensor(expected), atol=2e-5, rtol=2e-5)


@over("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_previous_timestep_and_index_for_timestep(name):
    ours = getattr(sd_ext, name)(**SD)
    assert int(ours.previous_timestep(500)) == 499 and int(ours.previous_timestep(0)) == -1
    ours.set_timesteps(timesteps=[900, 500, 7])
    assert [int(ours.previous_timestep(t)) for t in ours.timesteps] == [500, 7, -1]
    assert [ours.index_for_timestep(t) for t in (900, torch.tensor(500), ours.timesteps[2])] == [0, 1, 2]
    assert ours.index_for_timestep(3, [5, 3, 1]) == 1
    for wrong in (lambda: ours.previous_timestep(8), lambda: ours.index_for_timestep(8, [1])):
        with pytest.raises(InputError, match="timestep 8 is "):
            wrong()


def test_pndm_in_two_loops_is_pndm_in_one():
    ours, x = sd_ext.PNDMScheduler(**SD), torch.randn(1, 4, 8, 8)
    with pytest.raises(InputError, match="set_timesteps"):
        ours.step_plms(x, 1, x)
    ours.set_timesteps(17)
    assert len(ours.prk_timesteps) == 12 and len(ours.plms_timesteps) == 5
    ends = []
    for steps in ((ours.step_prk, ours.step_plms), (ours.step, ours.step)):
        end = x
        for step, timesteps in zip(steps, (ours.prk_timesteps, ours.plms_timesteps), strict=True):
            for t in timesteps:
                end = step(torch.tanh(end), t, end).prev_sample
        ends.append(end)
    assert torch.equal(*ends)
    ours = sd_ext.PNDMScheduler(**SD, skip_prk_steps=True)
    ours.set_timesteps(5)
    assert len(ours.prk_timesteps) == 0 and torch.equal(ours.plms_timesteps, ours.timesteps)


def test_a_seed_in_the_config_is_the_noise_of_steps_without_a_generator():
    ends = {}
    for seed, turn in itertools.product((None, 0, 7), range(2)):
        ours = sd_ext.DPMSolverSDEScheduler(**SD, noise_sampler_seed=seed)
        ours.set_timesteps(9)
        x = torch.ones(1, 4, 8, 8)
        for t in ours.timesteps:
            x = ours.step(torch.tanh(x), t, x).prev_sample
        ends[seed, turn] = x
    assert torch.equal(ends[0, 0], ends[0, 1]) and torch.equal(ends[7, 0], ends[7, 1])
    assert not torch.equal(ends[0, 0], ends[7, 0]) and not torch.equal(ends[None, 0], ends[None, 1])
    with pytest.raises(InputError, match="noise_sampler_seed is not in the exported file"):
        ours.export("nowhere")


@over("order, calls, lower", [(o, n, lower) for o in (1, 2, 3) for n in (6, 7, 12) for lower in (False, True)])
def test_singlestep_orders_are_diffusers(order, calls, lower):
    options = {**SD, "solver_order": order, "lower_order_final": lower, "final_sigmas_type": "sigma_min"}
    theirs, ours = both("DPMSolverSinglestepScheduler", **options)
    theirs.set_timesteps(calls)
    ours.set_timesteps(calls)
    wanted = [n - 1 for n in theirs.order_list]
    np.testing.assert_array_equal(ours.levels.stage[:calls], wanted)


def test_the_exponential_betas_are_diffusers():
    theirs, ours = both("HeunDiscreteScheduler", beta_schedule="exp")
    torch.testing.assert_close(ours.betas, theirs.betas, atol=1e-5, rtol=1e-4)


@over("name", ["DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "DPMSolverMultistepScheduler"])
def test_linspace_has_as_many_calls_as_there_are_timesteps(name):
    ours = getattr(sd_ext, name)(num_train_timesteps=25)
    ours.set_timesteps(25)
    assert ours.timesteps.tolist() == [*range(24, -1, -1)]


@over("name", ["DDIMScheduler", "PNDMScheduler"])
def test_leading_without_offset_has_diffusers_timesteps_and_an_idle_last_call(name):
    options = {**SD, "set_alpha_to_one": False, "timestep_spacing": "leading"}
    theirs, ours = both("DDIMScheduler", **options, clip_sample=False)
    theirs.set_timesteps(40)
    if name == "PNDMScheduler":
        ours = sd_ext.PNDMScheduler(**options, skip_prk_steps=True)
    ours.set_timesteps(40)
    assert torch.equal(theirs.timesteps, ours.timesteps)
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(ours.step(torch.tanh(x), 0, x).prev_sample, x, atol=1e-5, rtol=1e-5)


@over(
    "name, step, words",
    [
        ("LMSDiscreteScheduler", {"order": 2}, r"LMSDiscreteScheduler: step\(order=2\)"),
        ("DPMSolverSDEScheduler", {"s_noise": 0.5}, r"DPMSolverSDEScheduler: step\(s_noise=0.5\)"),
        ("EulerAncestralDiscreteScheduler", {"generator": False}, "takes return_dict by its name only"),
        ("HeunDiscreteScheduler", {"s_churn": False}, r"step\(s_churn=False\)"),
    ],
)
def test_arguments_of_step_that_cannot_be_taken_are_refused_by_name(name, step, words):
    ours, x = getattr(sd_ext, name)(**SD), torch.randn(1, 4, 8, 8)
    ours.set_timesteps(5)
    with pytest.raises(InputError, match=words):
        ours.step(x, ours.timesteps[0], x, **step)


@over(
    "name, option, words",
    [
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "EulerDiscreteScheduler: interpolation_type"),
        ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "EulerDiscreteScheduler: interpolation_type"),
        ("DEISMultistepScheduler", {"solver_type": "rk"}, "DEISMultistepScheduler: solver_type"),
        ("DPMSolverMultistepScheduler", {"variance_type": "big"}, "DPMSolverMultistepScheduler: variance_type"),
        ("LCMScheduler", {"set_alpha_to_one": 1}, "LCMScheduler: set_alpha_to_one"),
    ],
)
def test_options_that_cannot_be_taken_are_refused_by_name(name, option, words):
    with pytest.raises(InputError, match=words):
        getattr(sd_ext, name)(**option)


def test_unknown_arguments_name_the_class():
    with pytest.raises(TypeError, match="DDIMScheduler: got an unexpected keyword argument 'nonsense'"):
        sd_ext.DDIMScheduler(nonsense=1)


def test_the_number_of_trained_timesteps_belongs_to_the_constructor():
    ours = sd_ext.HeunDiscreteScheduler(**SD)
    ours.set_timesteps(5, "cpu", 1000)
    with pytest.raises(InputError, match=r"HeunDiscreteScheduler: set_timesteps\(num_train_timesteps=500\)"):
        ours.set_timesteps(5, "cpu", 500)


def test_set_shift():
    ours, theirs = sd_ext.FlowMatchEulerDiscreteScheduler(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours.set_shift(3.0)
    for one in (ours, theirs):
        one.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="DDIMScheduler: set_shift is for flow models"):
        sd_ext.DDIMScheduler().set_shift(3.0)


def test_the_variance_of_a_step_is_diffusers():
    for name, args in (
        ("DDIMScheduler", [(420, 400), (980, 960), (487, 486), (0, -1)]),
        ("DDPMScheduler", [(999,), (7,)]),
    ):
        theirs, ours = (getattr(package, name)(**SD) for package in (diffusers, sd_ext))
        for each in args:
            torch.testing.assert_close(ours._get_variance(*each), theirs._get_variance(*each), rtol=2e-4, atol=1e-7)


def test_a_last_call_at_the_least_noise_changes_nothing():
    """However the run was asked for, as in Diffusers."""
    for asked in ({"num_inference_steps": 4}, {"timesteps": [900, 600, 300, 0]}):
        scheduler = sd_ext.EulerDiscreteScheduler(**SD, final_sigmas_type="sigma_min", timestep_spacing="linspace")
        scheduler.set_timesteps(**asked)
        for t in scheduler.timesteps[:-1]:
            x = scheduler.step(torch.randn(1, 1, 2, 2), t, torch.randn(1, 1, 2, 2)).prev_sample
        last = scheduler.step(torch.randn(1, 1, 2, 2), scheduler.timesteps[-1], x).prev_sample
        torch.testing.assert_close(last, x, atol=1e-5, rtol=1e-5)

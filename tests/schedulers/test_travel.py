"""Grids that travel: what Diffusers' own classes make of our configs, in memory and as strict JSON."""

from __future__ import annotations

import json
import math

import diffusers
import numpy as np
import pytest

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.travel import FLAGS, SPACINGS

from .conftest import SD
from .over import CLASSES, over

MODEL = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
"""As Stable Diffusion's pipelines have it: not the spacing whose ends are the model's."""

QUICK = ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler",
         "LMSDiscreteScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
         "HeunDiscreteScheduler"]  # fmt: skip
SLOW = ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]


def not_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def saved(scheduler) -> dict:
    """The config as a strict reader of JSON finds it."""
    return json.loads(scheduler.to_json_string(), parse_constant=not_json)


def theirs(name: str, config, calls: int):
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(calls)
    return scheduler


@over("grid, flag", [("karras", "use_karras_sigmas"), ("Exponential", "use_exponential_sigmas"),
                     ("beta_sigmas", "use_beta_sigmas"), ("lu", "use_exponential_sigmas")])  # fmt: skip
@over("written", ["json"], full=["json", "memory"])
@over("name", QUICK, full=[*QUICK, *SLOW])
def test_diffusers_places_the_same_sigmas(name, written, grid, flag):
    ours = sd_ext.make_scheduler("euler", MODEL, grid=grid)
    ours.set_timesteps(11)
    other = theirs(name, saved(ours) if written == "json" else ours.config, 11)
    assert other.config[flag] and sum(bool(other.config.get(each)) for each in FLAGS) == 1
    found = np.unique(other.sigmas.numpy())[::-1]
    if name == "DPMSolverSinglestepScheduler":  # ends at the least sigma
        found = found[found > 0]
    np.testing.assert_allclose(found[found > 0], ours.levels.ratio[:-1], rtol=1e-4)


def test_diffusers_reads_lu_lambdas_from_a_flag_of_its_own():
    ours = sd_ext.DPMSolverMultistepScheduler.from_config(MODEL, use_lu_lambdas=True)
    ours.set_timesteps(9)
    other = theirs("DPMSolverMultistepScheduler", saved(ours), 9)
    assert other.config["use_lu_lambdas"]
    np.testing.assert_allclose(other.sigmas.numpy(), ours.sigmas.numpy(), rtol=2e-5)


@over("spacing", SPACINGS)
@over("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_diffusers_places_the_same_timesteps(name, spacing):
    """A grid that Diffusers calls timestep_spacing, chosen for a model with another one."""
    other_spacing = "trailing" if spacing == "leading" else "leading"
    ours = sd_ext.make_scheduler(name, {**MODEL, "timestep_spacing": other_spacing}, grid=spacing)
    ours.set_timesteps(10)
    np.testing.assert_allclose(theirs(name, saved(ours), 10).timesteps.numpy(), ours.timesteps.numpy(), rtol=1e-6)


@over("settings", [{"grid": "karras", "grid_options": {"rho": 5.0}}, {"grid": "beta"}, {"grid": "ays"},
                   {"grid": "karras", "prediction_type": "flow_prediction"}])  # fmt: skip
def test_no_flag_stands_for_another_grid(settings):
    """And flags that were in the config of the model are cleared, which the grid goes before."""
    ours = sd_ext.EulerDiscreteScheduler.from_config({**MODEL, "use_exponential_sigmas": True}, **settings)
    assert not any(ours.config[flag] for flag in FLAGS) and ours.config["timestep_spacing"] == "leading"


@over("flag", FLAGS)
def test_a_flag_that_is_passed_goes_before_a_grid_in_the_config(flag):
    config = sd_ext.make_scheduler("dpm++ 2m karras", MODEL).config
    made = sd_ext.DPMSolverMultistepScheduler.from_config(config, **{flag: True})
    assert (made.config["grid"], [each for each in FLAGS if made.config[each]]) == (None, [flag])


def test_switching_a_flag_off_ends_its_grid_and_no_other():
    karras = sd_ext.make_scheduler("euler karras", MODEL).config
    made = sd_ext.EulerDiscreteScheduler.from_config(karras, use_karras_sigmas=False)
    assert made.config["grid"] is None and not made.config["use_karras_sigmas"]
    kept = sd_ext.EulerDiscreteScheduler.from_config(karras, use_beta_sigmas=False)
    assert kept.config["grid"] == "karras" and kept.config["use_karras_sigmas"]
    none = sd_ext.EulerDiscreteScheduler.from_config(karras, grid=None)
    assert none.config["grid"] is None and not none.config["use_karras_sigmas"]
    flag = sd_ext.EulerDiscreteScheduler.from_config({**MODEL, "use_karras_sigmas": True}, grid=None)
    assert flag.config["use_karras_sigmas"]
    plain = diffusers.EulerDiscreteScheduler.from_config(karras, use_karras_sigmas=False)
    assert not plain.config["use_karras_sigmas"]


def test_there_and_back_is_the_same_run():
    first = sd_ext.make_scheduler("dpm++ 2m karras", MODEL)
    back = sd_ext.DPMSolverMultistepScheduler.from_config(
        diffusers.DPMSolverMultistepScheduler.from_config(saved(first)).config
    )
    for scheduler in (first, back):
        scheduler.set_timesteps(8)
    np.testing.assert_allclose(back.levels.ratio, first.levels.ratio, rtol=1e-12)
    np.testing.assert_allclose(back.table().rows, first.table().rows, rtol=1e-12)


@over("cls", CLASSES)
def test_every_config_is_strict_json_and_says_the_same(cls, tmp_path):
    scheduler = cls.from_config(MODEL)
    saved(scheduler)
    scheduler.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    same = set(scheduler.config) - {"_use_default_values"}
    assert {k: again.config.get(k) for k in same} == {k: scheduler.config[k] for k in same}
    if hasattr(diffusers, cls.__name__):
        getattr(diffusers, cls.__name__).from_pretrained(tmp_path)


def test_what_is_infinite_and_not_the_default_is_said():
    with pytest.raises(InputError, match="lambda_min_clipped must be a number or -inf, got inf"):
        sd_ext.DPMSolverMultistepScheduler(lambda_min_clipped=math.inf)
    assert saved(sd_ext.DPMSolverMultistepScheduler(lambda_min_clipped=-5.1))["lambda_min_clipped"] == -5.1
    odd = sd_ext.EulerDiscreteScheduler()
    odd.register_to_config(foreign=[1.0, math.nan])
    diffusers.logging.enable_propagation()
    try:
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("sd_ext.schedulers.travel.logger.warning", said.append)
            assert "foreign" not in saved(odd)
    finally:
        diffusers.logging.disable_propagation()
    assert len(said) == 1 and said[0].startswith("foreign cannot be saved in JSON")


@over("name", ["lcm", "auto"])
def test_a_spacing_by_name_is_a_grid_for_samplers_with_steps_of_their_own(name):
    told = {"guidance_scale": 3.0} if name == "auto" else {}  # there its own grid is far from a spacing
    chosen, own = (sd_ext.make_scheduler(name, MODEL, **grid, **told) for grid in ({"grid": "linspace"}, {}))
    for scheduler in (chosen, own):
        scheduler.set_timesteps(6)
    np.testing.assert_allclose(
        chosen.timesteps.numpy(),
        np.linspace(999, 0, 7)[:6] if name == "auto" else np.linspace(999, 0, 6).round(),
        atol=0.5,
    )
    assert not np.allclose(chosen.timesteps.numpy(), own.timesteps.numpy(), atol=5)

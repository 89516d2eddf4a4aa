from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.grids import GRIDS
from sd_ext.schedulers.placement import check_grid_options, grid_levels

from .conftest import SD
from .grid_definitions import COUNTS, DEFINITIONS, HIGH, LOW, laplace_quantile, mochi, place, ramp
from .over import NAMES, over


def test_options_reach_the_formula():
    low, high = math.log(LOW), math.log(HIGH)
    poly = [math.exp((1 - r) ** 2.5 * (high - low) + low) for r in ramp(10)]
    np.testing.assert_allclose(place("polyexponential", 10, grid_options={"rho": 2.5}).ratio[:-1], poly, rtol=1e-9)
    laplace = [laplace_quantile(r, 0.3, 0.7) for r in ramp(10)]
    chosen = place("laplace", 10, grid_options={"mu": 0.3, "beta": 0.7})
    np.testing.assert_allclose(chosen.ratio[:-1], laplace, rtol=1e-9)
    karras = [(HIGH ** (1 / 3) + r * (LOW ** (1 / 3) - HIGH ** (1 / 3))) ** 3 for r in ramp(10)]
    np.testing.assert_allclose(place("karras", 10, grid_options={"rho": 3}).ratio[:-1], karras, rtol=1e-9)
    mochis = [HIGH * (1 - s) for s in mochi(10, 0.1)]
    chosen = place("linear_quadratic", 10, grid_options={"threshold": 0.1})
    np.testing.assert_allclose(chosen.ratio[:-1], mochis, rtol=1e-9)
    beta57, beta = place("beta57", 10), place("beta", 10, grid_options={"a": 0.5, "b": 0.7})
    np.testing.assert_array_equal(beta57.t, beta.t)


@over("name", sorted(name for name, grid in GRIDS.items() if grid.options))
def test_options_by_default_are_the_listed_ones(name):
    np.testing.assert_array_equal(place(name, 9).t, place(name, 9, grid_options=dict(GRIDS[name].options)).t)


@over(
    "name, options, message",
    [
        ("karras", {"roh": 7}, "no option 'roh'; it has rho"),
        ("laplace", {"rho": 7}, "no option 'rho'; it has mu, beta"),
        ("gits", {"coeff": 1.2}, "no option 'coeff'; it has none"),
        ("karras", {"rho": 0}, "rho .* above 0, got 0"),
        ("karras", {"rho": "7"}, "rho .* above 0, got '7'"),
        ("karras", {"rho": True}, "rho .* above 0, got True"),
        ("laplace", {"mu": math.nan}, "mu .* must be a number, got nan"),
        ("karras", 7, "must be a mapping"),
        ("linear_quadratic", {"threshold": 5.0}, "cannot place 10 distinct steps"),
    ],
)
def test_options_that_cannot_work(name, options, message):
    with pytest.raises(InputError, match=message):
        place(name, 10, grid_options=options)
    if "cannot place" not in message:
        with pytest.raises(InputError, match=message):
            check_grid_options({"grid": name, "grid_options": options})


@over("name", [name for name in DEFINITIONS if name != "ddim_uniform"])
def test_discarding_the_penultimate_sigma(name):
    """ComfyUI for dpm_2, dpm_2_a, uni_pc; AUTOMATIC1111 for DPM2, DPM2 a, 3M SDE: sigmas of n + 1 steps, and cut."""
    for n in COUNTS:
        sigmas = np.append(DEFINITIONS[name](n + 1), 0.0)
        expected = np.concatenate([sigmas[:-2], sigmas[-1:]])
        np.testing.assert_allclose(place(name, n, discard_penultimate_sigma=True).ratio, expected, rtol=1e-9)


def test_discarding_the_penultimate_sigma_of_a_run_that_ends_at_sigma_min():
    schedule = NoiseSchedule.from_config(SD)
    settings = {"grid": "karras", "steps_offset": 0, "lambda_min_clipped": -math.inf, "flow_shift": 1.0}
    settings |= {"sigma_min": None, "sigma_max": None, "discard_penultimate_sigma": True}
    levels = grid_levels(schedule, settings, 5, schedule.at([0.0]), closed=True, whole=True)
    np.testing.assert_allclose(levels.ratio, np.delete(DEFINITIONS["karras"](7), -2), rtol=1e-9)


@pytest.mark.parametrize("given", [[10.0, 1.0, 0.01], np.array([10.0, 0.02]), torch.tensor([5.0, 0.001])])
def test_sigmas_below_the_end_of_the_run_end_clean_and_say_so(given, said):
    scheduler = sd_ext.make_scheduler("euler", SD, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(sigmas=[10.0, 1.0])
    scheduler.set_timesteps(sigmas=[10.0, 1.0, 0.0])
    assert not said
    scheduler.set_timesteps(sigmas=given)
    assert scheduler.table().levels.sigma[-1] == 0 and len(said) == 1 and "this one ends clean" in said[0]


@over("name", ["euler", "dpm++ 2m karras", "heun", "dpm2", "restart", "lcm", "auto"], full=NAMES)
@over("process", ["epsilon", "flow_prediction"])
@over("end", ["zero", "sigma_min"])
def test_a_schedulers_own_timesteps_and_sigmas_announce_the_same_run(name, process, end):
    """Though both are shown in float32, and those of samplers with stages do not fall."""
    if name.startswith("flow"):  # whose timesteps are, as in Diffusers, those before the shift
        return
    shift = {"shift": 3.0} if process == "flow_prediction" else {}
    scheduler = sd_ext.make_scheduler(name, {**SD, "prediction_type": process, **shift}, final_sigmas_type=end)
    if scheduler.places_itself:
        return
    for calls in (1, 9):
        scheduler.set_timesteps(calls)
        table, timesteps, sigmas = scheduler.table(), scheduler.timesteps, scheduler.sigmas
        ways = [{"timesteps": timesteps}, {"timesteps": timesteps.tolist()}]
        if not shift:  # as are a flow's sigmas
            ways += [{"sigmas": sigmas}, {"sigmas": sigmas[:-1]}]
        for given in ways:
            scheduler.set_timesteps(**given)
            again = scheduler.table()
            assert np.array_equal(again.rows, table.rows) and np.array_equal(again.levels.t, table.levels.t), given

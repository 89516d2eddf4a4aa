"""The steps of other programs, against numbers that their own functions made (program_grids.json says how)."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest

import sd_ext
from sd_ext.cli.request.sampling import PROGRAMS
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers.find import habits, understand
from sd_ext.schedulers.grids import GRIDS
from sd_ext.schedulers.programs import get_program, programs

from .conftest import SD
from .over import over

RECORDED = json.loads((Path(__file__).parent / "program_grids.json").read_text())
LISTS = [
    (program, grid, int(n), sigmas)
    for program, grids in RECORDED.items()
    if program not in ("how", "a1111 automatic")
    for grid, lists in grids.items()
    for n, sigmas in lists.items()
]
LONGER = {(program, grid, n) for program, grid, n, sigmas in LISTS if len(sigmas) > n + 1}
"""Where the program makes more steps than it was asked for; ours are the last of them."""


def steps(scheduler) -> np.ndarray:
    """sigma where the solver steps begin, and at the end."""
    levels = scheduler.levels
    stage = np.zeros(len(levels)) if levels.stage is None else np.append(levels.stage, 0)[: len(levels)]
    return levels.ratio[stage == 0]


@over("program, grid, n, sigmas", [each for each in LISTS if each[2] in (5, 11, 30, 150)], full=LISTS)
def test_grids_are_the_recorded_ones(program, grid, n, sigmas):
    like, *model = program.split()
    scheduler = sd_ext.make_scheduler("euler", SD, grid=" ".join([grid, *model]), like=like)
    scheduler.set_timesteps(n)
    got = scheduler.levels.ratio
    assert len(got) == n + 1
    if len(sigmas) < n + 1:  # ComfyUI makes one step of two that fall on one timestep
        assert (program, grid, n) == ("comfyui", "beta", 150)
        assert len(sigmas) == n
        missing = [sigma for sigma in sigmas if not np.isclose(got, sigma, rtol=1e-4).any()]
        assert not missing
    else:
        np.testing.assert_allclose(got, sigmas[len(sigmas) - n - 1 :], rtol=1e-4)


def test_longer_lists_are_those_of_one_grid():
    assert {grid for _, grid, _ in LONGER} == {"DDIM", "ddim_uniform"}


def test_what_automatic_means_for_each_sampler():
    program = get_program("forge")
    for name, lists in RECORDED["a1111 automatic"].items():
        (sigmas,) = lists.values()
        if name == "DPM adaptive":
            with pytest.raises(InputError, match="'DPM adaptive' of Stable Diffusion WebUI Forge cannot"):
                understand(name, "forge")
            continue
        scheduler = sd_ext.make_scheduler(name, SD, like="forge")
        if name in ("DPM fast", "Restart"):  # DPM fast places its own steps, Restart's are more than its grid
            assert scheduler.config["grid"] == {"DPM fast": "lambda_uniform", "Restart": "karras"}[name]
            continue
        for calls in range(1, 60):
            scheduler.set_timesteps(calls)
            if len(steps(scheduler)) == len(sigmas):
                break
        np.testing.assert_allclose(steps(scheduler), sigmas, rtol=1e-4, err_msg=name)
    karras = [n for n, each in program.samplers.items() if each.get("grid") in ("Karras", "Exponential")]
    assert len(karras) == 9


def test_an_older_version_takes_its_own_grid_for_all():
    for version in ("a1111 1.8", "AUTOMATIC1111_1.8"):
        assert sd_ext.make_scheduler("DPM++ 2M", SD, like=version).config["grid"] == "normal"
    karras = sd_ext.make_scheduler("DPM++ 3M SDE Karras", SD, like="a1111 1.8").config
    assert karras["grid"] == "karras" and karras["discard_penultimate_sigma"]


@over("program", programs())
def test_every_sampler_of_a_program_is_one_of_ours_or_says_why_not(program):
    for name, entry in get_program(program).samplers.items():
        if "refused" in entry:
            with pytest.raises(InputError, match="cannot be a scheduler here: it "):
                sd_ext.make_scheduler(name, SD, like=program)
            continue
        meant = understand(name, program)
        made = sd_ext.make_scheduler(name, SD, like=program)
        made.set_timesteps(9)
        assert type(made) is meant.info.cls and len(made.timesteps) == 9
        assert set(entry) - {"sampler", "grid"} <= set(sd_ext.DDIMScheduler._options)
        assert "grid" not in entry or get_program(program).grid_options(entry["grid"]) is not None
        assert habits(get_program(program), meant.info) is not None


@over("program", programs())
def test_every_grid_of_a_program_is_one_of_ours(program):
    table = get_program(program)
    assert table.grid_options(table.grid) is not None
    for name, options in table.grids.items():
        assert options.get("grid") is None or options["grid"] in GRIDS
        assert set(options) <= set(sd_ext.DDIMScheduler._options)
        made = sd_ext.make_scheduler(f"euler {name}", {**SD, "use_karras_sigmas": True}, like=program)
        made.set_timesteps(7)
        assert len(made.timesteps) == 7


@over("name, cls, flags", [("dpmpp_2m_k", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
                           ("dpmpp_2m", "DPMSolverMultistepScheduler", {}), ("euler_k", "EulerDiscreteScheduler", None),
                           ("euler", "EulerDiscreteScheduler", {}), ("ddim", "DDIMScheduler", {})])  # fmt: skip
@over("left", [{}, {"grid": "ays"}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])
def test_programs_made_of_diffusers_take_its_steps(left, name, cls, flags):
    """On the model's own spacing, whatever grid the sampler before had."""
    model = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
    ours = sd_ext.make_scheduler(name, {**model, **left}, like="invokeai")
    spacing = {"use_karras_sigmas": True, "timestep_spacing": "linspace"} if flags is None else flags
    theirs = getattr(diffusers, cls).from_config({**model, **spacing})
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    np.testing.assert_allclose(ours.timesteps.numpy(), theirs.timesteps.numpy(), atol=0.51)


def test_names_that_only_a_program_has_mean_what_they_mean_there():
    for name, sampler, grid in [("Euler SGM", "euler", "trailing"), ("KDPM2 a", "dpm2 a", None),
                                ("kdpm_2_a_k", "dpm2 a", "karras"), ("LMSD", "lms", None),
                                ("DPM2++ 2M FlowMatch", "dpm++ 2m", None),
                                ("SA Solver", "sa-solver", None)]:  # fmt: skip
        assert understand(name).info.name == sampler
        assert sd_ext.make_scheduler(name, SD).config["grid"] == grid
    assert sd_ext.make_scheduler("DPM2++ 2M FlowMatch", SD).schedule.flow
    assert sd_ext.make_scheduler("UniPC", SD, like="a1111").config["solver_order"] == 3
    assert sd_ext.make_scheduler("UniPC", SD, like="sdnext").config["solver_order"] == 2
    with pytest.raises(InputError, match=r"'Euler EDM' of SD\.Next cannot be a scheduler here: it is for"):
        sd_ext.make_scheduler("Euler EDM")


def test_a_program_is_left_behind_when_another_is_asked_for():
    kl = sd_ext.make_scheduler("dpm2 kl optimal", SD, like="a1111")
    assert kl.config["final_sigmas_type"] == "sigma_min" and kl.config["discard_penultimate_sigma"]
    comfy = sd_ext.make_scheduler("euler", kl.config, like="comfyui").config
    assert (comfy["final_sigmas_type"], comfy["discard_penultimate_sigma"], comfy["grid"]) == ("zero", False, "normal")


def test_grids_and_programs_that_there_are_not():
    with pytest.raises(UnknownNameError, match="did you mean 'comfyui'"):
        sd_ext.make_scheduler("euler", like="comfyu")
    with pytest.raises(UnknownNameError, match="unknown grid 'karas'; did you mean 'karras'"):
        sd_ext.make_scheduler("euler", like="a1111", grid="karas")
    assert sd_ext.make_scheduler("euler", SD, like="SD-WebUI", grid="bong tangent").config["grid"] == "bong_tangent"


@over("name", programs())
def test_the_documentation_names_every_program(name):
    page = (Path(__file__).parents[2] / "docs" / "grids.md").read_text()
    assert f"`{name}`" in page and get_program(name).title in page


def test_the_command_offers_every_program():
    assert tuple(programs()) == PROGRAMS

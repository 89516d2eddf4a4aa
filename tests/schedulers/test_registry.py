"""Names from Diffusers, AUTOMATIC1111 and ComfyUI, their quirks, and samplers of other packages."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import diffusers
import numpy as np
import pytest

import sd_ext
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers import registry
from sd_ext.schedulers.find import find_sampler
from sd_ext.schedulers.spelling import distance, key

from .conftest import SD
from .mixture import run_table
from .over import over

DOCS = Path(__file__).resolve().parents[2] / "docs"

A1111 = """DPM++ 2M; DPM++ SDE; DPM++ 2M SDE; DPM++ 2M SDE Heun; DPM++ 2S a; DPM++ 3M SDE; Euler a; Euler; LMS; Heun;
DPM2; DPM2 a; DPM fast; Restart; DDIM; PLMS; UniPC; LCM; DPM++ 2M Karras; DPM++ SDE Karras; DPM++ 2M SDE Exponential;
DPM++ 2M SDE Karras; DPM++ 2M SDE Heun Karras; DPM++ 3M SDE Exponential; LMS Karras; DPM2 Karras; DPM2 a Karras;
DPM++ 2S a Karras; Euler SGM Uniform; DPM++ 2M KL Optimal; Euler a Align Your Steps; DPM++ 2M Polyexponential"""

COMFYUI = """euler euler_ancestral heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast
dpmpp_2s_ancestral dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun
dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_ancestral
gradient_estimation er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2 euler_cfg_pp
euler_ancestral_cfg_pp dpmpp_2s_ancestral_cfg_pp dpmpp_2m_cfg_pp res_multistep_cfg_pp res_multistep_ancestral_cfg_pp
gradient_estimation_cfg_pp"""

COMFYUI_GRIDS = "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal"

NAMES = [*(name.strip() for name in A1111.split(";")), *COMFYUI.split()]


@over("name", NAMES)
def test_every_name_of_other_programs_is_a_sampler(name):
    scheduler = sd_ext.make_scheduler(name)
    scheduler.set_timesteps(8)
    assert len(scheduler.timesteps) == 8


@over("grid", COMFYUI_GRIDS.split())
def test_every_grid_of_comfyui_follows_a_name(grid):
    scheduler = sd_ext.make_scheduler(f"euler_ancestral {grid}")
    assert scheduler.config["grid"] == grid


@over("name", ["dpm_adaptive", "DPM adaptive", "Euler SMEA Dy", "euler dy", "STORK-2", "perflow", "gauss-legendre_2s"])
def test_what_cannot_be_a_table_says_why(name):
    with pytest.raises(InputError, match=r"cannot be a Diffusers scheduler: (it|an implicit step) "):
        sd_ext.make_scheduler(name)


@over(
    "typed, name, grid",
    [
        ("dpm++2m", "dpm++ 2m", None), ("DPM++-2M-Karras", "dpm++ 2m", "karras"), ("er-sde", "er sde", None),
        ("k_euler_a", "euler a", None), ("k_dpmpp_2m karras", "dpm++ 2m", "karras"),
        ("DPM++2M SDE", "dpm++ 2m sde", None), ("plms_karras", "plms", "karras"),
        ("dpm++ 2m k", "dpm++ 2m", "karras"), ("dpmpp_2m_sde_k", "dpm++ 2m sde", "karras"),
        ("uni-pc", "unipc 3 bh1", None), ("unipc_bh2", "unipc", None),
        ("euler_ancestral_RF", "euler a rf", None), ("res_3m", "abnorsett 3", None),
        ("deis_2m", "deis 2", None), ("rk4", "rk4", None), ("ralston_2s", "ralston 2s", None),
        ("lawson2a_2s", "lawson 2", None), ("res_2s_ode", "res 2s", None), ("bogacki-shampine_4s", "ralston 3s", None),
        ("dormand-prince_6s karras", "dormand-prince 5", "karras"), ("krogstad_4s", "krogstad", None),
        ("DDIM Inverse", "ddim inverse", None), ("bdia", "bdia ddim", None), ("tdd", "tdd", None),
        ("dpm++ 2m align your steps 11", "dpm++ 2m", "ays_11"), ("euler gits", "euler", "gits"),
        ("euler  bong-tangent", "euler", "bong_tangent"), ("Euler_Ancestral_CFG_PP", "euler a cfg++", None),
    ],
)  # fmt: skip
def test_names_as_people_type_them(typed, name, grid):
    info, found = find_sampler(typed)
    assert (info.name, found) == (name, grid)


@over(
    "one, other, letters",
    [("karas", "karras", 1), ("huen", "heun", 1), ("", "abc", 3), ("dpm", "dpm", 0), ("unpic", "unipc", 1),
     ("abc", "cab", 2)],
)  # fmt: skip
def test_the_distance_of_two_spellings(one, other, letters):
    assert distance(one, other) == distance(other, one) == letters


@over(
    "typed, meant",
    [("dpm++ 2m karas", "dpm++ 2m karras"), ("dpmpp_2m_sde_krras", "dpm++ 2m sde karras"),
     ("DPM++ 2M SD", "dpm++ 2m sde"), ("euler_ancestal", "euler a"), ("dpm++2m karas", "dpm++ 2m karras"),
     ("eulr a", "euler a"), ("dpm++ 2m exponental", "dpm++ 2m exponential"),
     ("unpic", "unipc"), ("huen", "heun")],
)  # fmt: skip
def test_a_slip_leads_to_what_was_meant(typed, meant):
    with pytest.raises(UnknownNameError, match="did you mean") as slip:
        sd_ext.make_scheduler(typed)
    assert any(meant in each for each in slip.value.closest), slip.value


def test_a_grid_alone_and_nothing_are_told():
    with pytest.raises(InputError, match=r"'karras' is a grid; write it after a sampler, such as 'dpm\+\+ 2m karras'"):
        sd_ext.make_scheduler("karras")
    for both in ("ddim_uniform", "DDIM uniform"):  # ComfyUI's grid, or a sampler and A1111's
        with pytest.raises(InputError, match="is a grid; write it after a sampler"):
            sd_ext.make_scheduler(both)
    assert isinstance(sd_ext.make_scheduler("ddim uniform", like="a1111"), sd_ext.DDIMScheduler)
    with pytest.raises(UnknownNameError, match="known: "):
        sd_ext.make_scheduler("")


@over("arguments, says", [
    ((["euler"],), r"make_scheduler: name must be text, got \['euler'\]"),
    (("euler", diffusers.DDIMScheduler()), "config must be a scheduler's config, got DDIMScheduler; give its .config"),
    (("euler", "sd15"), "config must be a scheduler's config, got str"),
])  # fmt: skip
def test_what_is_no_name_or_config_is_told(arguments, says):
    with pytest.raises(InputError, match=says):
        sd_ext.make_scheduler(*arguments)
    with pytest.raises(InputError, match="make_scheduler: grid must be text or none, got 7"):
        sd_ext.make_scheduler("euler", grid=7)


def test_every_compatible_diffusers_class_has_its_namesake():
    with_names = {c.__name__ for c in diffusers.DDIMScheduler().compatibles}
    assert len(with_names) > 10
    # EDM's process has no betas: its models are not Stable Diffusion's.
    assert {name for name in with_names if not hasattr(sd_ext, name)} <= {"EDMEulerScheduler"}
    for name in with_names - {"EDMEulerScheduler"}:
        assert type(sd_ext.make_scheduler(name)).__name__ == name


def test_spellings_are_told_apart():
    seen = {}
    for info in sd_ext.list_samplers():
        for spelling in (info.name, *info.aliases):
            spelled = key(spelling)
            assert seen.setdefault(spelled, info.name) == info.name, f"{spelling} means {seen[spelled]}"


DROPPED = [("dpm_2", "comfyui"), ("dpm_2_ancestral", "comfyui"), ("uni_pc", "comfyui"), ("uni_pc_bh2", "comfyui"),
           ("DPM2", "a1111"), ("DPM2 a", "a1111"), ("DPM++ 3M SDE", "a1111")]  # fmt: skip
KEPT = [("DPM2", None), ("dpmpp_3m_sde", "comfyui"), ("LMS", "a1111"), ("euler", "comfyui"), ("euler", "a1111")]


def solver_levels(scheduler):
    levels = scheduler.levels
    stage = np.zeros(len(levels) - 1) if levels.stage is None else levels.stage
    return levels.ratio[:-1][stage == 0]


@over("name, program", DROPPED + KEPT)
def test_the_last_sigma_but_one(name, program):
    """Left out where that program leaves it out, so that the steps are the ones it takes."""
    scheduler = sd_ext.make_scheduler(name, SD, like=program, grid="karras")
    scheduler.set_timesteps(10)
    got = solver_levels(scheduler)
    one_more = sd_ext.make_scheduler("euler", SD, grid="karras")
    one_more.set_timesteps(len(got) + 1)
    plain = sd_ext.make_scheduler("euler", SD, grid="karras")
    plain.set_timesteps(len(got))
    expected = solver_levels(one_more)[:-1] if (name, program) in DROPPED else solver_levels(plain)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_programs_bring_their_grid():
    assert sd_ext.make_scheduler("euler", like="comfyui").config["grid"] == "normal"
    assert sd_ext.make_scheduler("euler", like="a1111").config["grid"] in ("uniform", "normal")
    assert sd_ext.make_scheduler("euler karras", like="comfyui").config["grid"] == "karras"
    with pytest.raises(UnknownNameError, match="comfyui"):
        sd_ext.make_scheduler("euler", like="comfort ui")


@over("before", ["dpm++ 2m sde heun", "dpm++ 3m exact", "unipc 3 bh1", "euler churn", "seeds-2"])
def test_a_name_goes_before_what_another_sampler_left_in_the_config(before):
    """Swapping to and fro is the same as making the sampler for the model at once."""
    config = {**SD, "prediction_type": "v_prediction", "clip_sample": False}
    left = sd_ext.make_scheduler(before, config).config
    for name in ("dpm++ 2m", "euler", "unipc", "dpm++ sde", "dpm++ 2s"):
        swapped, plain = sd_ext.make_scheduler(name, left), sd_ext.make_scheduler(name, config)
        swapped.set_timesteps(7)
        plain.set_timesteps(7)
        np.testing.assert_array_equal(swapped.table().rows, plain.table().rows)
        assert swapped.config["prediction_type"] == "v_prediction"


@over("name", ["ddim", "plms", "bdia ddim", "tcd", "tdd", "ddim inverse"])
@over("clean", [True, False])
def test_where_a_run_ends_is_the_models_word(name, clean):
    """One sampler that sets an option of the model's does not take it from the others."""
    made = sd_ext.make_scheduler(name, {**SD, "set_alpha_to_one": clean})
    expected = {"ddim inverse": False, "tcd": True, "tdd": True}.get(name, clean)
    assert made.config["set_alpha_to_one"] is expected


def test_swapping_samplers_warns_of_nothing_and_loses_nothing(caplog):
    """Options of other classes stay in the config, for the way back through `from_config`."""
    diffusers.logging.enable_propagation()
    try:
        first = sd_ext.make_scheduler("dpm++ 3m exact", SD, noise_type="gaussian")
        middle = sd_ext.make_scheduler("auto", first.config)
        back = sd_ext.DPMSolverMultistepScheduler.from_config(middle.config)
    finally:
        diffusers.logging.disable_propagation()
    assert not caplog.records
    assert back.config["exact_third_order"] is True and back.config["solver_order"] == 3


# ---- samplers of other packages


@pytest.fixture
def plugin(monkeypatch):
    """Makes `value` what one installed package publishes."""

    def publish(value):
        point = EntryPoint(name="x", value="somewhere:SAMPLER", group=registry.GROUP)
        monkeypatch.setattr(EntryPoint, "load", lambda self: value)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.GROUP else [])
        registry.all_samplers.cache_clear()

    yield publish
    monkeypatch.undo()
    registry.all_samplers.cache_clear()


def example() -> dict:
    (code,) = re.findall(r"^```python\n(# ralston.py.*?)^```", (DOCS / "plugins.md").read_text(), re.M | re.S)
    names: dict = {"__name__": "ralston"}
    exec(compile(code, "docs/plugins.md", "exec"), names)
    return names


def test_the_documented_plugin_is_a_sampler_of_its_order(plugin, schedule, mixture):
    plugin(example()["SAMPLER"])
    scheduler = sd_ext.make_scheduler("ralston karras", SD)
    assert scheduler.config["grid"] == "karras"
    errors = []
    for n in (40, 80, 160):
        steps = schedule.at_lambda(np.linspace(-2.0, 1.5, n + 1))
        table = scheduler._table(scheduler._explicit_stages(steps), 0.0)
        x = mixture.sample(16, steps.alpha[0], steps.sigma[0], seed=1)
        errors.append(np.sqrt(np.mean((run_table(table, mixture, x) - mixture.solve(x, steps)) ** 2)))
    assert -np.polyfit(np.log([40, 80, 160]), np.log(errors), 1)[0] == pytest.approx(2, abs=0.2)


@over("value", [42, [sd_ext.list_samplers], sd_ext.SamplerInfo("x", dict, 1, "none")])
def test_a_broken_plugin_is_reported_and_left_out(plugin, value):
    plugin(value)
    with pytest.warns(UserWarning, match="somewhere:SAMPLER"):
        names = [info.name for info in sd_ext.list_samplers()]
    assert "euler" in names and "x" not in names


def test_a_plugin_cannot_take_a_name(plugin):
    plugin(sd_ext.SamplerInfo("Euler", sd_ext.HeunDiscreteScheduler, 2, "none"))
    with pytest.warns(UserWarning, match="taken"):
        assert type(sd_ext.make_scheduler("euler")).__name__ == "EulerDiscreteScheduler"

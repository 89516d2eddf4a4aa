"""Configs of every scheduler of Diffusers: understood, or refused by name, never silently another process."""

from __future__ import annotations

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sd_ext
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.processes.reading import NAMES, REFUSED, UNDERSTOOD, signatures

from ..over import over
from .known import KNOWN, SD, SVD

ALL = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and inspect.isclass(getattr(diffusers, name)) and "Flax" not in name
)
HERE = [name for name in ALL if name in signatures()]
"""Those whose libraries are installed."""
DEFAULT = sorted(
    name for name in UNDERSTOOD if name in signatures() and inspect.Parameter.empty not in signatures()[name].values()
)


def test_each_class_is_understood_or_refused():
    assert set(ALL) <= UNDERSTOOD.keys() | REFUSED.keys()
    assert not UNDERSTOOD.keys() & REFUSED.keys()


@over("name", [name for name in DEFAULT if UNDERSTOOD[name] == {}])
def test_deviation_only_configs_that_speak_of_clipping_are_clipped(name):
    """Whatever the sampler: a model that its own scheduler does not clip is not clipped by DDIM or DDPM either."""
    config = getattr(diffusers, name)().config
    for sampler in ("ddim", "ddpm"):
        made = sd_ext.make_scheduler(sampler, config)
        assert made.config["clip_sample"] == bool(config.get("clip_sample")), sampler
        assert type(made).from_config(config).config["clip_sample"] == made.config["clip_sample"]
    assert sd_ext.make_scheduler("ddim", config, clip_sample=True).config["clip_sample"]
    assert sd_ext.make_scheduler("ddim", SD).config["clip_sample"], "no class is named: Diffusers' default"


@over("name", sorted(REFUSED))
def test_refusals_name_the_class_and_the_reason(name):
    with pytest.raises(InputError, match=f"config of {name} cannot be run by samplers of tables: "):
        sd_ext.make_scheduler("euler", {"_class_name": name})
    arguments = signatures().get(name)
    if arguments and name not in ("FlowMapEulerDiscreteScheduler", "KarrasVeScheduler", "ScoreSdeVpScheduler"):
        with pytest.raises(InputError, match=f"config of {name} "):  # made and not loaded: without its name
            sd_ext.make_scheduler("euler", dict.fromkeys(arguments, 1))


def theirs(name, **options):
    return getattr(diffusers, name)(**options)


def agrees(ours, scheduler) -> None:
    """Whether the process of ours is that of a scheduler of Diffusers, as far as that shows it."""
    if hasattr(scheduler, "alphas_cumprod") and not ours.schedule.flow:
        if ours.schedule.kind == "betas":
            expected = scheduler.alphas_cumprod.double().sqrt().numpy()
            np.testing.assert_allclose(ours.schedule.alpha, expected, atol=3e-4)
    elif hasattr(scheduler, "sigma_max") and ours.schedule.flow:
        assert ours.config["shift"] == scheduler.config["shift"]
    elif "sigma_data" in scheduler.config:
        assert ours.schedule.sigma_data == scheduler.config["sigma_data"]


@over("name", DEFAULT)
@over("saved", [False, True])
def test_defaults_of_each_class(name, saved):
    """A config in memory has no class name but all arguments; one from a file may have left out everything else."""
    scheduler = theirs(name)
    config = {"_class_name": name} if saved else scheduler.config
    for sampler in ("dpm++ 2m", "flow euler"):
        agrees(sd_ext.make_scheduler(sampler, config), scheduler)


@st.composite
def configs(draw):
    """(class, arguments) of Diffusers' schedulers."""
    name = draw(st.sampled_from(DEFAULT))
    choices = {
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "beta_end": st.floats(0.005, 0.03),
        "num_train_timesteps": st.sampled_from([100, 1000]),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
        "rescale_betas_zero_snr": st.booleans(),
        "snr_shift_scale": st.floats(0.5, 4),
        "timestep_type": st.sampled_from(["discrete", "continuous"]),
        "shift": st.floats(0.2, 12),
        "flow_shift": st.just(1.0),
        "use_dynamic_shifting": st.booleans(),
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "shift_terminal": st.sampled_from([None, 0.1]),
        "invert_sigmas": st.booleans(),
        "sigma_data": st.floats(0.1, 2),
        "sigma_schedule": st.sampled_from(["karras", "exponential"]),
        "rho": st.floats(3, 9),
    }
    if name == "MiniMaxH3Scheduler":
        choices = {"shift": choices["shift"]}
    fits = {key: choice for key, choice in choices.items() if key in signatures()[name]}
    if name in ("UnCLIPScheduler",):
        fits = {"num_train_timesteps": choices["num_train_timesteps"]}
    if not name.startswith(("FlowMatch", "MiniMax")):  # the others shift only with use_flow_sigmas
        fits = {k: v for k, v in fits.items() if k not in ("use_dynamic_shifting", "shift_terminal")}
    if name == "IPNDMScheduler" or name == "CMStochasticIterativeScheduler":
        fits.pop("trained_betas", None)
    return name, {key: draw(choice) for key, choice in fits.items() if draw(st.booleans())}


@given(configs(), st.booleans(), st.sampled_from(["dpm++ 2m", "euler", "lcm", "flow euler"]))
@settings(deadline=None, max_examples=30)
def test_what_a_config_says_is_the_process(config, saved, sampler):
    name, options = config
    try:
        scheduler = theirs(name, **options)
    except (ValueError, NotImplementedError):
        return  # Diffusers does not know it either
    source = json.loads(scheduler.to_json_string()) if saved else scheduler.config
    ours = sd_ext.make_scheduler(sampler, source)
    agrees(ours, scheduler)
    for key in set(options) & set(NAMES) - {"snr_shift_scale"}:
        assert ours.config[key] == options[key]
    again = type(ours).from_config(ours.config)
    np.testing.assert_array_equal(again.schedule.sigma, ours.schedule.sigma)
    assert again.schedule.prediction == ours.schedule.prediction and again.schedule.kind == ours.schedule.kind


# ---- both ways -------------------------------------------------------------------------------------------------------


def test_plain_diffusers_reads_flow_from_ours():
    """With the options that its class of the same name has."""
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    for name in ("dpm++ 2m", "unipc", "deis", "sa-solver", "dpm++ 2s"):
        ours = sd_ext.make_scheduler(name, config)
        plain = getattr(diffusers, type(ours).__name__).from_config(ours.config)
        assert plain.config.use_flow_sigmas and plain.config.flow_shift == 3.0
        assert plain.config.prediction_type == "flow_prediction"
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert back.config.shift == 3.0
    wan = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0)
    for name in ("flow euler", "flow heun"):
        ours = sd_ext.make_scheduler(name, wan.config)
        assert getattr(diffusers, type(ours).__name__).from_config(ours.config).config.shift == 5.0


def test_plain_diffusers_reads_cogvideox_from_ours():
    """Its other classes do not know the shift of the SNR: it is worked into the betas."""
    theirs = diffusers.CogVideoXDPMScheduler(rescale_betas_zero_snr=True, snr_shift_scale=2.0)
    ours = sd_ext.make_scheduler("ddim", theirs.config)
    for cls in (diffusers.DDIMScheduler, diffusers.CogVideoXDDIMScheduler):
        plain = cls.from_config(ours.config)
        torch.testing.assert_close(plain.alphas_cumprod.float(), theirs.alphas_cumprod.float(), atol=1e-5, rtol=0)


@over(
    "cls",
    ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler",
     "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler", "MiniMaxH3Scheduler"],
)  # fmt: skip
def test_the_class_it_came_from_reads_it_back(cls):
    options = {"sigma_data": 0.7} if "sigma_data" in signatures()[cls] else {"shift": 2.5}
    scheduler = getattr(diffusers, cls)(**options)
    again = getattr(diffusers, cls).from_config(sd_ext.make_scheduler("dpm++ 2m", scheduler.config).config)
    same = {key for key in signatures()[cls] if key in NAMES}
    assert {key: again.config[key] for key in same} == {key: scheduler.config[key] for key in same}


@over("process", KNOWN)
def test_saved_and_loaded(process, tmp_path):
    ours = sd_ext.make_scheduler("dpm++ 2m", KNOWN[process].config)
    ours.save_pretrained(tmp_path / process)
    again = sd_ext.DPMSolverMultistepScheduler.from_pretrained(tmp_path / process)
    other = sd_ext.EulerDiscreteScheduler.from_config(ours.config)
    for scheduler in (again, other):
        assert scheduler.schedule.kind == ours.schedule.kind
        assert scheduler.schedule.prediction == ours.schedule.prediction
        np.testing.assert_allclose(scheduler.schedule.sigma, ours.schedule.sigma, rtol=1e-12)


def test_betas_of_the_class_that_a_config_is_of():
    """Diffusers takes the default of the class it makes; the model was trained on that of the class it has."""
    heun = diffusers.HeunDiscreteScheduler()
    ours = sd_ext.make_scheduler("ddim", heun.config)
    np.testing.assert_allclose(ours.schedule.alpha, heun.alphas_cumprod.double().sqrt().numpy(), atol=2e-6)


# ---- bad input -------------------------------------------------------------------------------------------------------

FLOW = {"prediction_type": "flow_prediction"}


@over(
    "options, message",
    [
        ({"shift": 0.0, **FLOW}, "shift must be positive, got 0"),
        ({"shift": -3.0, **FLOW}, "shift must be positive"),
        ({"flow_shift": -1.0, **FLOW}, "shift must be positive, got -1"),
        ({"shift": 2.0, "flow_shift": 3.0, **FLOW}, "two names of one thing"),
        ({"shift": 3.0}, "shift=3.0 is of flow matching, and this config's process is 'betas'"),
        ({"flow_shift": 3.0}, "flow_shift=3.0 is of flow matching"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting=True is of flow matching"),
        ({"invert_sigmas": True}, "invert_sigmas=True is of flow matching"),
        ({"shift_terminal": 0.1}, "shift_terminal=0.1 is of flow matching"),
        ({"shift_terminal": 1.5, **FLOW}, "shift_terminal must be between 0 and 1"),
        ({"time_shift_type": "cubic", **FLOW}, "time_shift_type must be one of"),
        ({"sigma_max": 80.0, **FLOW}, "sigma_max=80 is no sigma of flow matching"),
        ({"sigma_data": 0.5}, "sigma_data=0.5 is of networks with EDM's preconditioning"),
        ({"sigma_data": 0.5, "prediction_type": "epsilon"}, "'epsilon'.*: leave it out, or give process='edm'"),
        ({"sigma_data": 0.0, "process": "edm"}, "sigma_data must be positive"),
        ({"process": "edm", "prediction_type": "sample"}, "prediction_type of the process 'edm' must be one of"),
        ({"process": "edm", "sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min must be positive and below sigma_max"),
        ({"process": "edm", "sigma_min": 0.0}, "sigma_min must be positive and below sigma_max, got 0.0"),
        ({"process": "edm", "sigma_schedule": "linear"}, "sigma_schedule must be one of"),
        ({"process": "edm", "shift": 3.0}, "shift=3.0 is of flow matching, and this config's process is 'edm'"),
        ({"process": "edm", "snr_shift_scale": 2.0}, "snr_shift_scale=2 is of processes with betas"),
        ({"snr_shift_scale": -1.0}, "snr_shift_scale must be positive"),
        ({"timestep_type": "fractional"}, "timestep_type must be one of"),
        ({"rho": 0.0}, "rho must be positive"),
    ],
)
@over("cls", [sd_ext.DDIMScheduler, sd_ext.DPMSolverMultistepScheduler])
def test_options_that_do_not_fit(cls, options, message):
    for build in (lambda: cls(**options), lambda: cls.from_config({**SD, **options})):
        with pytest.raises(InputError, match=message):
            build()


def test_an_unknown_process_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="'edm'"):
        sd_ext.DDIMScheduler(process="emd")


def test_mu_only_where_it_is_wanted(caplog):
    betas = sd_ext.make_scheduler("dpm++ 2m", SD)
    with pytest.raises(InputError, match=r"mu is for flow models.*'betas'"):
        betas.set_timesteps(5, mu=1.1)
    shifting = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    for mu in (None, "1", True, float("nan")):
        with pytest.raises(InputError, match="set_timesteps needs mu"):
            sd_ext.make_scheduler("dpm++ 2m", shifting).set_timesteps(5, mu=mu)
    linear = sd_ext.make_scheduler("dpm++ 2m", shifting, time_shift_type="linear")
    with pytest.raises(InputError, match="a positive number, got -1"):
        linear.set_timesteps(5, mu=-1.0)
    fixed = sd_ext.make_scheduler("dpm++ 2m", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    with caplog.at_level("WARNING"):
        for _ in range(3):  # Flux's pipelines pass it to models that do not shift by resolution as well
            fixed.set_timesteps(5, mu=1.1)
    assert sum("mu has no effect" in record.message for record in caplog.records) == 1


@over("options, mu", [({"use_dynamic_shifting": True}, 1e6), ({"shift": 1e18}, None)])
def test_a_shift_that_leaves_no_steps(options, mu):
    scheduler = sd_ext.make_scheduler("dpm++ 2m", diffusers.FlowMatchEulerDiscreteScheduler(**options).config)
    with pytest.raises(InputError, match="leave no 5 sigmas apart"):
        scheduler.set_timesteps(5, mu=mu)


def test_unknown_classes_must_say_their_process():
    with pytest.raises(InputError, match="MyScheduler describes is not known"):
        sd_ext.make_scheduler("euler", {"_class_name": "MyScheduler", "num_train_timesteps": 1000})
    said = {"_class_name": "MyScheduler", "prediction_type": "flow_prediction", "shift": 2.0}
    assert sd_ext.make_scheduler("euler", said).schedule.flow
    told = sd_ext.make_scheduler("euler", {"_class_name": "MyScheduler"}, prediction_type="v_prediction")
    assert told.schedule.prediction.kind == "v_prediction"


def test_what_is_given_goes_before_the_config():
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    for options in ({"shift": 5.0}, {"flow_shift": 5.0}):
        ours = sd_ext.make_scheduler("dpm++ 2m", config, **options)
        assert ours.config["shift"] == ours.config["flow_shift"] == 5.0


def test_resizing_between_calls_is_refused():
    with pytest.raises(InputError, match="resizes the latent"):
        sd_ext.make_scheduler("lcm", diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 1.0]).config)


def test_timesteps_run_the_way_the_network_is_told():
    mochi = sd_ext.make_scheduler("euler", diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config)
    mochi.set_timesteps(timesteps=[0.0, 400.0, 900.0])
    np.testing.assert_allclose(mochi.levels.sigma, [1.0, 0.6, 0.1, 0.0], atol=1e-12)
    with pytest.raises(InputError, match="must rise"):
        mochi.set_timesteps(timesteps=[900.0, 400.0])
    svd = sd_ext.make_scheduler("euler", diffusers.EulerDiscreteScheduler(**SVD).config)
    svd.set_timesteps(timesteps=[1.5, 0.2, -1.0])
    np.testing.assert_allclose(svd.levels.ratio[:-1], np.exp(4 * np.array([1.5, 0.2, -1.0])), rtol=1e-12)


def test_the_public_reader():
    assert NoiseSchedule.from_config(diffusers.FlowMatchHeunDiscreteScheduler().config).flow
    assert NoiseSchedule.from_config({"prediction_type": "v_prediction"}).prediction.kind == "v_prediction"


def test_a_shift_alone_is_flow_matching_where_a_person_wrote_it():
    """It is also all that the config of a made MiniMaxH3Scheduler says, which comes as Diffusers' own kind of dict."""
    assert sd_ext.make_scheduler("euler", {"shift": 3.0})._told.kind == "flow"
    made = diffusers.MiniMaxH3Scheduler(shift=3.0)
    for config in (made.config, dict(made.config) | {"_class_name": "MiniMaxH3Scheduler"}):
        assert sd_ext.make_scheduler("euler", config)._told.kind == "unit_flow"

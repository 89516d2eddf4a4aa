"""Every option of every scheduler has a declared type, and a value of another one is refused by name."""

from __future__ import annotations

import inspect
import json
import math
import os
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.declared import check
from sd_ext.errors import InputError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.processes.reading import REFUSED

from .over import over

OURS = [getattr(sd_ext, name) for name in sd_ext.__all__ if name.endswith("Scheduler") and name != "TableScheduler"]
THEIRS = [
    cls for name in dir(diffusers) if name.endswith("Scheduler") if inspect.isclass(cls := getattr(diffusers, name))
]
STRANGE = ["false", "1", 1, 0, True, 1.5, math.nan, 10**400, None, [], [1, "x"], {}, {"a": "b"}, b"x", object()]


def fits(value: Any, kind: Any) -> bool:
    try:
        check(value, kind, "")
    except InputError:
        return False
    return True


def config_of(cls: Any) -> dict[str, Any] | None:
    """The config of a Diffusers scheduler's defaults, as it comes back from a file; None where there are none."""
    try:
        return json.loads(json.dumps(dict(cls().config)))
    except (TypeError, ImportError):  # it has arguments without default, or needs another library
        return None


@pytest.fixture(scope="module")
def configs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy about Diffusers
        return {cls.__name__: config for cls in THEIRS if (config := config_of(cls))}


@over("cls", OURS)
def test_each_option_has_a_type_that_its_default_fits(cls):
    assert cls._kinds.keys() == cls._options.keys() == inspect.signature(cls.__init__).parameters.keys() - {"self"}
    for name, kind in cls._kinds.items():
        assert kind is not Any, name
        check(cls._options[name], kind, cls.__name__, name)


@over("cls", OURS)
def test_values_of_other_types_are_refused_by_name(cls):
    for number, (name, kind) in enumerate(cls._kinds.items()):
        wrong = [value for value in STRANGE if not fits(value, kind)]
        assert len(wrong) > 8
        given = {name: wrong[number % len(wrong)]}
        for build in (lambda given: cls(**given), cls.from_config):
            with pytest.raises(InputError, match=f"^{cls.__name__}: {name}.* must be .*, got "):
                build(given)


@over(
    "name, value",
    [("use_karras_sigmas", "false"), ("use_karras_sigmas", 0), ("beta_start", "0.1"), ("beta_start", True),
     ("num_train_timesteps", 1000.0), ("grid", 3), ("grid_options", []), ("trained_betas", "0.1"),
     ("steps_offset", None)],
)  # fmt: skip
def test_a_string_is_not_taken_for_true(name, value):
    with pytest.raises(InputError, match=f"DDIMScheduler: {name} must be"):
        sd_ext.DDIMScheduler(**{name: value})


def test_whole_numbers_and_arrays_are_numbers():
    one = sd_ext.DDIMScheduler(beta_start=0.5, beta_end=1, num_train_timesteps=np.int64(10))
    assert one.config["beta_end"] == 1
    betas = np.linspace(0.1, 0.2, 10)
    schedules = [sd_ext.DDIMScheduler(trained_betas=given).schedule.alpha for given in (betas, betas.tolist())]
    np.testing.assert_array_equal(*schedules)


@over("cls", OURS)
def test_configs_of_every_diffusers_scheduler_are_accepted(cls, configs):
    assert len(configs) > 35
    for name, config in configs.items():
        try:
            cls.from_config(config)
        except InputError as error:  # of a process that this sampler cannot run; not the type of a value
            own = {"CalibratedScheduler": "has no calibration", "DDIMInverseScheduler": "cannot start clean"}
            assert name in REFUSED or own.get(cls.__name__, "nothing") in str(error), (name, error)


def test_what_diffusers_lets_be_none_is_none_here_too():
    """Diffusers writes null for options that it declares as optional."""
    for theirs in THEIRS:
        for name, parameter in inspect.signature(theirs.__init__).parameters.items():
            if "None" in str(parameter.annotation) or "Optional" in str(parameter.annotation):
                for ours in OURS:
                    check(None, ours._kinds.get(name, None), f"{theirs.__name__} in {ours.__name__}", name)


@over(
    "config, words",
    [
        ({"num_train_timesteps": 10**9}, "num_train_timesteps must be 1 to 100,000"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be 1 to"),
        ({"beta_start": "low"}, "the noise schedule: beta_start must be a number"),
        ({"beta_schedule": "scaled_linear", "beta_start": -0.1}, "betas must be 1 to"),
        ({"beta_start": 1e308}, "betas must be 1 to"),
        ({"trained_betas": [[0.1]]}, r"trained_betas\[0\] must be a number"),
        ({"trained_betas": []}, "betas must be 1 to"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "needs a noise schedule that adds noise"),
    ],
)
def test_noise_schedules_that_no_model_has(config, words):
    with pytest.raises(InputError, match=words):
        NoiseSchedule.from_config(config)


@over("content", [b"{", b"[" * 5000, b"[]", b'{"beta_start": 1, "beta_start": 2}', b"\xef\xbb\xbf{}", b"\xff"])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    (tmp_path / "scheduler_config.json").write_bytes(content)
    for load in (lambda: sd_ext.DDIMScheduler.from_pretrained(tmp_path),
                 lambda: sd_ext.DDIMScheduler.from_pretrained(tmp_path.parent, subfolder=tmp_path.name)):  # fmt: skip
        with pytest.raises(InputError, match=r"scheduler_config\.json") as error:
            load()
        assert str(error.value).isprintable()


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "scheduler_config.json")
    with pytest.raises(InputError, match="a named pipe"):
        sd_ext.DDIMScheduler.from_pretrained(tmp_path)


def test_infinity_in_a_file_is_what_diffusers_writes(tmp_path):
    diffusers.DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    assert "-Infinity" in (tmp_path / "scheduler_config.json").read_text()
    assert sd_ext.DPMSolverMultistepScheduler.from_pretrained(tmp_path).config["lambda_min_clipped"] == -math.inf


def test_arrays_of_betas_are_lists_of_numbers():
    """As Diffusers takes them, and saved as it saves them."""
    betas = np.linspace(1e-4, 0.02, 50)
    given = [sd_ext.DDIMScheduler(trained_betas=betas, num_train_timesteps=50)]
    given += [sd_ext.make_scheduler("ddim", {"trained_betas": b}) for b in (betas, torch.from_numpy(betas))]
    for scheduler in given:
        assert json.loads(scheduler.to_json_string())["trained_betas"] == betas.tolist()
        np.testing.assert_allclose(scheduler.schedule.alpha**2, np.cumprod(1 - betas))


def test_flags_of_two_grids_are_refused():
    both = {"use_karras_sigmas": True, "use_exponential_sigmas": True}
    with pytest.raises(InputError, match="use_karras_sigmas and use_exponential_sigmas are set, and a run has one"):
        sd_ext.make_scheduler("euler", both)
    assert sd_ext.make_scheduler("euler beta", both).config["grid"] == "beta"

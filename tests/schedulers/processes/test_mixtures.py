"""Configs that are mixtures of what schedulers of Diffusers have: each runs, with finite numbers, or is refused."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sd_ext
from sd_ext.board import BOARD
from sd_ext.errors import InputError
from sd_ext.schedulers.processes.reading import REFUSED, UNDERSTOOD, signatures

CHOICES: dict[str, list[Any]] = {
    "algorithm_type": ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "data_prediction", "deis"],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid"],
    "final_sigmas_type": ["zero", "sigma_min"],
    "interpolation_type": ["linear", "log_linear"],
    "lambda_min_clipped": [-float("inf"), -5.1],
    "num_train_timesteps": [10, 100, 1000],
    "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction"],
    "sigma_data": [0.5, 1.0],
    "sigma_max": [None, 0.9, 10.0, 80.0],
    "sigma_min": [None, 0.002, 0.03],
    "sigma_schedule": ["karras", "exponential"],
    "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun", "logrho", "bh1", "bh2"],
    "time_shift_type": ["exponential", "linear"],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "timestep_type": ["discrete", "continuous"],
    "trained_betas": [None, [0.001] * 100],
    "variance_type": [None, "fixed_small", "fixed_large", "learned_range"],
}
"""What keys may say, besides the numbers and switches that their defaults show."""


def values(name: str, default: Any) -> list[Any]:
    if name in CHOICES:
        return CHOICES[name]
    if isinstance(default, bool):
        return [False, True]
    if isinstance(default, int):
        return [default, default + 1]
    if isinstance(default, float):
        return [default, default / 2, default * 2]
    return [default]


KEYS = {
    name: values(name, default)
    for arguments in signatures().values()
    for name, default in arguments.items()
    if default is not inspect.Parameter.empty
}


@st.composite
def mixtures(draw):
    """A config with keys of several classes, often of one that has not all of them."""
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=12, unique=True))
    config = {key: draw(st.sampled_from(KEYS[key])) for key in keys}
    name = draw(st.sampled_from([None, *sorted(UNDERSTOOD), *sorted(REFUSED)]))
    return config | ({"_class_name": name} if name else {})


SAMPLERS = ["auto", "dpm++ 2m", "dpm++ 3m sde", "euler a", "heun", "unipc", "deis", "plms", "lcm", "flow euler"]


@given(mixtures(), st.sampled_from(SAMPLERS))
@settings(deadline=None, max_examples=60)
def test_any_mixture_of_keys_runs_or_is_refused_in_one_sentence(config, sampler):
    """The network is bounded."""
    try:
        scheduler = sd_ext.make_scheduler(sampler, config)
        shifts = scheduler.config["use_dynamic_shifting"]
        scheduler.set_timesteps(5, **({"mu": 0.8} if shifts else {}))
        assert len(scheduler.timesteps) == 5
        x = float(scheduler.init_noise_sigma) * torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            assert torch.isfinite(torch.as_tensor(t)) or scheduler.schedule.kind in ("edm", "continuous", "consistency")
            m = torch.tanh(scheduler.scale_model_input(x, t))
            BOARD.write(t, m, alone=True)
            x = scheduler.step(m, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        assert torch.isfinite(x).all()
    except InputError as refusal:
        said = str(refusal)
        assert said and "\n" not in said and len(said) < 600

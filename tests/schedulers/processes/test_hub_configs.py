"""The configs of models that people use, each handed to samplers as the README's one line does."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError

from ..over import INVERSE, ONE_FIELD, over
from .hub_configs import HUB, SENT_AWAY
from .known import make, to_the_point

POINT = 0.7


@over("model", HUB)
@over("sampler", ["auto", "dpm++ 2m", "euler a"], full=[name for name in ONE_FIELD if name not in INVERSE])
def test_a_known_picture_is_found_in_as_many_calls_as_asked(model, sampler):
    known = HUB[model]
    if sampler == "ddpm" and known.config.get("variance_type") in ("learned", "learned_range"):
        return  # its network predicts variances too: tests/schedulers/samplers
    scheduler = make(sampler, known, 6)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps
    got = to_the_point(scheduler, known, POINT)
    torch.testing.assert_close(
        got, torch.full_like(got, POINT), atol=1e-5 + max(2e-2, 4 * scheduler.levels.sigma[-1]), rtol=0
    )


@over("model", HUB)
def test_the_process_is_the_one_that_diffusers_trains_on(model):
    config = HUB[model].config
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    ours = sd_ext.make_scheduler("dpm++ 2m", config)
    if ours.schedule.flow:
        shift = config.get("flow_shift", config["shift"]) if "shift" in config else config["flow_shift"]
        assert ours.config["shift"] == ours.config["flow_shift"] == shift
        for name in ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "max_shift"):
            assert ours.config[name] == config.get(name, ours.config[name])
    elif hasattr(theirs, "alphas_cumprod") and ours.schedule.kind == "betas":
        np.testing.assert_allclose(ours.schedule.alpha, theirs.alphas_cumprod.double().sqrt().numpy(), atol=3e-4)
    else:
        assert ours.schedule.kind in ("edm", "continuous")
    again = type(ours).from_config(json.loads(ours.to_json_string()))
    assert again.schedule.kind == ours.schedule.kind and again.schedule.prediction == ours.schedule.prediction
    np.testing.assert_array_equal(again.schedule.sigma, ours.schedule.sigma)


@over("model", SENT_AWAY)
def test_what_no_table_runs_is_refused_by_name(model):
    config, why = SENT_AWAY[model]
    with pytest.raises(InputError, match=rf"config of {config['_class_name']} cannot be run.*{why}"):
        sd_ext.make_scheduler("dpm++ 2m", config)

"""Exported samplers take their process along."""

from __future__ import annotations

import functools

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.export import exported

from ..over import over
from ..test_export import read
from .known import KNOWN, make
from .pipelines import PIPELINES, built

EXPORTED = ["dpm++ 2m", "euler a"]


@over("process", KNOWN)
@over("name", EXPORTED)
def test_runs_and_noise_to_the_bit(process, name, exported_file):
    known = KNOWN[process]
    ours = make(name, known, 5)
    theirs = exported_file.ExportedScheduler(**read(exported(ours, None)))
    theirs.set_timesteps(5, mu=known.mu)
    assert torch.equal(theirs.timesteps, ours.timesteps) and theirs.timesteps.dtype == ours.timesteps.dtype
    assert torch.equal(theirs.sigmas, ours.sigmas)
    x0, noise = torch.randn(2, 1, 4, 4, 4).unbind()
    ends = []
    for scheduler in (ours, theirs):
        x, generator = noise, torch.Generator().manual_seed(3)
        for t in scheduler.timesteps:
            assert torch.equal(scheduler.scale_noise(x0, t, noise), ours.scale_noise(x0, t, noise))
            assert torch.equal(scheduler.add_noise(x0, noise, t[None]), ours.add_noise(x0, noise, t[None]))
            output = scheduler.step(x.tanh(), t, x, generator=generator)
            x = output.prev_sample
        ends += [x, output.pred_original_sample]
    assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])


def test_a_pipelines_way_of_asking(exported_file):
    """Flux gives sigmas before the shift and mu; the run must have been announced the same way."""
    flow, pipe = PIPELINES["Flux"], built("Flux")
    config = pipe.scheduler.config
    ours = sd_ext.make_scheduler("flow heun", config)
    seen = []
    plain = ours.set_timesteps

    @functools.wraps(plain)
    def watched(*args, **kwargs):
        seen.append(kwargs)
        plain(*args, **kwargs)

    ours.set_timesteps = watched
    first = flow.run(pipe, ours, 5)
    del ours.set_timesteps
    assert len(seen) == 1 and "mu" in seen[0] and len(seen[0]["sigmas"]) == 5
    theirs = exported_file.ExportedScheduler(**read(exported(ours, None)))
    torch.testing.assert_close(flow.run(pipe, theirs, 5), first, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="exported for mu="):
        theirs.set_timesteps(sigmas=np.linspace(1, 0.2, 5), mu=2.0)
    with pytest.raises(ValueError, match="these sigmas"):
        theirs.set_timesteps(sigmas=np.linspace(1, 0.3, 5), mu=seen[0]["mu"])
    with pytest.raises(InputError, match="shifts by resolution: announce a run with its mu"):
        exported(ours, 5)


def test_samplers_of_diffusers_and_ours_are_made_from_an_exported_config():
    config = exported(make("dpm++ 2m", KNOWN["flow"], 4), 4).config
    assert sd_ext.make_scheduler("euler", config).config["shift"] == 3.0
    assert diffusers.UniPCMultistepScheduler.from_config(config).config.flow_shift == 3.0
    config = exported(make("dpm++ 2m", KNOWN["EDM"], 4), 4).config
    assert sd_ext.make_scheduler("euler", config).schedule.kind == "edm"


@over(
    "name, value, message",
    [
        ("told", [1.0, 2.0], "trained.told must be a list of"),
        ("sigma_data", -1.0, "sigma_data must be positive"),
        ("prediction", ["score"], "trained.prediction is unknown"),
        ("prediction", ["epsilon", float("nan")], "finite"),
    ],
)
def test_damaged_processes_are_refused(name, value, message, exported_file):
    config = read(exported(make("ddim", KNOWN["EDM"], 2), 2))
    with pytest.raises(ValueError, match=message):
        exported_file.ExportedScheduler(**config | {"trained": {**config["trained"], name: value}})

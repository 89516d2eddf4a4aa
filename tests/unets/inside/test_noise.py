"""What a network has in mind, by its scheduler: Diffusers' own preconditioning as the oracle for networks of EDM."""

from __future__ import annotations

import diffusers
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.unets.inside.noise import Noise
from tests.unets.tiny import draw


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("data", [0.5, 1.0])
@pytest.mark.parametrize("ours", [False, True])
def test_the_picture_of_a_network_of_edm_is_that_of_diffusers_preconditioning(predicts, data, ours):
    theirs = diffusers.EDMEulerScheduler(prediction_type=predicts, sigma_data=data)
    scheduler = sd_ext.make_scheduler("euler", theirs.config) if ours else theirs
    latents, output = draw(1, 4, 8, 8), draw(1, 4, 8, 8, seed=1)
    for sigma in (0.01, 0.7, 30.0):
        level = torch.tensor(sigma)
        noise = Noise.of(scheduler, float(theirs.precondition_noise(level)), "apg_of")
        x = theirs.precondition_inputs(latents, level)
        x0 = theirs.precondition_outputs(latents, output, level)
        torch.testing.assert_close(noise.x0(x, output), x0, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(noise.epsilon(x, output), (latents - x0) / sigma, rtol=1e-4, atol=1e-4)
        moved = noise.x0(x, output + 1.0) - noise.x0(x, output)
        torch.testing.assert_close(moved, torch.full_like(moved, noise.slope), rtol=1e-3, atol=1e-3)


def test_flow_matching_is_known_by_its_scheduler_and_not_by_what_is_missing():
    assert Noise.of(diffusers.FlowMatchEulerDiscreteScheduler(), 250.0, "").predicts == "flow_prediction"
    with pytest.raises(InputError, match="IPNDMScheduler has no alphas_cumprod"):
        Noise.of(diffusers.IPNDMScheduler(), 0.25, "")


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.CMStochasticIterativeScheduler(),
        diffusers.CosineDPMSolverMultistepScheduler(),
        sd_ext.make_scheduler("euler", diffusers.CosineDPMSolverMultistepScheduler().config),
        sd_ext.make_scheduler("euler", diffusers.CMStochasticIterativeScheduler().config),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__}-{scheduler.config.get('process')}",
)
def test_what_a_network_predicts_is_not_guessed(scheduler):
    with pytest.raises(
        InputError, match=f"cfg_threshold needs to know what the network predicts.*{type(scheduler).__name__}"
    ):
        Noise.of(scheduler, 1.0, "cfg_threshold")

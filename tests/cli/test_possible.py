"""What a model can do is told by what its U-Net takes beside the latent, not by how many channels that has."""

from __future__ import annotations

from sd_ext.cli.inputs.possible import check_possible
from sd_ext.cli.request import Recipe
from sd_ext.models import find_model


def test_the_embedded_model_draws_from_words_though_its_latents_have_eight_channels():
    model = find_model("embedded")
    assert model.setting("unet", "in_channels", int, 4) == model.setting("unet", "out_channels", int, 4) == 8
    check_possible(Recipe(prompt="a red apple"), model)

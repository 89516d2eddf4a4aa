"""What a recipe's sampler is told, and when a pipeline is given another."""

from __future__ import annotations

import pytest

from sd_ext.cli.equipment import Equipment
from sd_ext.cli.request import Recipe


@pytest.fixture
def equipment(tiny_pipeline):
    made = Equipment(tiny_pipeline)
    yield made
    made.take_off()


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_auto_is_told_the_guidance_that_is_drawn_with(equipment, tiny_pipeline, guidance):
    for each in (guidance, 9.0, guidance):
        equipment.put_on(Recipe(prompt="a", sampler="auto", guidance=each))
        assert tiny_pipeline.scheduler.config.guidance_scale == each


def test_a_sampler_for_low_guidance_stays_what_its_name_says(equipment, tiny_pipeline):
    equipment.put_on(Recipe(prompt="a", sampler="auto low guidance", guidance=6.0))
    assert tiny_pipeline.scheduler.config.guidance_scale == 1


def test_other_guidance_is_other_equipment_only_where_the_sampler_asks(equipment, tiny_pipeline):
    equipment.put_on(Recipe(prompt="a", sampler="euler", guidance=2.0))
    before = tiny_pipeline.scheduler
    equipment.put_on(Recipe(prompt="a", sampler="euler", guidance=3.0))
    assert tiny_pipeline.scheduler is before

"""A model that brings a sampler fitted to it: `calibrated/scheduler_config.json` in its folder."""

from __future__ import annotations

import json
import shutil

import pytest

from sd_ext.cli.compare.reference import why_none
from sd_ext.cli.pictures import read_record
from sd_ext.models.calibrated import FOLDER
from sd_ext.schedulers.calibrated import CalibratedScheduler, Calibration
from tests.schedulers.calibrated.family import fit


@pytest.fixture(scope="module")
def model(tiny_pipeline_dir, tmp_path_factory):
    """A tiny pipeline with a sampler for 4 calls at guidance 4 to 8."""
    folder = tmp_path_factory.mktemp("fitted") / "pipeline"
    shutil.copytree(tiny_pipeline_dir, folder)
    own = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    fitted = Calibration([fit(strength, calls=4) for strength in (4, 8)], {"size": [64, 64]})
    CalibratedScheduler.from_calibration(fitted, own).save_pretrained(folder / FOLDER)
    return folder


@pytest.fixture
def draw(run, model):
    return lambda *arguments: run("generate", "a cat", "--model", model, "--guidance", 6, *arguments)


def test_draws_what_it_was_fitted_for(draw, run):
    done = draw("--steps", 4)
    assert done.err.count("4 calls are made by the sampler that was fitted to this model") == 1
    assert read_record(done.paths[0]).recipe.sampler == "calibrated"
    again = run("generate", "--again", done.paths[0])
    assert again.paths[0].read_bytes() == done.paths[0].read_bytes()
    assert draw("--steps", 4, "--sampler", "calibrated").paths[0].read_bytes() == done.paths[0].read_bytes()
    assert draw("--steps", 4, "--sampler", "Calibrated").code == 0  # names are read in any spelling


@pytest.mark.parametrize(
    "other", [["--steps", 5], ["--guidance", 9], ["--sampler", "euler"], ["--size", "64x72"], ["--unet", "fast"]]
)
def test_leaves_the_rest_to_others(draw, other):
    done = draw("--steps", 4, *other)
    assert "fitted to this model" not in done.err
    assert read_record(done.paths[0]).recipe.sampler != "calibrated"


def test_is_refused_by_models_without(run, tiny_pipeline_dir):
    done = run("generate", "a cat", "--model", tiny_pipeline_dir, "--steps", 4, "--sampler", "calibrated")
    assert done.code == 2 and "no calibration" in done.err


def test_its_distance_is_to_the_picture_it_was_fitted_to(draw):
    record = read_record(draw("--steps", 4).paths[0])
    assert why_none(record) == ""

"""The whole recipe: its plan, and that a stage is skipped, resumed or run."""

import json
import shutil

import pytest

from sd_ext.cli import train as cli
from sd_ext.errors import InputError, TrainingError
from sd_ext.training import from_scratch
from sd_ext.training.data.shipped import shipped_sets
from sd_ext.training.from_scratch import Stage, find_recipe, plan, run, stages


@pytest.mark.parametrize("recipe", ["cpu", "gpu"])
def test_dry_run_shows_every_stage_and_makes_nothing(tmp_path, capsys, recipe):
    run(str(tmp_path / "out"), recipe, ["text_to_image.steps=77"], dry_run=True)
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.endswith(": to do")] == [
        f"{name}: to do"
        for name in ("data", "autoencoder", "decoder", "text_encoder", "text_to_image", "pipeline")
        if name != "decoder" or recipe == "cpu"
    ]
    assert "steps                   77" in text
    assert not (tmp_path / "out").exists()


def test_stages_are_skipped_resumed_or_run(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(from_scratch, "run_stage", lambda stage: done.append((stage.name, stage.status)))
    monkeypatch.setattr(from_scratch, "finish", lambda out, recipe, trained, pipeline: done.append(pipeline.name))
    for folder in ("data", "autoencoder/model", "decoder/model", "text_encoder"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "metadata.jsonl").write_text("{}")
    (tmp_path / "text_encoder" / "run.json").write_text("{}")
    run(str(tmp_path))
    assert done == [("text_encoder", "resumes"), ("text_to_image", "to do"), "pipeline"]
    (tmp_path / "pipeline").mkdir()
    assert run(str(tmp_path)) == tmp_path / "pipeline"
    assert len(done) == 3


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [(2, TrainingError, r"autoencoder stopped \(exit code 2\)"), (130, KeyboardInterrupt, None)],
)
def test_a_stage_that_fails_or_is_interrupted_ends_the_run(tmp_path, monkeypatch, code, error, message):
    class Process:
        def __init__(self, command):
            assert command[1:3] == ["-m", "sd_ext.training.train_autoencoder"]

        def wait(self):
            return code

    monkeypatch.setattr(from_scratch.subprocess, "Popen", Process)
    with pytest.raises(error, match=message):
        from_scratch.run_stage(Stage("autoencoder", tmp_path / "model", ()))


@pytest.mark.slow
def test_a_stage_that_refuses_its_settings_ends_the_run(tmp_path):
    """The real process."""
    with pytest.raises(TrainingError, match=r"autoencoder stopped \(exit code 2\)"):
        from_scratch.run_stage(Stage("autoencoder", tmp_path / "model", ("--steps", "0")))


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="no recipe 'tpu': give cpu or gpu"):
        find_recipe("tpu")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[autoencoder]\nsteps = 3\n")
    with pytest.raises(InputError, match="lacks the sections text_encoder, text_to_image"):
        stages(tmp_path, recipe)
    with pytest.raises(InputError, match=r"write stage\.key=value"):
        stages(tmp_path, find_recipe("cpu"), ["steps=3"])
    with pytest.raises(InputError, match="unknown setting in command line: 'stepz'"):
        plan(tmp_path / "out", find_recipe("cpu"), ["autoencoder.stepz=3"])
    with pytest.raises(InputError, match="no drawings to train on: give --fetch"):
        run(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "data").exists()
    for table, message in (("pictures = 'many'", "pictures"), ("fonts = 'x'", "fonts")):
        recipe.write_text(f"[data]\n{table}\n[autoencoder]\n[text_encoder]\n[text_to_image]\n")
        with pytest.raises(InputError, match=message):
            plan(tmp_path / "out", recipe)
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"holds something else \(photos\)"):
        run(str(tmp_path))


def test_command_forwards_to_the_scripts_parser(capsys):
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli.app, ["autoencoder", "--steps", "3", "--channels", "8,16", "--dry-run"])
    assert result.exit_code == 0
    assert "8,16" in result.output
    helped = CliRunner().invoke(cli.app, ["text-to-image", "--help"])
    assert "--loss-weighting" in helped.output
    refused = CliRunner().invoke(cli.app, ["autoencoder", "--steps", "none"])
    assert isinstance(refused.exception, InputError)


@pytest.mark.slow
def test_from_scratch_end_to_end(tmp_path):
    """The cpu recipe with very few steps: pictures to pipeline, then nothing left to do."""
    from diffusers import StableDiffusionPipeline

    shipped, data = shipped_sets()["high-contrast"], tmp_path / "drawings"
    shutil.copytree(shipped, data)
    entries = [json.loads(line) for line in (shipped / "metadata.jsonl").read_text("utf-8").splitlines()]
    splits = [{**entry, "split": "train" if i % 4 else "compositions"} for i, entry in enumerate(entries)]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, splits)), "utf-8")
    recipe = tmp_path / "recipe.toml"
    stages_of_cpu = find_recipe("cpu").read_text("utf-8").partition("[autoencoder]")[2]
    recipe.write_text(f'[data]\nfolder = "{data}"\n[autoencoder]{stages_of_cpu}', "utf-8")
    settings = ("steps=2", "batch_size=4", "warmup=1")
    few = [f"{stage}.{setting}" for stage in from_scratch.TRAINED for setting in settings]
    folder = run(str(tmp_path / "out"), str(recipe), [*few, "text_to_image.validate_every=0"])
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe("red apple", num_inference_steps=2).images[0].size == (64, 64)
    assert from_scratch.plan(tmp_path / "out", recipe, few).count(": complete") == 5

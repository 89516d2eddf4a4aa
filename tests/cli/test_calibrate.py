"""`sd-ext calibrate`: lines that cannot be, what it would take, and a whole run."""

from __future__ import annotations

import json

import pytest

from sd_ext.cli import main
from sd_ext.cli.calibrate import strengths

WRONG = [
    (["--calls", "five"], "--calls 'five' cannot be read"),
    (["--calls", "1,5"], "1 calls cannot be fitted; choose 2 to 50"),
    (["--guidance", "x"], "--guidance 'x' cannot be read"),
    (["--guidance", "1,5", "--fields", "2"], "guidance 1 has no second field"),
    (["--pairs", "1"], "1 pairs are too few"),
    (["--size", "65x64"], "--size 65x64 cannot work"),
    (["--prompts", "/no/such/file.txt"], "/no/such/file.txt"),
    (["--model", "/no/such/model"], "no such model"),
    (["--device", "tpu"], "--device 'tpu' is not known"),
    (["--lora", "/no/such.safetensors"], "no such"),
    (["--unet", "turbo"], "turbo"),
    (["--refine", "-1"], "-1 derivatives"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_lines_that_cannot_be_are_one_sentence(options, said, tiny_pipeline_dir, tmp_path, capsys):
    model = [] if "--model" in options else ["--model", str(tiny_pipeline_dir)]
    assert main(["calibrate", "--out", str(tmp_path / "out"), *model, *options]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("sd-ext: ") and said in told
    assert not (tmp_path / "out").exists()


def test_a_file_without_prompts(tiny_pipeline_dir, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("# none yet\n\n")
    line = ["calibrate", "--model", str(tiny_pipeline_dir), "--out", str(tmp_path / "out")]
    assert main([*line, "--prompts", str(tmp_path / "empty.txt")]) == 2
    assert "empty.txt has no prompts in it; write what you draw, a prompt a line" in capsys.readouterr().err


def test_without_a_folder(capsys):
    assert main(["calibrate"]) == 2 and "--out" in capsys.readouterr().err


def test_what_it_would_take(tiny_pipeline_dir, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\n")
    options = ["--calls", "2,3", "--guidance", "1,5", "--pairs", "2", "--refine", "1", "--prompts", str(prompts)]
    out = tmp_path / "out"
    assert main(["calibrate", "--dry-run", "--model", str(tiny_pipeline_dir), "--out", str(out), *options]) == 0
    said = capsys.readouterr()
    facts = dict(line.split(None, 1) for line in said.out.strip().splitlines())
    assert facts["calls"] == "2, 3" and facts["guidance"] == "1, 5" and "64x64" in facts["size"]
    assert int(facts["network"].split()[0].replace(",", "")) > 1000
    assert "seconds" in facts["time"] or "minutes" in facts["time"]
    assert "GB" in facts["memory"] and "2 prompts for 14 pairs" in said.err.replace("\n", " ")
    assert not out.exists()


def test_a_run_writes_a_scheduler_and_a_report(tiny_pipeline_dir, tmp_path, capsys, monkeypatch):
    for module in ("tables", "plan"):
        monkeypatch.setattr(f"sd_ext.calibration.{module}.KNOWN", ("ddim trailing",))
    monkeypatch.setattr("sd_ext.calibration.report.sheets", lambda *_: [])
    out = tmp_path / "out"
    options = ["--calls", "2", "--guidance", "5", "--pairs", "2", "--refine", "0", "--teacher-calls", "6"]
    assert main(["calibrate", "--model", str(tiny_pipeline_dir), "--out", str(out), *options]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out / "scheduler_config.json")
    assert "plain prompts that come with this package" in said.err.replace("\n", " ")
    config = json.loads((out / "scheduler_config.json").read_text())
    assert config["_class_name"] == "CalibratedScheduler" and (out / "report.html").exists()
    assert config["calibration"]["provenance"]["model"] == "pipeline"  # the folder's name, not where it is
    assert main(["calibrate", "--model", str(tiny_pipeline_dir), "--out", str(out), *options]) == 2
    assert "holds a finished calibration" in capsys.readouterr().err


def test_some_calls_reuse_features(tiny_pipeline_dir, tmp_path, capsys, monkeypatch):
    """The U-Net is one that asks the sampler which, and how to draw so is said."""
    for module in ("tables", "plan"):
        monkeypatch.setattr(f"sd_ext.calibration.{module}.KNOWN", ("ddim trailing",))
    monkeypatch.setattr("sd_ext.calibration.report.sheets", lambda *_: [])
    out = tmp_path / "out"
    options = ["--calls", "3", "--guidance", "5,7", "--pairs", "2", "--refine", "0", "--teacher-calls", "6"]
    line = ["calibrate", "--model", str(tiny_pipeline_dir), "--out", str(out), "--whole-share", "0.6", *options]
    assert main(line) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "The whole U-Net runs in 2 of 3 calls" in said and "--unet-option cache_schedule=sampler" in said
    made = json.loads((out / "scheduler_config.json").read_text())["calibration"]
    assert len(made["fits"][0]["whole_calls"]) == 2 and "sampler" in made["provenance"]["unet"]
    report = " ".join((out / "report.md").read_text().split())
    for fit in made["fits"]:  # strengths share them
        assert f"{', '.join(map(str, fit['whole_calls']))} of 3 calls" in report


def test_strengths_of_loras_are_numbers_by_name():
    told = strengths(("a/style.safetensors:0.8", "face.safetensors:1:0.5", "plain.safetensors"))
    assert json.loads(json.dumps(told)) == {"style": 0.8, "face": 1.0, "face, text encoders": 0.5, "plain": 1.0}

"""`sd-ext train lora` and `python training/train_lora.py`: help, presets, flags, exit codes, one sentence of error."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sd_ext.errors import HubError, TrainingError
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.command import parse
from sd_ext.training.settings.config import every_setting

from .test_startup import SLOW, modules_after

ROOT = Path(__file__).resolve().parents[2]


def settings_of(*arguments: object) -> LoraConfig:
    return parse(LoraConfig, [str(argument) for argument in arguments], "")[0]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('preset = "sd15"\nrank = 4\nsteps = 7\ntargets = ["cross_attention"]\n')
    return path


def test_help_is_one_line_a_setting_and_imports_nothing_slow():
    assert not modules_after("import sd_ext.cli; sd_ext.cli.main(['train', 'lora', '--help'])") & SLOW
    run = [sys.executable, "-m", "sd_ext.cli", "train", "lora", "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "400"})
    lines = [line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  --")]
    assert lines == [
        *("--config", "--override", "--dry-run"),
        *("--" + name.strip("_").replace("_", "-") for name in every_setting(LoraConfig)),
    ]  # fmt: skip
    assert "embedded, sd15, sd21, sdxl" in shown.stdout


def test_a_misspelled_flag_imports_nothing_slow():
    code = "import sd_ext.cli; assert sd_ext.cli.main(['train', 'lora', 'sd15', '--lerning-rate', '1']) == 2"
    assert not modules_after(code) & SLOW


def test_presets_by_name_in_a_file_and_beneath_flags(file):
    preset = settings_of("sd15")
    assert (preset.pictures.resolution, preset.adapters.rank, preset.machine.mixed_precision) == ((512,), 16, "fp16")
    own = settings_of(file)
    assert (own.adapters.rank, own.loop.steps, own.adapters.targets) == (4, 7, ("cross_attention",))
    assert own.base.model == preset.base.model
    over = settings_of(file, "--rank", 8, "--override", "steps=9", "--override", "learning-rate=1e-3")
    assert (over.adapters.rank, over.loop.steps, over.rate.learning_rate) == (8, 9, 1e-3)
    assert settings_of(file, "--rank", 8, "--override", "rank=2").adapters.rank == 2  # the last word


def test_the_file_may_follow_a_switch(file):
    for arguments in ((file, "--flip"), ("--flip", file), ("--rank", 4, "--flip", file)):
        found = settings_of(*arguments)
        assert (found.data.flip, found.loop.steps) == (True, 7)
    assert settings_of("--flip", "sdxl").pictures.resolution == (1024,)
    assert not settings_of("--flip", "no", file).data.flip


REFUSED = {
    ("nosuch.toml",): "nosuch.toml is not there",
    ("sd-15",): "unknown file or preset 'sd-15'; did you mean 'sd15'",
    ("sd15", "--lerning-rate", "1"): "unknown flag '--lerning-rate'; did you mean '--learning-rate'",
    ("sd15", "--learning", "1"): "unknown flag '--learning'; did you mean '--learning-rate'",
    ("sd15", "--rank"): "argument --rank: expected one argument",
    ("sd15", "--rank", "many"): "--rank is 'many'; it must be a whole number",
    ("sd15", "other.toml"): "unexpected argument 'other.toml'; give one CONFIG.toml",
    ("sd15", "--override", "rnk=4"): "unknown setting in command line: 'rnk'; did you mean 'rank'",
    ("sd15", "--override", "rank"): "--override rank: write key=value",
    (
        "sd15",
        "--method",
        "lokr",
        "--rslora",
    ): "settings contradict each other: rslora is for method = lora or dora, not lokr",
    ("sd15", "--config", "sdxl"): "two files of settings: sd15 and sdxl; give one",
}
FILES = {
    "lerning_rate = 1": "unknown setting in {file}: 'lerning_rate'; did you mean 'learning_rate'",
    'preset = "sd1.5"': "unknown preset in {file}: 'sd1.5'; did you mean 'sd15'",
    "preset = [1]": "unknown preset in {file}: [1]",
    "rank = 4.5": "{file}: rank is 4.5; it must be a whole number",
    "rank = 4\n[lora]\nsteps = 3": "{file}: rank above [lora] would have no effect",
    "lora = 3": "{file}: lora is 3; it must be a table [lora]",
    "rank = ": "{file} is not valid TOML",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_refused_in_one_sentence(run, arguments):
    outcome = run("train", "lora", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("sd-ext: ")
    assert REFUSED[arguments] in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("text", FILES)
def test_a_file_is_refused_in_one_sentence(run, tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    outcome = run("train", "lora", path)
    assert outcome.code == 2
    assert FILES[text].format(file=path) in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("the loss is nan at step 3"), 1),
        (HubError("the Hub is away"), 1),
        (KeyboardInterrupt("stopped at step 3; the same command resumes run/checkpoints/step-00000003"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(run, monkeypatch, error, code):
    def stop(config):
        raise error

    monkeypatch.setattr("sd_ext.training.train_lora.run", stop)
    outcome = run("train", "lora", "embedded", "--data", "x", "--out", "y")
    assert outcome.code == code
    assert outcome.err == f"sd-ext: {error if str(error) else 'stopped'}\n"


@pytest.fixture(scope="module")
def toml(picture_folder, tiny_pipeline_dir, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("train") / "own.toml"
    path.write_text(
        f'[lora]\nmodel = "{tiny_pipeline_dir}"\ndata = "{picture_folder}"\nresolution = 32\nbucket_step = 8\n'
        'batch_size = 4\nsteps = 2\nrank = 2\nvalidate_every = 0\ntracker = "none"\ndevice = "cpu"\n'
    )
    return path


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory) -> Path:
    from ..training.conftest import write_pictures

    return write_pictures(tmp_path_factory.mktemp("pictures") / "set")


def test_a_dry_run_and_a_run(run, toml, tmp_path):
    planned = run("train", "lora", toml, "--out", tmp_path / "run", "--dry-run")
    assert planned.code == 0
    assert "\npictures        11, 11 samples an epoch, none left out\n" in planned.out
    assert not (tmp_path / "run").exists()
    done = run("train", "lora", toml, "--out", tmp_path / "run")
    assert done.code == 0
    folder = Path(done.out.splitlines()[-1])
    assert folder == tmp_path / "run" / "model"
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
    again = run("train", "lora", toml, "--out", tmp_path / "run", "--override", "rank=3")
    assert again.code == 2
    assert "other settings (rank 2 -> 3)" in again.err


def script(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """`python training/train_lora.py`, or `accelerate launch` of it, as documented; from the repository's root."""
    command = [sys.executable, *launcher, "training/train_lora.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})


AS_A_SCRIPT = """
import os, runpy, sys
os.environ["COLUMNS"] = "300"
sys.argv[0] = "training/train_lora.py"
sys.path[0] = os.path.abspath("training")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_script_refuses_in_one_sentence(toml, tmp_path, fresh):
    done = fresh(AS_A_SCRIPT, toml, "--out", tmp_path / "run", "--override", "method=lorra")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: method is 'lorra'; it can be lora, dora, loha, lokr"
    assert "Traceback" not in done.stderr


def assert_same_result(one: Path, other: Path) -> None:
    for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()


def test_what_the_script_makes_is_what_the_command_makes(run, toml, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training/train_lora.py", str(toml), "--out", str(tmp_path / "script")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "training" / "train_lora.py"), run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "script" / "model")
    assert run("train", "lora", toml, "--out", tmp_path / "run").code == 0
    assert_same_result(tmp_path / "script", tmp_path / "run")


@pytest.mark.slow
def test_accelerate_launches_the_script(run, toml, tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    done = script(toml, "--out", tmp_path / "launched", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "launched" / "model")
    assert run("train", "lora", toml, "--out", tmp_path / "run").code == 0
    assert_same_result(tmp_path / "launched", tmp_path / "run")

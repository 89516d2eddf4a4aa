"""The public names: those that are published stay, and every class that a saved pipeline may name is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sd_ext

PUBLISHED = """
AutoScheduler CachedUNet2DConditionModel DDIMScheduler DDPMScheduler DEISMultistepScheduler
DPMSolver2SAncestralScheduler DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler
DeepCacheConfig ERSDEScheduler EulerAncestralDiscreteScheduler EulerDiscreteScheduler FlowMatchEulerDiscreteScheduler
FlowMatchHeunDiscreteScheduler GradientEstimationScheduler GuidanceInterval HeunDiscreteScheduler
HeunPPDiscreteScheduler HighResUNet2DConditionModel IPNDMScheduler KDPM2AncestralDiscreteScheduler
KDPM2DiscreteScheduler LCMScheduler LMSDiscreteScheduler NoiseSchedule PNDMScheduler RESMultistepScheduler
RESSinglestepScheduler RestartScheduler SASolverScheduler SEEDSScheduler SamplerInfo TCDScheduler Table TableScheduler
TokenReducedUNet2DConditionModel UniPCMultistepScheduler VariantUNet2DConditionModel __version__ attach
attention_report calibrate detach encode_prompt guided_by list_grids list_samplers make_scheduler
pretrained_path publishable regional sampling set_attention use_embedding use_lora
""".split()  # noqa: SIM905


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_published_names_stay_and_only_classes_of_the_rooms_are_new():
    assert set(PUBLISHED) <= set(sd_ext.__all__)
    assert sd_ext.__all__ == sorted(set(sd_ext.__all__))
    assert all(name.endswith(("Scheduler", "UNet2DConditionModel")) for name in set(sd_ext.__all__) - set(PUBLISHED))
    assert set(sd_ext.__all__) <= set(dir(sd_ext))
    for name in sd_ext.__all__:
        assert getattr(sd_ext, name) is not None


@pytest.mark.slow
def test_type_checkers_know_the_classes(tmp_path):
    """Though each is listed in its room alone."""
    names = [name for name in PUBLISHED if name != "__version__"]
    (tmp_path / "uses.py").write_text("\n".join(["import sd_ext", *(f"reveal_type(sd_ext.{name})" for name in names)]))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, tmp_path / "uses.py"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    told = [entry["message"] for entry in json.loads(done.stdout)["generalDiagnostics"]]
    assert len(told) == len(names)
    assert not [message for message in told if '"Any"' in message or '"Unknown"' in message]


@pytest.mark.slow
def test_type_checkers_know_what_a_step_returns(tmp_path):
    """By default an output whose latent is a tensor; for every class with a step of its own."""
    names = ["DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler", "TCDScheduler", "UniPCMultistepScheduler"]
    lines = ["import torch, sd_ext", "x = torch.zeros(1)"]
    lines += [f"reveal_type(sd_ext.{name}().step(x, 0, x))" for name in names]
    lines += [f"reveal_type(sd_ext.{name}().step(x, 0, x).prev_sample)" for name in names]
    lines += [f"y: torch.Tensor = sd_ext.{name}().step(x, 0, x, return_dict=False)[0]" for name in names]
    lines += ["reveal_type(sd_ext.lora.read_lora)"]
    (tmp_path / "uses.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, tmp_path / "uses.py"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    told = json.loads(done.stdout)["generalDiagnostics"]
    assert not [entry["message"] for entry in told if entry["severity"] == "error"]
    shown = [entry["message"].split(" is ")[-1].strip('"') for entry in told]
    assert shown[: len(names)] == ["StepOutput | Any"] * len(names)
    assert all(message.startswith("Tensor") for message in shown[len(names) : 2 * len(names)])
    assert "Lora" in shown[-1]


PACKAGES = ("calibration", "errors", "hub", "lora", "models", "modular", "prompts", "schedulers", "training", "unets")


def test_packages_are_reached_without_an_import_of_their_own():
    code = f"import sd_ext; print([getattr(sd_ext, name).__name__ for name in {PACKAGES}]); sd_ext.lora.read_lora"
    assert in_a_fresh_process(code) == str([f"sd_ext.{name}" for name in PACKAGES])


def test_what_dir_lists_is_public():
    listed = {name for name in dir(sd_ext) if not name.startswith("__")}
    assert listed == {*sd_ext.__all__, *PACKAGES} - {"__version__"}


def test_help_begins_with_a_page_that_names_all_there_is():
    page = sd_ext.__doc__
    assert len(page.splitlines()) < 50 and max(map(len, page.splitlines())) <= 120
    for name in {*sd_ext.__all__, *PACKAGES} - {"__version__"}:
        assert name in page or name.endswith(("Scheduler", "UNet2DConditionModel")), name


def test_every_sampler_class_says_order_calls_and_paper():
    for info in sd_ext.list_samplers():
        text = " ".join((info.cls.__doc__ or "").split())
        orders = {int(digit) for low, high in re.findall(r"[Oo]rder (?:up to )?(\d)(?: (?:to|or) (\d))?", text)
                  for digit in range(int(low), int(high or low) + 1)}  # fmt: skip
        orders |= {int(digit) for digit in re.findall(r", (\d) with", text)}
        assert (info.order in orders) if info.order else "No order of convergence" in text, info.name
        assert "call a step" in text or "calls a step" in text, info.name
        assert all(paper in text for paper in re.findall(r"\d{4}\.\d{5}", info.source)), info.name
        assert not info.stochastic or "fresh noise" in text or info.cls.__name__ == "RestartScheduler", info.name


def test_importing_is_cheap():
    code = "import sys, sd_ext; hasattr(sd_ext, 'cli'); hasattr(sd_ext, 'nothing'); print(sorted(m for m in LIBS))"
    libraries = "('torch', 'diffusers', 'numpy', 'scipy')"
    assert in_a_fresh_process(code.replace("for m in LIBS", f"for m in {libraries} if m in sys.modules")) == "[]"


def test_unknown_names_are_attribute_errors():
    for name in ("nothing", "NoSuchScheduler", "_Scheduler", "__path_of__"):
        assert not hasattr(sd_ext, name)


def test_the_table_printed_in_the_guide_is_the_table():
    scheduler = sd_ext.make_scheduler("dpm++ 2m karras")
    scheduler.set_timesteps(6)
    shown = "\n".join(line.rstrip() for line in str(scheduler.table()).splitlines())
    assert shown in (Path(__file__).parent.parent / "docs" / "swap.md").read_text("utf-8")

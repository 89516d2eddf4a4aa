"""The public names: those that are published stay, and every class that a saved pipeline may name is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sd_ext

PUBLISHED = """
AutoScheduler CachedUNet2DConditionModel DDIMScheduler DDPMScheduler DEISMultistepScheduler
DPMSolver2SAncestralScheduler DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler
ERSDEScheduler EulerAncestralDiscreteScheduler EulerDiscreteScheduler FlowMatchEulerDiscreteScheduler
FlowMatchHeunDiscreteScheduler GradientEstimationScheduler GuidanceInterval HeunDiscreteScheduler
HeunPPDiscreteScheduler HighResUNet2DConditionModel IPNDMScheduler KDPM2AncestralDiscreteScheduler
KDPM2DiscreteScheduler LCMScheduler LMSDiscreteScheduler NoiseSchedule PNDMScheduler RESMultistepScheduler
RESSinglestepScheduler RestartScheduler SASolverScheduler SEEDSScheduler SamplerInfo TCDScheduler Table TableScheduler
TokenReducedUNet2DConditionModel UniPCMultistepScheduler VariantUNet2DConditionModel __version__ attention_report
encode_prompt list_grids list_samplers make_scheduler pretrained_path set_attention
use_embedding use_lora
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


def test_importing_is_cheap():
    code = "import sys, sd_ext; hasattr(sd_ext, 'cli'); hasattr(sd_ext, 'nothing'); print(sorted(m for m in LIBS))"
    libraries = "('torch', 'diffusers', 'numpy', 'scipy')"
    assert in_a_fresh_process(code.replace("for m in LIBS", f"for m in {libraries} if m in sys.modules")) == "[]"


def test_unknown_names_are_attribute_errors():
    for name in ("nothing", "NoSuchScheduler", "_Scheduler", "__path_of__"):
        assert not hasattr(sd_ext, name)


def test_the_table_printed_in_the_readme_is_the_table():
    scheduler = sd_ext.make_scheduler("dpm++ 2m karras")
    scheduler.set_timesteps(6)
    shown = "\n".join(line.rstrip() for line in str(scheduler.table()).splitlines())
    assert shown in (Path(__file__).parent.parent / "README.md").read_text()

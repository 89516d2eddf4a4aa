"""The public names, pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sd_ext


def test_exported_names():
    assert sorted(sd_ext.__all__) == [
        "AutoScheduler",
        "CachedUNet2DConditionModel",
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolver2SAncestralScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "ERSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "GradientEstimationScheduler",
        "GuidanceInterval",
        "HeunDiscreteScheduler",
        "HeunPPDiscreteScheduler",
        "HighResUNet2DConditionModel",
        "IPNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "NoiseSchedule",
        "PNDMScheduler",
        "RESMultistepScheduler",
        "RESSinglestepScheduler",
        "RestartScheduler",
        "SASolverScheduler",
        "SEEDSScheduler",
        "SamplerInfo",
        "TCDScheduler",
        "Table",
        "TableScheduler",
        "TokenReducedUNet2DConditionModel",
        "UniPCMultistepScheduler",
        "VariantUNet2DConditionModel",
        "__version__",
        "attention_report",
        "list_grids",
        "list_samplers",
        "make_scheduler",
        "pretrained_path",
        "set_attention",
    ]
    for name in sd_ext.__all__:
        assert getattr(sd_ext, name) is not None
        assert name in dir(sd_ext)


def test_import_is_lazy():
    code = "import sys, sd_ext; print(sorted(m for m in ('torch', 'diffusers', 'numpy', 'scipy') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_table_printed_in_the_readme_is_the_table():
    scheduler = sd_ext.make_scheduler("dpm++ 2m karras")
    scheduler.set_timesteps(6)
    shown = "\n".join(line.rstrip() for line in str(scheduler.table()).splitlines())
    assert shown in (Path(__file__).parent.parent / "README.md").read_text()

"""The command must answer at once: nothing it needs for that may import torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

SLOW = {"torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "scipy", "PIL"}


def modules_after(code: str) -> set[str]:
    code += "\nimport json, sys; print(); print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(shown.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import sd_ext",
        "import sd_ext.cli",
        "import sd_ext.cli; sd_ext.cli.main(['--help'])",
        "import sd_ext.cli; sd_ext.cli.main(['generate', '--help'])",
        "import sd_ext.cli; sd_ext.cli.main(['train', '--help'])",
        "import sd_ext.cli; sd_ext.cli.main(['generate', '--steps', '0', 'red apple'])",
        "import sd_ext.cli; sd_ext.cli.main(['generate', '--model', 'missing', 'red apple'])",
    ],
)
def test_nothing_slow_is_imported(code):
    assert not modules_after(code) & SLOW


def test_help_takes_less_than_a_second_of_a_processor():
    """Whatever else runs on the machine: the processor's time is measured, not the clock's."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-m", "sd_ext.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
    assert 0 < spent() - before < 1


def test_the_command_is_a_program():
    run = [sys.executable, "-m", "sd_ext.cli"]
    assert subprocess.run([*run, "--version"], capture_output=True, text=True, check=True).stdout.startswith("sd_ext ")
    refused = subprocess.run([*run, "generate"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)

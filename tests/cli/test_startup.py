"""The command must answer at once: nothing it needs for that may import torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

SLOW = {"torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "scipy", "PIL"}


def modules_after(code: str) -> set[str]:
    code += "\nimport json, sys; print(); print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(shown.stdout.splitlines()[-1]))


def test_nothing_slow_is_imported_by_any_of_these():
    """One after the other in one process: none of them has imported anything slow if the last one finds nothing."""
    commands = [
        ["--help"],
        ["generate", "--help"],
        ["train", "--help"],
        ["generate", "--steps", "0", "red apple"],
        ["generate", "--model", "missing", "red apple"],
        ["words"],
    ]
    clean = f"assert not {SLOW} & set(sys.modules)"
    lines = ["import sys", "import sd_ext", f"{clean}, 'sd_ext'", "import sd_ext.cli", f"{clean}, 'sd_ext.cli'"]
    for command in commands:
        lines += [f"sd_ext.cli.main({command})", f"{clean}, {command}"]
    assert not modules_after("\n".join(lines)) & SLOW


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

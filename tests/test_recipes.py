"""The code of the guides: Python runs as it stands, on a tiny model; every `sd-ext` command can be read as it stands.

A page's blocks follow one another, so that what one makes the next has. `pipe` is there from the beginning.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

import sd_ext
from sd_ext.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = ["README", "swap", "few-steps", "which-sampler", "recipes"]
"""Pages of which every block of Python runs here; those of samplers are tried in test_docs.py."""


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES)
def test_the_python_of_a_guide_runs(guide, tiny_pipeline_dir, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sd_ext, "pretrained_path", lambda: tiny_pipeline_dir, raising=False)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    names = {"sd_ext": sd_ext, "pipe": pipe}
    page = ROOT / "docs" / f"{guide}.md"
    assert fenced(page, "python")
    for code in fenced(page, "python"):
        exec(compile(code, str(page), "exec"), names)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `sd-ext` command in a page's shell blocks and in its running text.

    Where its output goes is the shell's business: `> file` is no argument.
    """
    text = page.read_text("utf-8").replace("\\\n", " ")
    lines = [line for language in ("sh", "bash") for block in fenced(page, language)
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    lines += re.findall(r"`(sd-ext [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    calls = [re.sub(r"\s>\s*\S+", "", re.split(r"&& ", line)[-1]) for line in lines]
    split = [shlex.split(call, comments=True) for call in calls if call.lstrip().startswith("sd-ext ")]
    return [words[1:] for words in split if "..." not in words]


@cache
def root() -> Any:
    return typer.main.get_command(app)


def unreadable(arguments: list[str]) -> str:
    """Why the command line cannot be read; empty if it can. Nothing runs."""
    command, words = root(), list(arguments)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            return f"there is no {name}"
        command = command.commands[name]
    if hasattr(command, "commands"):  # its own options are for leaving at once, and one of them changes the shell
        known = {option for each in command.params for option in each.opts} | {"--help"}
        return ", ".join(set(words) - known)
    try:
        command.make_context("sd-ext", words)
    except typer.Exit:
        return ""
    except Exception as error:
        return str(getattr(error, "message", error))
    return ""


PAGES_WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_can_be_read(page):
    wrong = {" ".join(call): why for call in commands(page) if (why := unreadable(call))}
    assert not wrong


@pytest.mark.slow
def test_the_commands_of_the_recipes_run(tmp_path):
    """All of the page, one after the other, on the embedded model."""
    script = "set -eu\n" + "\n".join(fenced(ROOT / "docs" / "recipes.md", "sh"))
    script = re.sub(r"^sd-ext ", f"{shlex.quote(sys.executable)} -m sd_ext.cli ", script, flags=re.MULTILINE)
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "all").glob("*.png"))) == 4 and "to the bit" in ran.stdout + ran.stderr
    assert list((tmp_path / "side-by-side").glob("*.html")) and (tmp_path / "to-be-sent" / "README.md").is_file()

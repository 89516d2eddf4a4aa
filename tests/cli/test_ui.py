"""`sd-ext ui`: what is refused before anything is started."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets everyone who reaches this machine draw on it; give --shared"),
        (["--host", "::"], "give --shared"),
        (["--host", "example.org"], "--host 'example.org' is no address"),
        (["--port", "70000"], "--port 70000 cannot work"),
        (["--waiting", "0"], "--waiting 0 cannot work"),
        (["--device", "tpu"], "--device 'tpu' is not known"),
        (["--dtype", "fp8"], "--dtype 'fp8' is not known"),
        (["--out", "/dev/null/x"], "cannot write to /dev/null/x"),
        (["--space", "s", "--model", "mine.safetensors"], "a Space has no files of yours"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, sentence):
    done = run("ui", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert sentence in done.err


def test_without_gradio_it_says_what_to_install(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    done = run("ui")
    assert done.code == 2 and 'pip install "sd_ext[ui]"' in done.err


def test_places_are_looked_at_before_anything_is_started(run):
    done = run("ui", "--model", "missing")
    assert done.code == 2
    assert "no such model or folder of them: missing" in done.err or "Gradio" in done.err


def test_a_space(run, tmp_path):
    pytest.importorskip("gradio")
    done = run("ui", "--space", "space", "--model", "owner/name")
    assert done.code == 0 and [path.name for path in done.paths] == ["app.py", "requirements.txt", "README.md"]
    assert "'owner/name'" in (tmp_path / "space" / "app.py").read_text()

"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import sd_ext

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readmes_python_runs(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sd_ext, "pretrained_path", lambda: tiny_pipeline_dir, raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert list(tmp_path.glob("*.png"))


def test_the_readmes_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)|<img [^>]*src=\"([^\"]+)\"", README.read_text("utf-8"))
    local = [link for pair in links for link in pair if link and "://" not in link]
    assert not [link for link in local if not (README.parent / link).exists()]

"""A base may be a single file, a folder or a Hub id: every script trains the same on each, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from sd_ext.models import find_model
from sd_ext.models.written import write_model
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.train_text_to_image import run

from .conftest import forget_accelerate_state, write_pictures
from .lora_cases import train

STEPS = {"steps": 2, "batch_size": 2}
SCRIPTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "few-step": {"skip": 50, "blocks": ()},
    "slider": {"positive": "red {}", "negative": "blue {}"},
    "text-to-image": {"validate_every": 0, "warmup": 0, "text_dropout": 0.1},
}


def trained(script: str, base: str, out: Path, data: Path) -> dict[str, Any]:
    """The weights that a script leaves, by the file's place in its result."""
    given = {**STEPS, **SCRIPTS[script], "data": str(data)}
    if script == "text-to-image":
        forget_accelerate_state()
        shape = {"device": "cpu", "tracker": "none", "resolution": (64,), "model": base, "out": str(out)}
        folder = run(TextToImageConfig.of(**shape, **given))
    else:
        folder = train(base, out, script, **given).folder  # type: ignore[arg-type]
    return {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_file_a_folder_and_a_hub_id_are_the_same_base(script, family, tiny_file, tmp_path, monkeypatch):
    file, folder, data = tiny_file(family), tmp_path / "folder", write_pictures(tmp_path / "data", 64)
    write_model(find_model(file), folder)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda name, **options: str(folder))
    expected = trained(script, str(file), tmp_path / "from the file", data)
    assert expected
    for name, base in {"folder": str(folder), "hub": "owner/name"}.items():
        found = trained(script, base, tmp_path / f"from the {name}", data)
        assert found.keys() == expected.keys()
        for path, tensors in expected.items():
            assert tensors.keys() == found[path].keys(), path
            assert all(torch.equal(tensor, found[path][key]) for key, tensor in tensors.items()), path

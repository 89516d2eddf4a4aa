"""Tiny checkpoints in the original layout, made once for all tests here: copy before changing."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

from tests.models import original_layout as original

EPSILON = {"modelspec.prediction_type": "epsilon"}
FAMILIES = "sd15", "sd21", "sdxl", "sdxl-refiner"


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """`tiny_file(family)`: a tiny checkpoint of a family, in float16, whose header says that it predicts the noise."""
    made = {}

    def path_of(family):
        if family not in made:
            import torch

            made[family] = tmp_path_factory.mktemp(family) / "tiny.safetensors"
            save_file(original.tensors(family, torch.float16), made[family], EPSILON)
        return made[family]

    return path_of

"""One trained model of each shape for all tests: building them takes longer than testing."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch import nn

from sd_ext.lora import Lora, from_peft

from . import adapters, models


class Trained(NamedTuple):
    shape: str
    models: dict[str, nn.Module]
    lora: Lora
    outputs: dict[str, torch.Tensor]


@functools.cache
def _trained(shape: str) -> Trained:
    made = adapters.trained(shape)
    return Trained(shape, made, from_peft(made, base=shape), models.outputs(made))


@pytest.fixture(params=["sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl"])
def trained(request) -> Trained:
    """A tiny model of each shape with a random LoRA of mixed ranks and alphas. Shared: leave it as it is."""
    return _trained(request.param)


@pytest.fixture
def sd15() -> Trained:
    return _trained("sd15")


@pytest.fixture
def sdxl() -> Trained:
    return _trained("sdxl")

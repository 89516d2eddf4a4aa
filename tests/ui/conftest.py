"""A desk with a tiny model and a LoRA, without a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from sd_ext.ui.offer import offer
from sd_ext.ui.settings import Settings
from sd_ext.ui.studio import Studio
from sd_ext.ui.work import Desk
from tests.lora import tiny


@pytest.fixture(scope="session")
def studio() -> Studio:
    """Keeps the tiny model loaded from test to test."""
    return Studio()


@pytest.fixture(scope="session")
def style(tmp_path_factory) -> str:
    """A LoRA that fits the tiny model."""
    from sd_ext.lora import save_lora

    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    save_lora(tiny.trained("lora")[1], path, "kohya")
    return str(path)


@pytest.fixture
def desk(studio, tiny_pipeline_dir, style, tmp_path) -> Desk:
    models, loras = offer("model", [str(tiny_pipeline_dir)]), offer("LoRA", [style])
    return Desk(studio, tmp_path / "shown", models, loras)


@pytest.fixture
def fields(desk) -> Callable[..., Settings]:
    """Settings of a quick picture; others by name."""

    def fields(**changes: Any) -> Settings:
        return Settings(**{"prompt": "red cat", "model": desk.models.names[0], "steps": 3} | changes)

    return fields


@pytest.fixture
def go() -> threading.Event:
    """What stops nothing."""
    return threading.Event()

"""Pipelines that cannot run here because a library is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from .entry import Broken

ONNX = "needs onnxruntime; its networks run outside torch and are not UNet2DConditionModel"


def onnx(name: str) -> Callable[[], Any]:
    return lambda: getattr(diffusers, name)(None, None, None, None, None, None, None, None)


def onnx_network() -> Any:
    return diffusers.OnnxRuntimeModel(None)


def mel() -> Any:
    return diffusers.Mel()


ENTRIES: list[Broken] = [
    *(
        Broken(name, "ONNX", onnx(name), ONNX, "onnx")
        for name in (
            "OnnxStableDiffusionPipeline",
            "OnnxStableDiffusionImg2ImgPipeline",
            "OnnxStableDiffusionInpaintPipeline",
            "OnnxStableDiffusionUpscalePipeline",
        )
    ),
    Broken("OnnxStableDiffusionInpaintPipelineLegacy", "ONNX", onnx_network, ONNX, "onnx"),
    Broken("AudioDiffusionPipeline", "Sound", mel, "its spectrograms are computed by librosa", "librosa"),
]

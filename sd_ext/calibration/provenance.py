"""Of what a calibration was made, as plain JSON, so that nobody uses it for something else unknowingly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checked import raw
from ..schedulers.calibrated import sample_of_weights
from .pipeline import PipelineProblem
from .settings import Settings

METHOD = "greedy least squares, Levenberg-Marquardt on the end/1"
"""The method and its version: a result of another version may differ."""

DIGITS = 16


def weights_digest(network: torch.nn.Module) -> str:
    """The first 16 digits of a SHA-256 over a network's weights: names, dtypes, shapes and every bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(raw(tensor))
    return digest.hexdigest()[:DIGITS]


def model_name(pipe: Any) -> str:
    """The pipeline's model: an id on the Hub, or the name of its folder, without where that is on this machine."""
    name = str(getattr(pipe, "name_or_path", "") or "")
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def loras_of(pipe: Any) -> dict[str, float] | None:
    """The adapters that are active in a pipeline; their strengths are not told, and stand as 1."""
    active = pipe.get_active_adapters() if hasattr(pipe, "get_active_adapters") else []
    return dict.fromkeys(sorted(active), 1.0) or None


def identity(
    problem: PipelineProblem, settings: Settings, prompts: Sequence[str], lora: Mapping[str, float] | None, name: str
) -> dict[str, Any]:
    """What two runs must have in common for one to go on where the other stopped.

    Args:
        problem, settings: what is fitted.
        prompts: of all pairs.
        lora: strength of each LoRA that is in use, by name; None asks the pipeline.
        name: of the model; "" asks the pipeline.
    """
    import diffusers

    from ..version import __version__

    pipe, height, width = problem.pipe, *problem.starts.shape[-2:]
    scale = int(getattr(pipe, "vae_scale_factor", 1))
    return {
        "model": name or model_name(pipe),
        "model_digest": weights_digest(problem.unet),
        "model_sample": sample_of_weights(problem.unet),
        "unet": getattr(problem.unet, "describe", lambda: "plain")(),
        "dtype": str(problem.unet.dtype).removeprefix("torch."),
        "size": [width * scale, height * scale],
        "guidance": list(settings.guidance),
        "calls": list(settings.calls),
        "fields": settings.fields,
        "prompts": len(set(prompts)),
        "prompts_digest": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:DIGITS],
        "negative_digest": hashlib.sha256(settings.negative.encode()).hexdigest()[:DIGITS]
        if settings.negative
        else None,
        "pairs": settings.pairs,
        "seed": settings.seed,
        "teacher": {"sampler": settings.teacher, "calls": settings.teacher_calls},
        "effort": [settings.effort.derivatives, settings.effort.steps],
        "whole_share": settings.whole_share,
        "method": METHOD,
        "lora": dict(lora) if lora else loras_of(pipe),
        "sd_ext": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }

"""Of what a calibration was made, as plain JSON, so that nobody uses it for something else unknowingly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checked import raw
from ..schedulers.calibrated import sample_of_weights
from ..schedulers.calibrated.pipelines import lora_strengths
from .pipeline import PipelineProblem
from .settings import Settings

METHOD = "greedy least squares, Levenberg-Marquardt on the end/1"
"""The method and its version: a result of another version may differ."""

DIGITS = 16


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights by name, also those that are offloaded and stand as meta tensors in it."""
    state = network.state_dict()
    if not any(tensor.is_meta for tensor in state.values()):
        return state
    from accelerate.utils.modeling import get_state_dict_offloaded_model

    return get_state_dict_offloaded_model(network)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The first 16 digits of a SHA-256 over a network's weights: names, dtypes, shapes and every bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()[:DIGITS]


def model_name(pipe: Any) -> str:
    """The pipeline's model: an id on the Hub, or the name of its folder, without where that is on this machine."""
    return without_place(str(getattr(pipe, "name_or_path", "") or ""))


def without_place(name: str) -> str:
    """A model's name, of a path the last part."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def text_digest(pipe: Any) -> str | None:
    """The digest of all the pipeline's text encoders; None where it has none."""
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    digests = [weights_digest(state_of(each)) for each in encoders if isinstance(each, torch.nn.Module)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:DIGITS] if digests else None


def config_digest(config: Mapping[str, Any]) -> str:
    """The digest of a scheduler config: the noise schedule, what the network predicts, how steps are placed."""
    told = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]


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
    scale, state = int(getattr(pipe, "vae_scale_factor", 1)), state_of(problem.unet)
    return {
        "model": without_place(name) or model_name(pipe),
        "model_digest": weights_digest(state),
        "model_sample": sample_of_weights(problem.unet, state),
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
        "lora": dict(lora) if lora else lora_strengths(pipe) or None,
        "scheduler_digest": config_digest(problem.config),
        "text_digest": text_digest(pipe),
        "sd_ext": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }

"""A whole pipeline, loaded quietly, and with one sentence for whatever goes wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .hub import OnHub
from .model import Model

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


def load_pipeline(
    model: Model, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False
) -> DiffusionPipeline:
    """The model as a Diffusers pipeline, from safetensors only; for a local folder without the network.

    Args:
        model: as `find_model` returns it.
        device: where to put it.
        dtype: of its weights.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: anything that goes wrong, in one sentence; its cause is attached.
    """
    # Each says on stderr, with bars and warnings of its own, that it is loading; read when they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers
    import transformers

    import sd_ext  # noqa: F401  Diffusers loads our classes only from an imported library

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    try:
        return model.pipeline(**options).to(device)
    except Exception as error:  # anything at all can be wrong with a stranger's files
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else reason[:300] + "…"
        guess = " (no such folder here, so taken as a Hub id)" if isinstance(model, OnHub) else ""
        raise ModelError(f"cannot load {model.name}{guess}: {reason}") from error

"""Load a whole pipeline without progress bars, and with one sentence for any error."""

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
    model: Model, device: torch.device | str, dtype: torch.dtype, trust_remote_code: bool = False
) -> DiffusionPipeline:
    """Load a model as a Diffusers pipeline, from safetensors only. For a local folder the network is not used.

    Args:
        model: as `find_model` returns it.
        device: the device to move it to.
        dtype: of its weights.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: loading failed; one sentence, with the original exception as its cause.
    """
    # Silences the libraries' own progress bars and warnings; must be set before they are imported.
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

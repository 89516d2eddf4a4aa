"""What the base model brings: its noise schedule, and the layers of its text encoder."""

from __future__ import annotations

from typing import Any

from sd_ext.errors import InputError
from sd_ext.models import Model
from sd_ext.training.objective.settings import PredictionSettings


def noise_of(files: Model, prediction: PredictionSettings) -> dict[str, Any]:
    """A model's noise schedule, as keyword arguments of Diffusers' schedulers, changed as the settings say."""
    schedule = files.noise()
    if prediction.prediction_type != "auto":
        schedule["prediction_type"] = prediction.prediction_type
    schedule["rescale_betas_zero_snr"] = prediction.zero_snr or schedule["rescale_betas_zero_snr"]
    return schedule


def check_clip_skip(clip_skip: int, files: Model) -> None:
    """Raise `InputError` if a model's text encoder has no such layer, or the model always reads another one."""
    if clip_skip == 1:
        return
    if files.family == "sdxl":
        raise InputError(f"clip_skip is {clip_skip}, and SDXL always reads the last layer but one; leave it out")
    layers = files.setting("text_encoder", "num_hidden_layers", int, 12)
    if clip_skip > layers:
        raise InputError(f"clip_skip is {clip_skip}; the text encoder of {files.name} has 1 to {layers}")

"""What a diffusion model is asked to predict, from what noise, and how its errors count."""

from sd_ext.training.objective.error import ERRORS, HUBER_SCHEDULES, error, huber_delta
from sd_ext.training.objective.noise import draw_noise, offset_noise, perturbed, pyramid_noise
from sd_ext.training.objective.target import PREDICTION_TYPES, check_terminal_snr, target
from sd_ext.training.objective.timesteps import check_range, stratified_timesteps
from sd_ext.training.objective.weights import WEIGHTS, loss_weight, min_snr_weight

__all__ = [
    "ERRORS",
    "HUBER_SCHEDULES",
    "PREDICTION_TYPES",
    "WEIGHTS",
    "check_range",
    "check_terminal_snr",
    "draw_noise",
    "error",
    "huber_delta",
    "loss_weight",
    "min_snr_weight",
    "offset_noise",
    "perturbed",
    "pyramid_noise",
    "stratified_timesteps",
    "target",
]

"""Settings of the objective: prediction type, loss and its weighting, noise, timesteps."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.training.settings.setting import NOT_NEGATIVE, POSITIVE, SHARE, Settings, contradiction, setting

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
ERRORS = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
WEIGHTS = {"none": None, "min_snr": 5.0, "soft_min_snr": 5.0, "debiased": None, "p2": 1.0}
"""Names of the loss weightings, each with its default gamma; None for those without one."""


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """What the U-Net predicts, and the noise schedule it does so on."""

    prediction_type: str = setting(
        "auto", "what the U-Net predicts; auto: what the model's scheduler says, epsilon for a new one",
        choices=("auto", *PREDICTION_TYPES),
    )  # fmt: skip
    zero_snr: bool = setting(False, "rescale the noise schedule to end in pure noise (Lin et al. 2023)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_snr and self.prediction_type == "epsilon":
            raise contradiction("pure noise says nothing about its noise: with zero_snr use v_prediction or sample")


@dataclass(frozen=True)
class LossSettings(Settings):
    """How errors count."""

    loss: str = setting("l2", "error of the prediction", choices=ERRORS)
    huber_c: float = setting(0.1, "where huber and smooth_l1 turn from square to linear", within=POSITIVE)
    huber_schedule: str = setting("constant", "how that depends on the noise", choices=HUBER_SCHEDULES)
    loss_weighting: str = setting("none", "how much each noise level counts", choices=tuple(WEIGHTS))
    gamma: float = setting(
        0.0, "gamma of min_snr, soft_min_snr and p2; 0 for the customary 5, 5 and 1", within=NOT_NEGATIVE
    )
    masked_loss: bool = setting(False, "weigh the error by the pictures' masks")
    mask_floor: float = setting(0.0, "least weight where a mask is black", within=SHARE)


@dataclass(frozen=True)
class NoiseSettings(Settings):
    """Noise other than white."""

    offset_noise: float = setting(0.0, "strength of noise that is constant over a channel", within=NOT_NEGATIVE)
    pyramid_iterations: int = setting(0, "coarser noises added to the noise", "N", within=NOT_NEGATIVE)
    pyramid_discount: float = setting(0.4, "strength of each coarser noise beside the one before")
    input_perturbation: float = setting(
        0.0, "extra noise in the input, not in the target (Ning et al. 2023)", within=NOT_NEGATIVE
    )


@dataclass(frozen=True)
class TimestepSettings(Settings):
    """Which noise levels are trained."""

    timestep_min: int = setting(0, "first timestep that is trained", "T", within=NOT_NEGATIVE)
    timestep_max: int = setting(1000, "timesteps from this on are not trained", "T")
    timestep_power: float = setting(1.0, "more than 1 prefers clean timesteps, less than 1 noisy ones", within=POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timestep_min >= self.timestep_max:
            raise contradiction(f"timestep_min {self.timestep_min} is not below timestep_max {self.timestep_max}")

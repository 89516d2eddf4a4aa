"""What the models that people use most have in their `scheduler_config.json`, and what their networks say.

The numbers are facts about the models, as their cards and Diffusers' documentation give them. A config of an older
Diffusers lacks keys, and has some that its class does not know; so do these.
"""

from __future__ import annotations

import math
from typing import Any

from .known import SD, SVD, Known, edm, epsilon, flow, velocity, vp

COMMON = {**SD, "num_train_timesteps": 1000, "trained_betas": None}
STABLE = {**COMMON, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
XL = {**STABLE, "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
SOLVER = {
    "algorithm_type": "dpmsolver++", "dynamic_thresholding_ratio": 0.995, "euler_at_final": False,
    "lambda_min_clipped": -math.inf, "lower_order_final": True, "sample_max_value": 1.0, "solver_order": 2,
    "solver_type": "midpoint", "steps_offset": 0, "thresholding": False, "timestep_spacing": "linspace",
    "trained_betas": None, "use_karras_sigmas": False, "variance_type": None,
}  # fmt: skip
UNIPC = {
    **LINEAR, "disable_corrector": [], "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero",
    "lower_order_final": True, "predict_x0": True, "prediction_type": "flow_prediction", "sample_max_value": 1.0,
    "solver_order": 2, "solver_p": None, "solver_type": "bh2", "steps_offset": 0, "thresholding": False,
    "timestep_spacing": "linspace", "trained_betas": None, "use_flow_sigmas": True, "use_karras_sigmas": False,
}  # fmt: skip
LCM = {
    **COMMON, "clip_sample": False, "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0, "set_alpha_to_one": True, "steps_offset": 0, "thresholding": False,
    "timestep_scaling": 10.0, "timestep_spacing": "leading",
}  # fmt: skip
PIXELS = {
    "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000,
    "clip_sample": True, "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.95, "prediction_type": "epsilon",
    "sample_max_value": 1.5, "thresholding": True, "trained_betas": None, "variance_type": "learned_range",
}  # fmt: skip
EULER_FLOW = {"num_train_timesteps": 1000, "shift": 1.0}
RESOLUTION = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
DYNAMIC = {**EULER_FLOW, **RESOLUTION, "use_dynamic_shifting": True}


def on_betas(name: str, output: Any = epsilon, **config: Any) -> Known:
    return Known({"_class_name": name, **config}, output, None, vp)


def on_flow(mu: float | None = None, sign: float = 1.0, **config: Any) -> Known:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **config}
    return Known(config, flow(sign), lambda s: 1000 * s, lambda s: 1 - s, mu)


V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}


def at_zero_snr(x0: Any, eps: Any, sigma: float) -> Any:
    return 0 * eps - x0 if math.isinf(sigma) else velocity(x0, eps, sigma)


HUB: dict[str, Known] = {
    "Stable Diffusion 1.5": on_betas("PNDMScheduler", **STABLE),
    "Stable Diffusion 2.1": on_betas("DDIMScheduler", velocity, **STABLE, **V),
    "Stable Diffusion XL": on_betas("EulerDiscreteScheduler", **XL, timestep_spacing="leading"),
    "SDXL Turbo": on_betas("EulerAncestralDiscreteScheduler", **XL, timestep_spacing="trailing"),
    "SDXL Lightning": on_betas("EulerDiscreteScheduler", **XL, timestep_spacing="trailing"),
    "Hyper-SD": on_betas("TCDScheduler", **LCM),
    "LCM Dreamshaper": on_betas("LCMScheduler", **LCM),
    "Stable Diffusion 3": on_flow(**{**EULER_FLOW, "shift": 3.0}),
    "Flux dev": on_flow(1.15, **{**DYNAMIC, "shift": 3.0}),
    "Flux schnell": on_flow(**EULER_FLOW, **RESOLUTION, use_dynamic_shifting=False),
    "AuraFlow": on_flow(**{**EULER_FLOW, "shift": 1.73}),
    "Lumina 2": on_flow(**{**EULER_FLOW, "shift": 6.0}, **RESOLUTION, use_dynamic_shifting=False),
    "HunyuanVideo": on_flow(**{**EULER_FLOW, "shift": 7.0}),
    "Mochi": Known(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", **EULER_FLOW, "invert_sigmas": True},
        flow(-1.0), lambda s: 1000 * s, lambda s: s,
    ),
    "Qwen-Image": on_flow(
        0.7, **{**DYNAMIC, "max_shift": 0.9, "max_image_seq_len": 8192}, shift_terminal=0.02, invert_sigmas=False,
        stochastic_sampling=False, time_shift_type="exponential", use_beta_sigmas=False,
    ),
    "LTX-Video": on_flow(
        1.5, **{**DYNAMIC, "base_image_seq_len": 1024, "base_shift": 0.95, "max_shift": 2.05}, shift_terminal=0.1
    ),
    "Wan 2.1": Known(
        {"_class_name": "UniPCMultistepScheduler", **UNIPC, "flow_shift": 5.0},
        flow(), lambda s: 1000 * s, lambda s: 1 - s,
    ),
    "Sana": Known(
        {"_class_name": "DPMSolverMultistepScheduler", **LINEAR, **SOLVER, "final_sigmas_type": "zero",
         "flow_shift": 3.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
        flow(), lambda s: 1000 * s, lambda s: 1 - s,
    ),
    "CogVideoX 2B": on_betas(
        "CogVideoXDDIMScheduler", at_zero_snr, **COMMON, clip_sample=False, clip_sample_range=1.0,
        sample_max_value=1.0, set_alpha_to_one=True, snr_shift_scale=3.0, steps_offset=0, **ZERO_SNR,
    ),
    "CogVideoX 5B": on_betas(
        "CogVideoXDPMScheduler", at_zero_snr, **COMMON, clip_sample=False, set_alpha_to_one=True, snr_shift_scale=1.0,
        steps_offset=0, **ZERO_SNR,
    ),
    "Stable Video Diffusion": Known(
        {"_class_name": "EulerDiscreteScheduler", **STABLE, **SVD, "interpolation_type": "linear"},
        velocity, lambda s: 0.25 * math.log(s), vp,
    ),
    "PixArt-alpha": on_betas("DPMSolverMultistepScheduler", **LINEAR, **SOLVER, prediction_type="epsilon"),
    "HunyuanDiT": on_betas(
        "DDPMScheduler", velocity, **{**COMMON, "beta_end": 0.03}, clip_sample=False, steps_offset=1,
        variance_type="fixed_small", timestep_spacing="leading", **V,
    ),
    "DeepFloyd IF": on_betas("DDPMScheduler", **PIXELS),
    "Kandinsky 2.2": on_betas(
        "DDPMScheduler", **{**PIXELS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
    ),
    "Playground 2.5": Known(
        {"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "euler_at_final": False,
         "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero", "lower_order_final": True,
         "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0, "sample_max_value": 1.0,
         "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "solver_order": 2, "solver_type": "midpoint",
         "thresholding": False},
        edm(0.5, 1.0), lambda s: 0.25 * math.log(s), lambda s: 1 / math.sqrt(s**2 + 0.25),
    ),
}  # fmt: skip

SENT_AWAY = {
    "Stable Cascade": ({"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0}, "last timestep"),
    "aMUSEd": ({"_class_name": "AmusedScheduler", "mask_token_id": 8255, "masking_schedule": "cosine"}, "tokens"),
}
"""Models whose process no table can run, and what is said of it."""

"""What code written for Diffusers' schedulers finds under the names it knows, besides their options and `step`.

A scheduler here that has the name of one in Diffusers takes its constructor's arguments in its order, has its
attributes and methods, or says in a sentence why not: the inner state of a solver, which a table does not have.
`tests/schedulers/test_drop_in.py` compares them with the Diffusers that is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from .plan import Plan
from .position import Places
from .schedule import Levels, NoiseSchedule

_TRAINED = "num_train_timesteps beta_start beta_end beta_schedule trained_betas"
_THRESHOLD = "prediction_type thresholding dynamic_thresholding_ratio sample_max_value"
_GRIDS = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas"
_FLOW = "use_flow_sigmas flow_shift"
_DYNAMIC = "use_dynamic_shifting time_shift_type"
_K_DIFFUSION = f"{_TRAINED} {_GRIDS} prediction_type timestep_spacing steps_offset"
_CONSISTENCY = (
    f"{_TRAINED} original_inference_steps clip_sample clip_sample_range set_alpha_to_one steps_offset {_THRESHOLD} "
    "timestep_spacing timestep_scaling rescale_betas_zero_snr"
)
_CLIPPED = "thresholding dynamic_thresholding_ratio clip_sample_range sample_max_value timestep_spacing"

ORDERS = {
    "DDIMScheduler": f"{_TRAINED} clip_sample set_alpha_to_one steps_offset prediction_type {_CLIPPED} "
    "rescale_betas_zero_snr",
    "DDIMInverseScheduler": f"{_TRAINED} clip_sample set_alpha_to_one steps_offset prediction_type clip_sample_range "
    "timestep_spacing rescale_betas_zero_snr",
    "DDPMScheduler": f"{_TRAINED} variance_type clip_sample prediction_type {_CLIPPED} steps_offset "
    "rescale_betas_zero_snr",
    "DEISMultistepScheduler": f"{_TRAINED} solver_order {_THRESHOLD} algorithm_type solver_type lower_order_final "
    f"{_GRIDS} {_FLOW} timestep_spacing steps_offset {_DYNAMIC}",
    "DPMSolverMultistepScheduler": f"{_TRAINED} solver_order {_THRESHOLD} algorithm_type solver_type "
    f"lower_order_final euler_at_final {_GRIDS} use_lu_lambdas {_FLOW} final_sigmas_type lambda_min_clipped "
    f"variance_type timestep_spacing steps_offset rescale_betas_zero_snr {_DYNAMIC}",
    "DPMSolverMultistepInverseScheduler": f"{_TRAINED} solver_order {_THRESHOLD} algorithm_type solver_type "
    f"lower_order_final euler_at_final {_GRIDS} {_FLOW} lambda_min_clipped variance_type timestep_spacing steps_offset",
    "DPMSolverSDEScheduler": f"{_TRAINED} prediction_type {_GRIDS} noise_sampler_seed timestep_spacing steps_offset",
    "DPMSolverSinglestepScheduler": f"{_TRAINED} solver_order {_THRESHOLD} algorithm_type solver_type "
    f"lower_order_final {_GRIDS} {_FLOW} final_sigmas_type lambda_min_clipped variance_type {_DYNAMIC}",
    "EulerAncestralDiscreteScheduler": f"{_TRAINED} prediction_type timestep_spacing steps_offset "
    "rescale_betas_zero_snr",
    "EulerDiscreteScheduler": f"{_TRAINED} prediction_type interpolation_type {_GRIDS} sigma_min sigma_max "
    "timestep_spacing timestep_type steps_offset rescale_betas_zero_snr final_sigmas_type",
    "FlowMatchEulerDiscreteScheduler": "num_train_timesteps shift use_dynamic_shifting base_shift max_shift "
    f"base_image_seq_len max_image_seq_len invert_sigmas shift_terminal {_GRIDS} time_shift_type stochastic_sampling",
    "FlowMatchHeunDiscreteScheduler": "num_train_timesteps shift",
    "HeunDiscreteScheduler": f"{_TRAINED} prediction_type {_GRIDS} clip_sample clip_sample_range timestep_spacing "
    "steps_offset",
    "IPNDMScheduler": "num_train_timesteps trained_betas",
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION,
    "KDPM2DiscreteScheduler": _K_DIFFUSION,
    "LCMScheduler": _CONSISTENCY,
    "LMSDiscreteScheduler": _K_DIFFUSION,
    "PNDMScheduler": f"{_TRAINED} skip_prk_steps set_alpha_to_one prediction_type timestep_spacing steps_offset",
    "SASolverScheduler": f"{_TRAINED} predictor_order corrector_order prediction_type tau_func thresholding "
    f"dynamic_thresholding_ratio sample_max_value algorithm_type lower_order_final {_GRIDS} {_FLOW} "
    "lambda_min_clipped variance_type timestep_spacing steps_offset",
    "TCDScheduler": _CONSISTENCY,
    "UniPCMultistepScheduler": f"{_TRAINED} solver_order {_THRESHOLD} predict_x0 solver_type lower_order_final "
    f"disable_corrector solver_p {_GRIDS} {_FLOW} timestep_spacing steps_offset final_sigmas_type "
    f"rescale_betas_zero_snr {_DYNAMIC} sigma_min sigma_max shift_terminal",
}
"""The constructors' arguments of Diffusers' classes of these names, in their order; ours have more, by keyword only."""

_INNER = """
convert_model_output counter cur_model_output cur_sample custom_timesteps deis_first_order_update derivatives
dpm_solver_first_order_update dt ets get_coefficients_exponential_negative get_coefficients_exponential_positive
get_coefficients_fn get_lms_coefficient get_order_list get_scalings_for_boundary_condition_discrete
is_scale_input_called lagrange_polynomial_coefficient last_sample lower_order_nums mid_point_sigma model_outputs
multistep_deis_second_order_update multistep_deis_third_order_update multistep_dpm_solver_second_order_update
multistep_dpm_solver_third_order_update multistep_uni_c_bh_update multistep_uni_p_bh_update noise_sampler one order_list
pndm_order predict_x0 prev_derivative sample sigmas_down sigmas_interpol sigmas_up
singlestep_dpm_solver_second_order_update singlestep_dpm_solver_third_order_update singlestep_dpm_solver_update
state_in_first_order stochastic_adams_bashforth_update stochastic_adams_moulton_update stretch_shift_to_terminal
time_shift timestep_list
"""
INNER = frozenset(_INNER.split())
"""Public names in Diffusers' classes of what their solvers keep between steps, or do within one."""


class InnerNameError(InputError, AttributeError):
    """A name in Diffusers' schedulers that ours do not have, since a table has no such thing."""


class DropIn:
    """Mixin of schedulers: what is not about the run's progress; that is in `stepping.Stepping`."""

    config: Any
    schedule: NoiseSchedule

    if TYPE_CHECKING:
        _told: Any

        def register_to_config(self, **kwargs: Any) -> None: ...
        def _setup(self) -> None: ...
        def _some_plan(self) -> Plan | None: ...
        def _end(self) -> Levels: ...

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name not in INNER:
                raise
        raise InnerNameError(
            f"{type(self).__name__} has no {name!r}, which in Diffusers belongs to the inside of its solver; here a "
            "step is a row of table()"
        )

    # ---- places in the run -------------------------------------------------------------------------------------------

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: Sequence[float] | torch.Tensor | None = None
    ) -> int:
        """Which call of the run a timestep is that of; the next one where it is that of several.

        Args:
            timestep: a number or a tensor.
            schedule_timesteps: where to look; None for the run's own.

        Raises:
            InputError: there is no such timestep.
        """
        plan = self._some_plan()
        if schedule_timesteps is None and plan is not None:
            return plan.index_of(timestep)
        values = torch.as_tensor(schedule_timesteps)
        place = Places(values, values.tolist()).place(timestep)
        if place is None:
            raise InputError(f"timestep {timestep} is none of the {len(values)} given")
        return place

    def previous_timestep(self, timestep: float | torch.Tensor) -> torch.Tensor:
        """The timestep of the call after the one at `timestep`, and -1 after the last.

        Raises:
            InputError: the run has no such timestep.
        """
        plan = self._some_plan()
        assert plan is not None
        after = plan.index_of(timestep) + 1
        return plan.timesteps[after] if after < len(plan.values) else torch.full_like(plan.timesteps[0], -1)

    def set_shift(self, shift: float) -> None:
        """Set the shift of flow matching, for the runs that are announced from now on.

        Raises:
            InputError: another process, or a shift that is not positive.
        """
        if not self._told.flows:
            raise InputError(f"{type(self).__name__}: set_shift is for flow models")
        given: dict[str, Any] = {"shift": shift}
        type(self)(**given)  # refuses what is no shift
        self.register_to_config(shift=float(shift), flow_shift=float(shift))
        self._setup()

    # ---- the trained process -----------------------------------------------------------------------------------------

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """alpha^2 where runs end: 1 at a clean end."""
        return torch.tensor(float(self._end().alpha[0]) ** 2)

    @property
    def alpha_t(self) -> torch.Tensor:
        """alpha at the training timesteps, `(T,)` float32."""
        return torch.tensor(self.schedule.alpha, dtype=torch.float32)

    @property
    def sigma_t(self) -> torch.Tensor:
        """sigma at the training timesteps, `(T,)` float32."""
        return torch.tensor(self.schedule.sigma, dtype=torch.float32)

    @property
    def lambda_t(self) -> torch.Tensor:
        """log(alpha / sigma) at the training timesteps, `(T,)` float32."""
        return torch.tensor(self.schedule.lam, dtype=torch.float32)

    @property
    def log_sigmas(self) -> torch.Tensor:
        """log(sigma / alpha) at the training timesteps, `(T,)` float32."""
        return -self.lambda_t


class CountsTraining(DropIn):
    """Mixin of schedulers whose `set_timesteps` takes, in Diffusers, the number of trained timesteps."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
        sigmas: Sequence[float] | None = None,
        **more: Any,
    ) -> None:
        """As `TableScheduler.set_timesteps`, in Diffusers' order.

        Args:
            num_train_timesteps: what the config has, or None.

        Raises:
            InputError: as there, and for another number of trained timesteps, which belongs to the constructor.
        """
        trained = self.config["num_train_timesteps"]
        if num_train_timesteps not in (None, trained):
            raise InputError(
                f"{type(self).__name__}: set_timesteps(num_train_timesteps={num_train_timesteps!r}) differs from the "
                f"config's {trained}; make the scheduler with it"
            )
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **more)  # type: ignore[misc]

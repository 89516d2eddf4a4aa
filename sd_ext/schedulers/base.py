"""The base of every sampler's scheduler class: its options, where its steps fall, and its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..declared import Unbounded
from ..errors import InputError
from ..model_configs import GuardedConfig
from ..seams.diffusers.records import is_ours, let_be_found, record_as_ours, write_options
from . import guidance, placement, travel
from .fields import OptionFields
from .guidance import GuidanceSchedule
from .noise import BrownianNoise
from .plan import Plan
from .prediction import PREDICTION_TYPES, hook_from_config
from .run import Run
from .schedule import ZERO, Levels, NoiseSchedule
from .stepping import Stepping
from .table import Table


class TableScheduler(GuardedConfig, OptionFields, Stepping):
    """Base of every scheduler of this package. Subclasses name their options and return a `Table`; how a table is
    stepped through is told in `stepping.Stepping`.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the trained
            noise schedule, as in Diffusers; see `NoiseSchedule.from_config`.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        timestep_spacing: "linspace", "leading" or "trailing"; read when no other grid is chosen.
        steps_offset: added to "leading" timesteps.
        grid: name of a grid (see `list_grids`), before every Diffusers flag, and set as such a flag where Diffusers has
            the grid; None follows the flags.
        grid_options: options of the grid's own, such as {"rho": 5.0}; see docs/grids.md.
        discard_penultimate_sigma: place one more level and leave out the last before the end.
        final_sigmas_type: "zero" ends clean, "sigma_min" at the training's least noise.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: Diffusers' names for grids.
        sigma_min, sigma_max: ends of ratio grids (sigma / alpha); None takes the model's.
        use_flow_sigmas, flow_shift: flow matching, and its timestep shift.
        lambda_min_clipped: lambda below which no grid starts (-5.1 for cosine schedules, arXiv 2211.01095).
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of the x0 prediction.
        clip_sample, clip_sample_range: clipping of the x0 prediction.
        guidance_schedule: guidance that changes with the noise, as a factor of the guidance scale's distance from 1:
            "linear", "cosine", "interval", "interval LOW HIGH" or [low, high, factor] pieces in sigma / alpha; see
            `guidance.factors`. Not for samplers with CFG++.
        noise_type: "gaussian", drawn for each call, or "brownian", where one seed is one path of noise whatever the
            number of calls (see `noise.BrownianPath`; needs the extra `brownian`).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    grid: str | None = None
    grid_options: Mapping[str, float] | None = None
    discard_penultimate_sigma: bool = False
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min_clipped: Unbounded = -math.inf
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    guidance_schedule: GuidanceSchedule | None = None
    noise_type: str = "gaussian"

    weighs_unconditional: ClassVar[bool] = False
    """Whether its tables have two fields, so that a network must leave its unconditional predictions (`attach`)."""

    mild_guidance: ClassVar[bool] = False
    """Whether guidance of 1 to 2 does here what 5 to 12 does elsewhere."""

    _closed_grid: ClassVar[bool] = True
    _whole_linspace: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not is_ours(cls):
            let_be_found(cls, SchedulerMixin)
        elif cls._table is not TableScheduler._table:
            record_as_ours(cls)

    # ---- what a sampler is -------------------------------------------------------------------------------------------

    def _place(self, calls: int) -> Levels:
        """The levels of `calls` network calls and the end; multi-call samplers say where their stages fall."""
        return self._grid_levels(calls)

    def _table(self, levels: Levels, eta: float) -> Table:
        """The table for these levels, the first of which is where the run starts."""
        raise TypeError(f"{type(self).__name__} does not define a table")

    # ---- set-up ------------------------------------------------------------------------------------------------------

    def _setup(self) -> None:
        config = self.config
        self._choice("prediction_type", PREDICTION_TYPES)
        self._choice("final_sigmas_type", ("zero", "sigma_min"))
        self._choice("noise_type", ("gaussian", "brownian"))
        if config["lambda_min_clipped"] == math.inf:
            raise InputError(f"{type(self).__name__}: lambda_min_clipped must be a number or -inf, got inf")
        placement.check_grid_options(config)
        if config["guidance_schedule"] is not None:
            guidance.check(config["guidance_schedule"], config)
            if self.weighs_unconditional:
                raise InputError(f"{type(self).__name__} weighs the halves of guidance itself: no guidance_schedule")
        if names := travel.beside(config):
            write_options(self, names)
            config = self.config
        self.schedule: NoiseSchedule = NoiseSchedule.from_config(config)
        self._forget_runs()

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler of this class from a config; arguments and result as in Diffusers.

        What is passed goes before the config, in Diffusers' names of grids as well as in ours.
        """
        if isinstance(config, Mapping):
            kwargs = travel.newest(config, kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def to_json_string(self) -> str:
        """The config as JSON. Limits that are switched off are infinite, which JSON has no number for: they are left
        out, and are the default of every class that reads it.
        """
        return travel.strict(super().to_json_string(), self._options)

    def _compile(self, levels: Levels, begin: int, eta: float) -> Run:
        levels, prediction_type = levels[begin:], self.config["prediction_type"]
        if levels.alpha[0] == 0 and prediction_type == "epsilon":
            raise InputError(
                "a model with prediction_type 'epsilon' cannot start at zero terminal SNR (alpha = 0), where epsilon "
                "says nothing about the picture; use timestep_spacing='leading' or rescale_betas_zero_snr=False"
            )
        table, changes = self._table(levels, eta), self.config["guidance_schedule"]
        if changes is not None:
            table = guidance.reweighed(table, guidance.factors(changes, levels, len(self)))
        return Run(table, prediction_type, hook_from_config(self.config), begin)

    @property
    def needs_halves(self) -> bool:
        """Whether a network must leave both halves of its guided predictions for it (`attach`)."""
        return self.weighs_unconditional or self.config["guidance_schedule"] is not None

    def _trained(self) -> Levels:
        t = np.arange(self.schedule.t_max, int(self.schedule.flow) - 1, -1.0)
        return self._explicit_stages(placement.from_timesteps(self.schedule, t, self._end()))

    def _between(self, plan: Plan, timestep: float, eta: float) -> Run:
        level = self.schedule.at([min(max(timestep, 0.0), self.schedule.t_max)])
        if level.t[0] != timestep or not level.sigma[0]:
            return super()._between(plan, timestep, eta)
        after = next((i for i, value in enumerate(plan.values) if value < timestep), len(plan.values))
        run = self._compile(placement.from_there(level, plan.levels[after:]), 0, eta)
        for each in filter(None, (run, run.companion)):
            each.begin, each.between = after - 1, True
        return run

    def _choice(self, name: str, allowed: tuple[Any, ...]) -> None:
        if self.config[name] not in allowed:
            raise InputError(f"{type(self).__name__}: {name} must be one of {allowed}, got {self.config[name]!r}")

    def _choice_or_default(self, name: str, allowed: tuple[Any, ...], foreign: tuple[Any, ...]) -> None:
        """A choice for which values that other Diffusers schedulers have under this name mean the default."""
        if self.config[name] in foreign:
            self.register_to_config(**{name: self._options[name]})
        self._choice(name, allowed)

    def _within(self, name: str, low: float, high: float) -> None:
        if not low <= self.config[name] <= high:
            raise InputError(f"{type(self).__name__}: {name} must be {low} to {high}, got {self.config[name]!r}")

    def _end(self) -> Levels:
        return ZERO if self.config["final_sigmas_type"] == "zero" else self.schedule.at([0.0])

    def _grid_levels(self, n: int, grid: str | None = None) -> Levels:
        """`n` levels of the configured grid, or of another one, and the end."""
        config = self.config if grid is None else {**self.config, "grid": grid}
        return placement.grid_levels(
            self.schedule, config, n, self._end(), closed=self._closed_grid, whole=self._whole_linspace
        )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Announce a run, by one of a number of network calls, timesteps, or sigmas.

        Args:
            num_inference_steps: network evaluations, 1 to `num_train_timesteps`; beside timesteps or sigmas, what
                their number must be.
            device: where `timesteps` shall be.
            timesteps: levels of the solver steps, falling, within [0, T - 1]; fractional ones are allowed.
            sigmas: sigma / alpha of the solver steps, falling; a last 0 is the end and makes no call.

        Raises:
            InputError: none or several given, or values that cannot be stepped through. What was set before stays.
        """
        both, none = timesteps is not None and sigmas is not None, timesteps is None and sigmas is None
        if both or (none and num_inference_steps is None):
            raise InputError("pass exactly one of num_inference_steps, timesteps and sigmas")
        if num_inference_steps is not None:
            self._check_count(num_inference_steps)
        if timesteps is not None:
            levels = placement.from_timesteps(self.schedule, timesteps, self._end())
        elif sigmas is not None:
            levels = placement.from_sigmas(self.schedule, sigmas, self._end())
        else:
            return self.announce(self._place(int(num_inference_steps)), device)  # type: ignore[arg-type]
        if num_inference_steps not in (None, len(levels) - 1):
            name = "sigmas" if timesteps is None else "timesteps"
            raise InputError(
                f"{name} must be {num_inference_steps} numbers (num_inference_steps), got {len(levels) - 1}"
            )
        self.announce(self._explicit_stages(levels), device)

    def _check_count(self, num_inference_steps: Any) -> None:
        most = self.config["num_train_timesteps"]
        if isinstance(num_inference_steps, bool) or int(num_inference_steps) != num_inference_steps:
            raise InputError(f"num_inference_steps must be a whole number, got {num_inference_steps!r}")
        if not 1 <= num_inference_steps <= most:
            raise InputError(
                f"num_inference_steps must be 1 to {most} (num_train_timesteps), got {num_inference_steps}"
            )

    def _explicit_stages(self, levels: Levels) -> Levels:
        """Multi-call samplers mark their stages on levels that the caller chose."""
        return levels

    def export(self, folder: str | Path, num_inference_steps: int | Iterable[int] | None = range(1, 51)) -> Path:
        """Write a component folder that runs this sampler with Diffusers only; see `export.export`."""
        from .export import export  # few need it

        return export(self, folder, num_inference_steps)

    def table(self, begin_index: int = 0, eta: float = 0.0) -> Table:
        """The table the announced run would execute from `begin_index` on."""
        return self._compile(self._announced("table()").levels, begin_index, eta).table

    def companion(self, begin_index: int = 0) -> Table | None:
        """The table of one field that stands in for that of two where no unconditional predictions are left, if any."""
        run = self._compile(self._announced("companion()").levels, begin_index, 0.0).companion
        return run and run.table

    def _draw(
        self, x: torch.Tensor, run: Run, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        if self.config["noise_type"] == "brownian":
            run.path = run.path or BrownianNoise(run.table.levels, x.shape, generator)
            return run.path.draw(run.position).to(x)
        return super()._draw(x, run, generator)

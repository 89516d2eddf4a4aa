"""The base of every sampler's scheduler class: its options, its process and its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..declared import Unbounded
from ..errors import InputError, UnknownNameError
from ..model_configs import GuardedConfig
from ..seams.diffusers.records import is_ours, let_be_found, record_as_ours, write_options
from . import guidance, placement, travel
from .drop_in import ORDERS, DropIn
from .fields import OptionFields, as_list
from .guidance import GuidanceSchedule
from .noise import BrownianNoise
from .placing import Placing
from .plan import Plan
from .prediction import PREDICTION_TYPES, hook_from_config
from .processes import angle, betas, continuous, edm, flow, reading  # noqa: F401  each says which configs it is
from .processes.reading import ProcessOptions as Process
from .run import Run
from .schedule import Levels, NoiseSchedule
from .table import Table


class TableScheduler(DropIn, GuardedConfig, OptionFields, Placing):
    """Base of every scheduler of this package. Subclasses name their options and return a `Table`; where its
    steps fall is told in `placing.Placing`, and how a table is stepped through in `stepping.Stepping`.

    Args:
        process: which of `processes` the model was trained on; None reads it from the other options: flow matching
            where `prediction_type` or `use_flow_sigmas` says so, else betas.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: betas, as in
            Diffusers; see `processes.betas`.
        snr_shift_scale: what the SNR is divided by (CogVideoX).
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction"; with EDM's preconditioning the first
            or the third, which differ by their sign.
        timestep_type: "continuous" tells a network of v-prediction a quarter of log sigma.
        timestep_spacing: "linspace", "leading" or "trailing"; read when no other grid is chosen.
        steps_offset: added to "leading" timesteps.
        grid: name of a grid (see `list_grids`), before every Diffusers flag, and set as such a flag where Diffusers has
            the grid; None follows the flags.
        grid_options: options of the grid's own, such as {"rho": 5.0}; see docs/grids.md.
        discard_penultimate_sigma: place one more level and leave out the last before the end.
        final_sigmas_type: "zero" ends clean, "sigma_min" at the training's least noise, or at `sigma_min` if that is
            below.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: Diffusers' names for grids.
        sigma_min, sigma_max: ends of ratio grids (sigma / alpha), and of EDM's process; None takes the model's.
        sigma_data, sigma_schedule, rho: EDM's preconditioning and its steps; see `processes.edm`.
        use_flow_sigmas: flow matching, with steps that stop short of 0 as those of Diffusers' solvers.
        shift, flow_shift: the shift of flow matching, by both names it has in Diffusers; see `processes.flow`.
        use_dynamic_shifting: take the shift from `set_timesteps(mu=...)`, which pipelines compute from the picture's
            size by `base_shift`, `max_shift`, `base_image_seq_len` and `max_image_seq_len`.
        time_shift_type: "exponential", that shift is e^mu, or "linear", it is mu.
        shift_terminal: stretch a flow's sigmas so that the last is this.
        invert_sigmas: the network is told 1 - sigma and predicts the velocity towards the picture (Mochi).
        lambda_min_clipped: lambda below which no grid starts (-5.1 for cosine schedules, arXiv 2211.01095).
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of the x0 prediction.
        clip_sample, clip_sample_range: clipping of the x0 prediction.
        guidance_schedule: guidance that changes with the noise, as a factor of the guidance scale's distance from 1:
            "linear", "cosine", "interval", "interval LOW HIGH" or [low, high, factor] pieces in sigma / alpha; see
            `guidance.factors`. Not for samplers with CFG++.
        noise_type: "gaussian", drawn for each call, or "brownian", where one seed is one path of noise whatever the
            number of calls (see `noise.BrownianPath`; needs the extra `brownian`).
    """

    process: str | None = Process.process
    num_train_timesteps: int = Process.num_train_timesteps
    beta_start: float = Process.beta_start
    beta_end: float = Process.beta_end
    beta_schedule: str = Process.beta_schedule
    trained_betas: Sequence[float] | None = Process.trained_betas
    prediction_type: str = Process.prediction_type
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool | None = Process.rescale_betas_zero_snr
    grid: str | None = None
    grid_options: Mapping[str, float] | None = None
    discard_penultimate_sigma: bool = False
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool | None = Process.use_flow_sigmas
    flow_shift: float = Process.flow_shift
    shift: float = Process.shift
    use_dynamic_shifting: bool | None = Process.use_dynamic_shifting
    base_shift: float | None = Process.base_shift
    max_shift: float | None = Process.max_shift
    base_image_seq_len: int = Process.base_image_seq_len
    max_image_seq_len: int = Process.max_image_seq_len
    time_shift_type: str = Process.time_shift_type
    shift_terminal: float | None = Process.shift_terminal
    invert_sigmas: bool = Process.invert_sigmas
    snr_shift_scale: float | None = Process.snr_shift_scale
    timestep_type: str = Process.timestep_type
    sigma_data: float | None = Process.sigma_data
    sigma_schedule: str | None = Process.sigma_schedule
    rho: float = Process.rho
    sigma_min: float | None = Process.sigma_min
    sigma_max: float | None = Process.sigma_max
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

    _flow_flag: ClassVar[bool | None] = None
    """What `use_flow_sigmas` must be for Diffusers' class of this name to run a flow model; None if it has no say."""
    _ranges: ClassVar[tuple[tuple[str, float, float], ...]] = ()
    """Options of a class's own with their least and greatest value."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not is_ours(cls):
            let_be_found(cls, SchedulerMixin)
        elif cls._table is not TableScheduler._table:
            record_as_ours(cls)

    @classmethod
    def _positional(cls) -> Sequence[str]:
        return ORDERS.get(cls.__name__, "").split() if is_ours(cls) else ()

    # ---- what a sampler is -------------------------------------------------------------------------------------------

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
        for cls in type(self).__mro__:
            for own in vars(cls).get("_ranges", ()):
                self._within(*own)
        travel.check_flags(config)
        placement.check_grid_options(config)
        if config["guidance_schedule"] is not None:
            guidance.check(config["guidance_schedule"], config)
            if self.weighs_unconditional:
                raise InputError(f"{type(self).__name__} weighs the halves of guidance itself: no guidance_schedule")
        self._told = self._read_process()
        if names := travel.beside(config) | self._in_diffusers_words():
            write_options(self, names)
            self._told = self._read_process()
        self.schedule: NoiseSchedule = NoiseSchedule.kinds[self._told.kind].of(self._told)
        self._forget_runs()

    def _read_process(self) -> Process:
        try:
            return Process(**{name: self.config[name] for name in reading.NAMES})
        except UnknownNameError:
            raise
        except InputError as problem:
            raise InputError(f"{type(self).__name__}: {problem}") from None

    def _in_diffusers_words(self) -> dict[str, Any]:
        """What to write beside what the config says of the process, for plain Diffusers' class of the same name."""
        told, words = self._told, dict[str, Any]()
        if told.flows:
            words = {"shift": told.fixed_shift, "flow_shift": told.fixed_shift}
            if told.prediction_type == "flow_prediction" and self._flow_flag is not None:
                words["use_flow_sigmas"] = self._flow_flag
        elif told.snr_shift_scale not in (None, 1):
            words = {"trained_betas": betas.folded(told), "snr_shift_scale": 1.0}
        return {name: value for name, value in words.items() if self.config[name] != value}

    @property
    def _process(self) -> NoiseSchedule:
        return self.schedule.trained

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler of this class from a config; arguments and result as in Diffusers.

        What is passed goes before the config, in Diffusers' names of grids as well as in ours. Diffusers leaves out
        what has the default of the config's class; what is about the process is always taken over.

        Raises:
            InputError: a config whose process samplers of tables cannot run, or that does not say it.
        """
        if isinstance(config, dict):
            config = type(config)({name: as_list(value) for name, value in config.items()})
            unsaid = travel.unbounded(cls._options, config) | travel.unsaid(cls, config)
            kwargs = unsaid | travel.newest(config, kwargs)
            kwargs |= _not_there(reading.read(config, kwargs), config, cls._options)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def to_json_string(self) -> str:
        """The config as JSON. Limits that are switched off are infinite, which JSON has no number for: they are left
        out, and are the default of every class that reads it.
        """
        return travel.strict(super().to_json_string(), self._options)

    def _table_from(self, levels: Levels, begin: int, eta: float) -> Table:
        """The table from a call on of a run on these levels; by default that of a run of its own."""
        return self._table(levels[begin:], eta)

    def _compile(self, levels: Levels, begin: int, eta: float) -> Run:
        whole, levels, prediction = levels, levels[begin:], self.schedule.prediction
        if levels.alpha[0] == 0 and prediction.kind == "epsilon":
            raise InputError(
                "a model with prediction_type 'epsilon' cannot start at zero terminal SNR (alpha = 0), where epsilon "
                "says nothing about the picture; use timestep_spacing='leading' or rescale_betas_zero_snr=False"
            )
        table, changes = self._table_from(whole, begin, eta), self.config["guidance_schedule"]
        if changes is not None:
            table = guidance.reweighed(table, guidance.factors(changes, levels, self.schedule))
        return Run(table, prediction, hook_from_config(self.config), begin)

    @property
    def needs_halves(self) -> bool:
        """Whether a network must leave both halves of its guided predictions for it (`attach`)."""
        return self.weighs_unconditional or self.config["guidance_schedule"] is not None

    def _between(self, plan: Plan, timestep: float, eta: float) -> Run:
        least, most = placement.told_range(self.schedule)
        if not least <= timestep <= most:
            return super()._between(plan, timestep, eta)
        level = self.schedule.at_told([timestep])
        if not level.sigma[0]:
            return super()._between(plan, timestep, eta)
        below = plan.levels.ratio[:-1] < level.ratio[0]
        after = int(np.argmax(below)) if below.any() else len(plan.values)
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


def _not_there(told: Mapping[str, Any], config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What was read from a config, without defaults that a class takes anyway where the config says nothing else."""
    silent = config.get("_use_default_values", ())
    return {
        name: value
        for name, value in told.items()
        if name not in options or value != options[name] or (name not in silent and config.get(name, value) != value)
    }

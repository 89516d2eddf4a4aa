"""The one scheduler class: compiles a table for a run, executes it, and speaks Diffusers' scheduler interface."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..errors import InputError
from . import placement
from .fields import OptionFields
from .forward import ForwardProcess
from .noise import BrownianNoise
from .plan import Plan, Runs, StepOutput
from .prediction import PREDICTION_TYPES, hook_from_config
from .run import Run
from .schedule import ZERO, Levels, NoiseSchedule
from .table import Table


class TableScheduler(OptionFields, ForwardProcess, SchedulerMixin, ConfigMixin):
    """Base of every scheduler of this package. Subclasses name their options and return a `Table`.

    One network evaluation is one timestep: `num_inference_steps`, `len(timesteps)` and the number of `step()` calls are
    the same number for every sampler, and `order` is 1. The latent is always in the model's own scale, x = alpha x0
    + sigma eps, so `scale_model_input` does nothing and `init_noise_sigma` is 1 (or sigma at the start for the Euler
    family).

    One object may serve many threads: a run belongs to the thread that called `set_timesteps`.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the trained
            noise schedule, as in Diffusers; see `NoiseSchedule.from_config`.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        timestep_spacing: "linspace", "leading" or "trailing"; read when no other grid is chosen.
        steps_offset: added to "leading" timesteps.
        grid: name of a grid (see `list_grids`), before every Diffusers flag; None follows the flags.
        grid_options: options of the grid's own, such as {"rho": 5.0}; see docs/grids.md.
        discard_penultimate_sigma: place one more level and leave out the last before the end.
        final_sigmas_type: "zero" ends clean, "sigma_min" at the training's least noise.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: Diffusers' names for grids.
        sigma_min, sigma_max: ends of ratio grids (sigma / alpha); None takes the model's.
        use_flow_sigmas, flow_shift: flow matching, and its timestep shift.
        lambda_min_clipped: lambda below which no grid starts (-5.1 for cosine schedules, arXiv 2211.01095).
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of the x0 prediction.
        clip_sample, clip_sample_range: clipping of the x0 prediction.
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
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min_clipped: float = -math.inf
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    noise_type: str = "gaussian"

    order: ClassVar[int] = 1
    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    _closed_grid: ClassVar[bool] = True
    _whole_linspace: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("sd_ext."):
            # Saved pipelines record this module; the short name stays right wherever the file moves.
            cls.__module__ = "sd_ext"

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
        placement.check_grid_options(config)
        self.schedule = NoiseSchedule.from_config(config)
        self._own = Runs()
        self._latest: Plan | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TableScheduler:
        """The scheduler in the middle of its run; a pickle leaves the run behind."""
        other = type(self).__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_own", "_latest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own, self._latest = Runs(), None

    @property
    def _plan(self) -> Plan | None:
        """This thread's run, or the last one announced if this thread has none."""
        return self._own.plan or self._latest

    def _announce(self, levels: Levels, device: str | torch.device | None) -> None:
        plan = Plan(levels, device)
        plan.ready = self._compile(levels, 0, 0.0)
        self._own.plan = self._latest = plan
        self._own.copied = False

    def _compile(self, levels: Levels, begin: int, eta: float) -> Run:
        """A run of these levels from call `begin` on."""
        levels, prediction_type = levels[begin:], self.config["prediction_type"]
        if levels.alpha[0] == 0 and prediction_type == "epsilon":
            raise InputError(
                "a model with prediction_type 'epsilon' cannot start at zero terminal SNR (alpha = 0), where epsilon "
                "says nothing about the picture; use timestep_spacing='leading' or rescale_betas_zero_snr=False"
            )
        return Run(self._table(levels, eta), prediction_type, hook_from_config(self.config), begin)

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
            return self._announce(self._place(int(num_inference_steps)), device)  # type: ignore[arg-type]
        if num_inference_steps not in (None, len(levels) - 1):
            name = "sigmas" if timesteps is None else "timesteps"
            raise InputError(
                f"{name} must be {num_inference_steps} numbers (num_inference_steps), got {len(levels) - 1}"
            )
        self._announce(self._explicit_stages(levels), device)

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
        from .export import export  # it needs this class

        return export(self, folder, num_inference_steps)

    # ---- position ----------------------------------------------------------------------------------------------------

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the announced run at this call (img2img, inpainting, refiners); its table is made for that start.

        The number of calls itself leaves none to make, as for a refiner that is handed a finished picture.
        """
        plan = self._announced("set_begin_index")
        if not 0 <= begin_index <= len(plan.values):
            raise InputError(f"begin_index must be 0 to {len(plan.values)}, got {begin_index}")
        if begin_index < len(plan.values) and (plan.ready is None or plan.ready.begin != begin_index):
            plan.ready = self._compile(plan.levels, begin_index, 0.0)
        plan.begin, plan.run = begin_index, None

    def _announced(self, caller: str) -> Plan:
        if self._plan is None:
            raise InputError(f"{caller}() needs a run: call set_timesteps() first")
        return self._plan

    def table(self, begin_index: int = 0, eta: float = 0.0) -> Table:
        """The table the announced run would execute from `begin_index` on."""
        return self._compile(self._announced("table").levels, begin_index, eta).table

    @property
    def timesteps(self) -> torch.Tensor:
        """Timesteps of the announced run's calls, `(calls,)`; before any, T - 1 ... 0."""
        plan = self._plan
        return plan.timesteps if plan else torch.arange(self.config["num_train_timesteps"] - 1, -1, -1)

    @property
    def sigmas(self) -> torch.Tensor:
        """sigma / alpha of the announced run's calls and end, `(calls + 1,)` float32."""
        levels = (
            self._plan.levels if self._plan else self.schedule.at(np.arange(self.schedule.t_max, -1, -1)).then(ZERO)
        )
        return torch.tensor(levels.ratio, dtype=torch.float32)

    @property
    def num_inference_steps(self) -> int | None:
        return len(self._plan.values) if self._plan else None

    @property
    def begin_index(self) -> int | None:
        return self._plan.begin if self._plan else None

    @property
    def step_index(self) -> int | None:
        """Index of the call that comes next; None before the first."""
        run = self._plan.run if self._plan else None
        return run.begin + run.position if run else None

    @property
    def init_noise_sigma(self) -> float:
        """What pipelines scale the initial N(0, I) by."""
        return 1.0

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    # ---- the step ----------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The sample as it is: latents are in the model's scale."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor]:
        """One network call's worth of sampling.

        Args:
            model_output: the network's output for `sample`, `(batch, channels, ...)`.
            timestep: looked up only at a start nobody announced; afterwards the position is a counter.
            sample: the latent, same shape. Half precision is computed in float32.
            generator: one, or one per sample, which makes each sample's noise independent of its batch.
            variance_noise: N(0, I) to use in place of a draw.
            return_dict: whether to return `StepOutput` or `(prev_sample,)`.

        Raises:
            InputError: no run announced, the run is over, or shapes that do not fit. The run stays where it was.
        """
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict)

    def _step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        variance_noise: torch.Tensor | None,
        return_dict: bool,
        eta: float = 0.0,
    ) -> StepOutput | tuple[torch.Tensor]:
        if self._own.copied:
            self._own = self._own.unshared()
        plan = self._own.plan or self._announced("step")
        run = plan.run or self._start(plan, timestep, eta)
        if run is None or run.position == len(run.calls):
            raise InputError(f"this run's {len(plan.values)} calls are made; call set_timesteps() to begin another")
        x, m, extra = sample, model_output, None
        if m.shape != x.shape:
            m, extra = self._split(m, x)
        if x.dtype is not torch.float32 or m.dtype is not torch.float32:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            x, m = x.to(dtype), m.to(dtype)
        call = run.calls[run.position]
        noise = self._noise(x, extra, run, generator, variance_noise) if call.noisy else None
        previous = run.advance(x, m, noise)
        if previous.dtype is not sample.dtype:
            previous = previous.to(sample.dtype)
        if not return_dict:
            return (previous,)
        output = StepOutput(prev_sample=previous)
        output._run, output._call, output._inputs = run, call, (x, m, sample.dtype)
        return output

    def _start(self, plan: Plan, timestep: float | torch.Tensor, eta: float) -> Run | None:
        """The run of this plan, or None if it is announced to begin after its last call."""
        begin = plan.begin if plan.begin is not None else plan.index_of(timestep)
        if begin == len(plan.values):
            return None
        ready = plan.ready if plan.ready is not None and plan.ready.begin == begin and not eta else None
        plan.ready, plan.run = None, ready or self._compile(plan.levels, begin, eta)
        return plan.run

    def _split(self, m: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and the variance that networks with twice the channels give besides."""
        if m.dim() != x.dim() or x.dim() < 2 or m.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise InputError(f"model_output {tuple(m.shape)} and sample {tuple(x.shape)} differ in shape")
        prediction, variance = m.split(x.shape[1], dim=1)
        return prediction, variance

    def _noise(
        self,
        x: torch.Tensor,
        extra: torch.Tensor | None,
        run: Run,
        generator: torch.Generator | list[torch.Generator] | None,
        variance_noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """N(0, I) for this call, drawn in float32 whatever the dtype: one seed is one picture in every precision."""
        if variance_noise is not None:
            if variance_noise.shape != x.shape:
                raise InputError(
                    f"variance_noise must be {tuple(x.shape)} as sample, got {tuple(variance_noise.shape)}"
                )
            return variance_noise.to(device=x.device, dtype=x.dtype)
        if isinstance(generator, list) and len(generator) not in (1, len(x)):
            raise InputError(
                f"generator must be one or a list of {len(x)} (the batch size), got a list of {len(generator)}"
            )
        if self.config["noise_type"] == "brownian":
            run.path = run.path or BrownianNoise(run.table.levels, x.shape, generator)
            return run.path.draw(run.position).to(x)
        return randn_tensor(x.shape, generator, x.device, torch.float32).to(x.dtype)

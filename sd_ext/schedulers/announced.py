"""The runs that a Diffusers scheduler announces: one a thread, its timesteps and levels, and noise to begin it with."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin

from ..attaching import renew
from ..errors import InputError
from .forward import ForwardProcess
from .plan import Plan, Runs
from .run import Call, Run

log = logging.getLogger(__name__)


class Announced(ForwardProcess, SchedulerMixin, ConfigMixin):
    """A scheduler up to its steps, which `stepping.Stepping` makes.

    One network evaluation is one timestep: `num_inference_steps`, `len(timesteps)` and the number of `step()` calls are
    the same number for every sampler, and `order` is 1. One object may serve many threads: a run belongs to the thread
    that announced it.
    """

    order: ClassVar[int] = 1
    # With these a config keeps the keys of Diffusers' schedulers, so that another one can be made from it.
    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]

    def _compile(self, levels: Any, begin: int, eta: float) -> Run:
        """A run of these levels from call `begin` on, for `step(eta=...)`."""
        raise NotImplementedError

    def say_once(self, message: str) -> None:
        """Log a warning, once for each scheduler."""
        said: set[str] = self.__dict__.setdefault("_said", set())
        if message not in said:
            said.add(message)
            log.warning("%s: %s", type(self).__name__, message)

    # ---- copies ------------------------------------------------------------------------------------------------------

    def _forget_runs(self) -> None:
        self._own, self._latest = Runs(), None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The scheduler in the middle of its run; a pickle leaves the run behind."""
        other = type(self).__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_own", "_latest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_runs()

    # ---- the run -----------------------------------------------------------------------------------------------------

    def announce(self, levels: Any, device: str | torch.device | None = None) -> None:
        """Make these the levels of the run that the next `step` begins; `set_timesteps` does it for a number of calls.

        Args:
            levels: of every call, and the end.
            device: where `timesteps` shall be.

        Raises:
            InputError: levels that this sampler cannot step through. What was announced before stays.
        """
        plan = Plan(levels, device, counted=self._counted)
        plan.ready = self._compile(levels, 0, 0.0)
        if plan.ready.table.fields == 2:
            renew()
        self._own.plan = self._latest = plan
        self._own.copied = False

    @property
    def _counted(self) -> bool:
        """Whether timesteps count what the model was trained at, and are whole numbers where they can be."""
        return not self._process.flow and self._process.told_at_training is None

    @property
    def _plan(self) -> Plan | None:
        """This thread's run, or the last one announced if this thread has none, or the one that is implied."""
        own = self._own.plan
        return own if own and not own.implied else self._latest or own

    def _announced(self, caller: str) -> Plan:
        """The run that was announced.

        Raises:
            InputError: there is none.
        """
        plan = self._plan
        if plan is None or plan.implied:
            raise InputError(f"{caller} needs a run: call set_timesteps() first")
        return plan

    def _some_plan(self) -> Plan | None:
        """The run that was announced or, before any, the one through all trained timesteps."""
        if self._plan is None and (levels := self._trained()) is not None:
            self._own.plan, self._own.copied = Plan(levels, implied=True, counted=self._counted), False
        return self._plan

    def _trained(self) -> Any:
        """The levels of a run through all trained timesteps, or None where there are no tables for it."""
        return None

    @property
    def levels(self) -> Any:
        """The noise levels of the announced run's calls, and the end.

        Raises:
            InputError: no run is announced.
        """
        return self._announced("levels").levels

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the announced run at this call (img2img, inpainting, refiners); its table is made for that start.

        Args:
            begin_index: the call, from 0. The number of calls itself leaves none to make, as for a refiner that is
                handed a finished picture.

        Raises:
            InputError: no run is announced, or it has no such call.
        """
        plan = self._some_plan() or self._announced("set_begin_index()")
        if not 0 <= begin_index <= len(plan.values):
            raise InputError(f"begin_index must be 0 to {len(plan.values)}, got {begin_index}")
        if begin_index == len(plan.values):
            plan.ready = None
        elif plan.ready is None or plan.ready.begin != begin_index:
            plan.ready = self._compile(plan.levels, begin_index, 0.0)
        plan.begin, plan.run = begin_index, None

    @property
    def timesteps(self) -> torch.Tensor:
        """Timesteps of the announced run's calls, `(calls,)`; before any, of a run through all trained timesteps."""
        plan = self._some_plan()
        return plan.timesteps if plan else torch.arange(self.config["num_train_timesteps"] - 1, -1, -1)

    @property
    def sigmas(self) -> torch.Tensor:
        """sigma / alpha of the announced run's calls and end, or for flow matching its own sigma, `(calls + 1,)`
        float32; before any run, of every trained timestep.
        """
        if plan := self._some_plan():
            return torch.tensor(self._shown(plan.levels.ratio), dtype=torch.float32)
        trained = zip(self._process.alpha, self._process.sigma, strict=True)
        ratios = [float(sigma / alpha) if alpha else math.inf for alpha, sigma in trained]
        end = [] if self._process.flow else [0.0]  # flow's time 0 is the end
        return torch.tensor(self._shown([*ratios[::-1], *end]), dtype=torch.float32)

    def _shown(self, ratios: Any) -> list[float]:
        """sigma / alpha, as `sigmas` shows it: for flow matching its own sigma, or 1 - sigma where the network is told
        that.
        """
        if not self._process.flow:
            return [float(ratio) for ratio in ratios]
        told = self._process.told_at_training
        upwards = told is not None and told[0] > told[-1]
        sigmas = [1.0 if math.isinf(ratio) else float(ratio) / (1 + float(ratio)) for ratio in ratios]
        return [1 - sigma for sigma in sigmas] if upwards else sigmas

    @property
    def num_inference_steps(self) -> int | None:
        """Network calls of the announced run, or None."""
        plan = self._plan
        return len(plan.values) if plan and not plan.implied else None

    @property
    def begin_index(self) -> int | None:
        """The call that `set_begin_index` named, or None."""
        return self._plan.begin if self._plan else None

    @property
    def step_index(self) -> int | None:
        """Index of the call that comes next; None before the first."""
        return self._plan.due if self._plan and self._plan.run else None

    @property
    def init_noise_sigma(self) -> float | torch.Tensor:
        """What pipelines scale the initial N(0, I) by, a tensor where Diffusers' class of the name has one."""
        return 1.0

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """alpha sample + sigma noise at a call of the announced run, for image-to-image and inpainting with flow
        models.

        Args:
            sample: x0, `(batch, ...)`.
            timestep: of the announced run, `(batch,)` or one: its own level is taken, whatever the network is told.
                Before any run, as for `add_noise`.
            noise: same shape.

        Raises:
            InputError: a timestep that the run does not have.
        """
        times = torch.as_tensor(timestep, device="cpu").reshape(-1)
        plan = self._plan
        if plan is None or plan.implied:
            return self.add_noise(sample, noise, times)
        at = [plan.begin] if plan.begin is not None and plan.run is None else [plan.index_of(float(t)) for t in times]
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        shape = (-1, *[1] * (sample.dim() - 1))
        alpha, sigma = (
            torch.tensor([float(v[i]) for i in at], dtype=dtype).to(sample.device).reshape(shape)
            for v in (plan.levels.alpha, plan.levels.sigma)
        )
        return (alpha * sample + sigma * noise).to(sample.dtype)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha x0 + sigma noise, at any timesteps, also before set_timesteps; see `ForwardProcess.add_noise`.

        Fitted samplers may tell the network another timestep than that of the latent's noise. At a timestep of such a
        run, alpha and sigma are the latent's, so that it can begin there (image to image) or be pasted in (inpainting).
        """
        call = self._call_at(timesteps)
        if call is None:
            return super().add_noise(original_samples, noise, timesteps)
        wide = torch.promote_types(original_samples.dtype, torch.float32)
        return (call.alpha * original_samples.to(wide) + call.sigma * noise).to(original_samples.dtype)

    def _call_at(self, timesteps: torch.Tensor) -> Call | None:
        """The call of the announced run that a timestep belongs to, if its level may be apart from that of the model's
        schedule there; None at others, or at several at once.
        """
        plan = self._plan
        run = plan and (plan.run or plan.ready)
        if plan is None or run is None or not getattr(plan.levels, "apart", False):
            return None
        told = set(torch.as_tensor(timesteps).reshape(-1).tolist())
        value = told.pop() if len(told) == 1 else math.nan
        places = [i - run.begin for i, each in enumerate(plan.values) if abs(each - value) < 1e-3]
        return run.calls[places[0]] if places and places[0] >= 0 else None

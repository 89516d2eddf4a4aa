"""Where the steps of a table scheduler fall: what `set_timesteps` is told, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import InputError
from . import asking, placement
from .processes import flow
from .processes.reading import ProcessOptions as Process
from .schedule import ZERO, Levels, NoiseSchedule
from .stepping import Stepping


class Placing(Stepping):
    """A scheduler that places its runs on the grid of its config, or where the caller says."""

    config: Any
    schedule: NoiseSchedule
    _told: Process

    places_itself: ClassVar[str | None] = None
    """How its steps lie, if they cannot be given as timesteps or sigmas, which fall elsewhere."""

    _closed_grid: ClassVar[bool] = True
    _whole_linspace: ClassVar[bool] = True
    _karras_on_ratio: ClassVar[bool] = False
    """Whether `use_karras_sigmas` spaces a flow's sigma / (1 - sigma), and not its sigma; see `asking.ends`."""

    def _place(self, calls: int) -> Levels:
        """The levels of `calls` network calls and the end; multi-call samplers say where their stages fall."""
        return self._grid_levels(calls)

    def _end(self) -> Levels:
        return ZERO if self.config["final_sigmas_type"] == "zero" else self._least_noise()

    def _least_noise(self) -> Levels:
        """Where a run ends that does not end clean: at the training's least noise, or the config's `sigma_min` where
        that is below.
        """
        least, low = self.schedule.least, self.config["sigma_min"]
        if not low or isinstance(self.schedule, flow.Flow) or low >= least.ratio[0]:
            return least
        return self.schedule.at_lambda([-np.log(low)])

    def _grid_levels(self, n: int, grid: str | None = None) -> Levels:
        """`n` levels of the configured grid, or of another one, and the end."""
        config = self.config if grid is None else {**self.config, "grid": grid}
        return placement.grid_levels(
            self.schedule,
            config,
            n,
            self._end(),
            closed=self._closed_grid,
            whole=self._whole_linspace,
            asked=self._own.asked or self._asked(None, None),
        )

    def _asked(self, sigmas: Any, mu: float | None) -> placement.Asked | None:
        """What `set_timesteps` was told of a flow's run; see `asking.ask`."""
        return asking.ask(self._told, self.config, sigmas, mu, self.say_once, karras_on_ratio=self._karras_on_ratio)

    @property
    def asked(self) -> placement.Asked | None:
        """What this thread's `set_timesteps` was last told of a flow model's run; None for other models."""
        return self._own.asked

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Announce a run, by one of a number of network calls, timesteps, or sigmas. A scheduler's own timesteps or
        sigmas announce the run that they are of.

        Args:
            num_inference_steps: network evaluations, 1 to `num_train_timesteps`; beside timesteps or sigmas, what
                their number must be.
            device: where `timesteps` shall be.
            timesteps: what the network is told at the solver steps, falling; within [0, T - 1] and possibly fractional
                where that is the training time.
            sigmas: sigma / alpha of the solver steps, falling; a last 0 is the end and makes no call. For flow models,
                as their pipelines give them: a flow's own sigma at each of the calls, before the shift.
            mu: where `use_dynamic_shifting` is set, what the shift is made from.

        Raises:
            InputError: none or several given, or values that cannot be stepped through. What was set before stays.
        """
        both, none = timesteps is not None and sigmas is not None, timesteps is None and sigmas is None
        if both or (none and num_inference_steps is None):
            raise InputError("pass exactly one of num_inference_steps, timesteps and sigmas")
        if self.places_itself and not none:
            raise InputError(
                f"{type(self).__name__} places its own steps, {self.places_itself}; pass num_inference_steps alone"
            )
        asked = self._asked(sigmas, mu)
        if asked is not None and asked.sigmas is not None:
            given = len(asked.sigmas)
            self._fits(num_inference_steps, given, "sigmas")
            num_inference_steps, sigmas = given, None
        if num_inference_steps is not None:
            self._check_count(num_inference_steps)
            if timesteps is not None and not isinstance(self.schedule, flow.Flow):
                raise InputError("pass num_inference_steps or timesteps, not both")
        self._own.asked = asked
        given = timesteps if sigmas is None else sigmas
        if given is not None and (own := self._handed_back(given, sigmas is not None)) is not None:
            return self.announce(own, device)
        if timesteps is not None:
            levels = placement.from_timesteps(self.schedule, timesteps, self._end())
        elif sigmas is not None:
            levels = placement.from_sigmas(self.schedule, sigmas, end := self._end())
            if end.sigma[-1] and not levels.sigma[-1] and (last := float(torch.as_tensor(sigmas).reshape(-1)[-1])):
                self.say_once(
                    f"the last sigma, {last:.4g}, is below the {float(end.ratio[-1]):.4g} that a run ends at by "
                    "final_sigmas_type='sigma_min': this one ends clean"
                )
        else:
            return self.announce(self._place(int(num_inference_steps)), device)  # type: ignore[arg-type]
        self._fits(num_inference_steps, len(levels) - 1, "sigmas" if timesteps is None else "timesteps")
        self.announce(self._explicit_stages(levels), device)

    def announce(self, levels: Levels, device: str | torch.device | None = None) -> None:
        super().announce(levels, device)
        most, first = float(self.schedule.trained.ratio_at_ends[-1]), float(levels.ratio[0])
        if most * 1.01 < first < np.inf:
            self.say_once(
                f"the run starts at sigma {first:.4g}, beyond the {most:.4g} that the model was trained at, where it "
                "is told its last timestep"
            )

    def _handed_back(self, given: Any, sigmas: bool) -> Levels | None:
        """The run that this scheduler places itself, where its own `timesteps` or `sigmas` are handed back to it. They
        are shown in float32, and what is read from them are levels that differ in their last digits.

        Args:
            given: what the caller gives.
            sigmas: whether that is sigmas, with the end or without it, or timesteps.
        """
        with suppress(TypeError, ValueError):  # what is no run is refused where it is read
            values = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given, np.float32)
            for calls in (len(values) - 1, len(values)) if sigmas else (len(values),):
                own = self._place(calls) if 0 < calls <= self.config["num_train_timesteps"] else ZERO
                shown = np.asarray(self._shown(own.ratio) if sigmas else own.t[:-1], np.float32)
                if calls and np.array_equal(shown[: len(values)], values):
                    return own
        return None

    def _fits(self, num_inference_steps: int | None, given: int, name: str) -> None:
        if num_inference_steps not in (None, given):
            raise InputError(f"{name} must be {num_inference_steps} numbers (num_inference_steps), got {given}")

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

    def _trained(self) -> Levels:
        times = np.arange(self.schedule.t_max, self.schedule.t_min - 1, -1.0)
        levels = self.schedule.at(times)
        if isinstance(self.schedule, flow.Flow) and not self._told.use_dynamic_shifting:
            levels = self.schedule.at_sigma(flow.Shift.of(self._told, None).moved(levels.sigma))
        return self._explicit_stages(placement.with_end(self.schedule, levels, self._end()))

"""How a Diffusers scheduler steps through tables: all of its interface but where the tables come from."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.compiler import is_compiling

from ..attaching import attach
from ..board import BOARD, NUMBERS, is_same
from ..errors import InputError
from .announced import Announced
from .plan import Plan, StepOutput
from .position import number
from .run import Run


class Stepping(Announced):
    """Steps through announced runs.

    The latent is always in the model's own scale, x = alpha x0 + sigma eps, so `scale_model_input` does nothing.
    """

    def attach(self, pipe: Any) -> None:
        """Make a pipeline's U-Net leave both halves of its guided predictions, which tables of two fields weigh; see
        `attaching.attach`. Our own U-Nets do so anyway.

        Args:
            pipe: the pipeline, or its U-Net.

        Raises:
            InputError: it has no U-Net.
        """
        attach(pipe)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None, *_: Any, **__: Any) -> torch.Tensor:
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
    ) -> StepOutput | Any:
        """One network call's worth of sampling.

        Args:
            model_output: the network's output for `sample`, `(batch, channels, ...)`.
            timestep: which call this is: the next one, in a loop over `timesteps`; the last one again, for a look at
                its x0 and then the step; or any other, and the run begins afresh there. A view of `timesteps` is told
                by its place in memory, numbers and other tensors by their value (see `position.Places`).
            sample: the latent, same shape. Half precision is computed in float32.
            generator: one, or one per sample, which makes each sample's noise independent of its batch.
            variance_noise: N(0, I) to use in place of a draw.
            return_dict: whether to return `StepOutput` or `(prev_sample,)`, which type checkers take as anything.

        Returns:
            The latent at the next level, in the sample's dtype, and in a `StepOutput` the x0 prediction.

        Raises:
            InputError: a timestep that no run can begin at, or shapes that do not fit. The run stays where it was.
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
    ) -> StepOutput | Any:
        own = self._own
        if own.copied:
            own = self._own = own.unshared()
        plan = own.plan
        if plan is None or plan.implied:
            plan = self._some_plan() or self._announced("step()")
        x, m, extra = sample, model_output, None
        try:
            fits = m.shape == x.shape
        except AttributeError:
            raise self._no_tensor(m, x) from None
        if not fits:
            m, extra = self._split(m, x)
        run = plan.run or plan.ready
        counts = is_compiling() and (run is plan.run or plan.begin is not None)  # a compiled step reads no timestep
        if run is None or run.eta != eta or not (counts or plan.is_due(timestep, run.begin + run.position)):
            run = self._moved(plan, timestep, eta)
        position = run.position
        if position == len(run.calls):  # in a compiled step
            raise InputError(f"this run's {len(plan.values)} calls are made; call set_timesteps() to begin another")
        if x.dtype is not torch.float32 or m.dtype is not torch.float32:
            if not x.is_floating_point():
                raise InputError(f"sample must be floating point, got {x.dtype}")
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            x, m = x.to(dtype), m.to(dtype)
        call, second = run.calls[position], None
        if call.second or (run.companion is not None and not position):
            run, second = self._second(plan, run, timestep, model_output, x)
            call = run.calls[position]
        noise = self._noise(x, extra, run, generator, variance_noise) if call.noisy else None
        previous = run.advance(x, m, noise, second)
        plan.run, plan.ready = run, None
        if previous.dtype is not sample.dtype:
            previous = previous.to(sample.dtype)
        if not return_dict:
            return (previous,)
        return StepOutput(previous, (run, call, x, m, sample.dtype))

    @staticmethod
    def _no_tensor(m: Any, x: Any) -> InputError:
        """That `step` was given something else, such as a network's whole output."""
        name, given = ("sample", x) if isinstance(m, torch.Tensor) else ("model_output", m)
        inside = "; give its .sample" if isinstance(getattr(given, "sample", None), torch.Tensor) else ""
        return InputError(f"{name} must be a tensor, got {type(given).__name__}{inside}")

    def _moved(self, plan: Plan, timestep: Any, eta: float) -> Run:
        """The plan's run, standing at the call that a timestep belongs to: as it is, one call back, or begun there."""
        run, due = plan.run, plan.due
        if run is None and due == len(plan.values):
            raise InputError(f"this run's {due} calls are made; call set_timesteps() to begin another")
        named = run is None and plan.begin is not None
        place = due if named and is_compiling() else plan.place(timestep, due)
        if run is not None and run.eta == eta and place is not None:
            if place == due:
                return run
            if place == due - 1 and run.before and not (run.between and run.position == 1):
                run.back()
                return run
        ready, plan.ready = plan.ready, None
        if place is None:
            run = self._between(plan, number(timestep)[0], eta)
        else:
            run = ready if ready and ready.begin == place and not eta else self._compile(plan.levels, place, eta)
        run.eta = eta
        return run

    def _between(self, plan: Plan, timestep: float, eta: float) -> Run:
        """A run that begins at a timestep that is none of the plan's, and goes on to its next one below.

        Raises:
            InputError: there is none.
        """
        raise plan.unknown(timestep)

    def _stand_in(self, companion: Run) -> Run:
        """The run of one field in place of one of two."""
        self.say_once(
            "no network leaves its unconditional prediction, and a less exact table of one field runs: call "
            "pipe.scheduler.attach(pipe) once after loading, and draw with a guidance scale above 1"
        )
        return companion

    def _split(self, m: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and the variance that networks with twice the channels give besides."""
        if m.dim() != x.dim() or x.dim() < 2 or m.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise InputError(f"model_output {tuple(m.shape)} and sample {tuple(x.shape)} differ in shape")
        prediction, variance = m.split(x.shape[1], dim=1)
        return prediction, variance

    def _second(
        self, plan: Plan, run: Run, timestep: Any, m: torch.Tensor, x: torch.Tensor
    ) -> tuple[Run, torch.Tensor | None]:
        """The run to go on with, its companion where the first call finds no half of a guided prediction, and the
        second field's output at this call, of the shape and dtype of x.

        Where the network is called without guidance, both fields are the one prediction.
        """
        half = run.table.second
        if run.given and run.given[0] is m:  # a look, and then the step
            return run, run.given[1]
        found = BOARD.take(timestep, m, half, plan.since)
        if found is None and plan.taken is not None and is_same(m, plan.taken[0]):  # a look, and now the step
            found = plan.taken[1]
        plan.since, plan.taken = next(NUMBERS), None if found is None else (m, found)
        if found is None or found is m:
            if run.companion is not None and not run.position:
                return self._stand_in(run.companion), None
            if found is None:
                raise InputError(
                    f"{type(self).__name__} weighs the {half} prediction by itself, and no network has left it: call "
                    "pipe.scheduler.attach(pipe) once after loading the pipeline"
                )
            self.say_once(
                "weighs predictions with and without the prompt, and here there is no guidance: the one prediction is "
                "taken for both, as the plain sampler does"
            )
        if found.shape != x.shape:  # with the variance that networks with twice the channels give besides
            found, _ = self._split(found, x)
        run.given = m, found.to(device=x.device, dtype=x.dtype)
        return run, run.given[1]

    def _noise(
        self,
        x: torch.Tensor,
        extra: torch.Tensor | None,
        run: Run,
        generator: torch.Generator | list[torch.Generator] | None,
        variance_noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """N(0, I) for this call, of the shape and dtype of x: what the caller gave, or a draw.

        Args:
            extra: the variance that the network gave, for samplers that use one.
        """
        if isinstance(generator, bool) or isinstance(variance_noise, bool):
            raise InputError(f"{type(self).__name__}.step() takes return_dict by its name only")
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
        return self._draw(x, run, generator)

    def _draw(
        self, x: torch.Tensor, run: Run, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        """Drawn in float32 whatever the dtype: one seed is one picture in every precision."""
        return randn_tensor(x.shape, generator, x.device, torch.float32).to(x.dtype)

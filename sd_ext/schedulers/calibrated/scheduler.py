"""The scheduler that runs what was fitted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.compiler import is_compiling

from ... import whole
from ...board import BOARD, HALVES, find_half
from ...declared import make
from ...errors import InputError
from ...reading import parse_json, read_json
from ..base import TableScheduler
from ..find import find_sampler
from ..info import SamplerInfo
from ..placement import told_range
from ..plan import Plan, StepOutput
from ..prediction import hook_from_config
from ..registry import CARRIED
from ..rest import from_call
from ..run import Run
from ..schedule import Levels
from ..table import Table
from .calibration import Calibration, Provenance, Written
from .card import write_card
from .fits import Fit
from .fits import from_call as whole_from
from .known import Announced, KnownSamplers, fitted_levels, noisy
from .pipelines import differences, guidance_in, other_size, told_guidance
from .variants import takes_noise, with_noise

OWN = ("calibration", "guidance_scale", "eta")
"""The options that are no other sampler's concern."""


class Watched(Run):
    """A run that keeps its first guided prediction and the halves of it, to see in the end how it was guided."""

    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


class CalibratedScheduler(TableScheduler):
    """Runs tables that were fitted to a model, each for a number of calls and a strength of guidance.

    1 call a step; an order of convergence it has none, since its tables are for few calls. What it was not fitted for
    is made by the nearest fit or by the best known sampler, and said once.

    Tables of two fields need the unconditional predictions, and the strength of guidance has to be known when a run is
    announced. `attach(pipe)`, called once after loading, provides both.

    Args:
        calibration: the fits, as `Calibration.to_config` writes them.
        guidance_scale: what pipelines draw with; None asks the attached pipeline.
        eta: share of the ancestral noise that is drawn afresh at every call, 0 to 1.
    """

    calibration: Mapping[str, Any] | None = None
    guidance_scale: float | None = None
    eta: float = 0.0

    weighs_unconditional: ClassVar[bool] = True

    @classmethod
    def from_calibration(
        cls, calibration: Calibration, config: Mapping[str, Any], **options: Any
    ) -> CalibratedScheduler:
        """The scheduler of a calibration, for the model with a scheduler config.

        Args:
            calibration: what was fitted.
            config: of any Diffusers scheduler of the model.
            options: further arguments of the constructor.

        Raises:
            InputError: the calibration does not fit the model's noise schedule, or an option cannot be.
        """
        options = {"guidance_scale": None, "eta": 0.0, **options}
        made = cls.from_config(dict(config), calibration=calibration.to_config(), **options)
        assert isinstance(made, cls)
        return made

    # ---- set-up ------------------------------------------------------------------------------------------------------

    def _setup(self) -> None:
        super()._setup()
        config, name = self.config, type(self).__name__
        self._within("eta", 0, 1)
        if config["guidance_scale"] is not None and config["guidance_scale"] < 0:
            raise InputError(f"{name}: guidance_scale must be 0 or more, got {config['guidance_scale']!r}")
        if config["calibration"] is None:
            raise InputError(
                f"{name} has no calibration: make one with sd_ext.calibrate(pipe, prompts), or take the scheduler "
                "config of a model that has one"
            )
        self.fitted: Calibration = Calibration.from_config(config["calibration"], f"{name}: calibration")
        self.register_to_config(calibration=Written(config["calibration"]))
        self._made_for = make(Provenance, self.fitted.provenance, f"{name}: calibration")
        self._samplers = KnownSamplers({k: v for k, v in self._given().items() if k not in OWN})
        self._last_told: float | None = None
        least, most = told_range(self.schedule)
        for fit in self.fitted.fits:
            self._check_known(fit)
            if fit.table is not None and fit.table.levels.alpha[0] == 0 and config["prediction_type"] == "epsilon":
                raise InputError(
                    f"{name}: the calibration starts at zero terminal SNR; prediction_type 'epsilon' cannot"
                )
            told = [] if fit.table is None else fit.table.levels.t[:-1]
            if strange := next((t for t in told if not least <= t <= most), None):
                raise InputError(
                    f"{name}: the calibration tells the network timestep {strange:g}; this model has {least:g} to "
                    f"{most:g}"
                )

    def _check_known(self, fit: Fit) -> None:
        """Raise `InputError` where a fit's known sampler is none, or is one that needs a fit itself."""
        where = f"{type(self).__name__}: calibration: the fit for {fit.calls} calls at guidance {fit.guidance:g}"
        try:
            info, _ = find_sampler(fit.known)
        except InputError as problem:
            raise InputError(f"{where}: known: {problem}") from None
        if info.name in CARRIED:
            raise InputError(f"{where}: known: {fit.known!r} is fitted itself; name one that is not")

    def _given(self) -> dict[str, Any]:
        """The config without what was left at its default, which another class may have another one for."""
        left = self.config.get("_use_default_values", [])
        return {k: v for k, v in self.config.items() if k not in left and not k.startswith("_")}

    def __repr__(self) -> str:
        made, strengths = self._made_for.model or "a model", ", ".join(f"{g:g}" for g in self.fitted.guidance)
        calls = ", ".join(map(str, self.fitted.calls))
        return f"{type(self).__name__}(fitted to {made} for {calls} calls at guidance {strengths})"

    def to_json_string(self) -> str:
        """The config with one fit a line, and without what is left at its default."""
        config = parse_json(super().to_json_string(), "the config")
        calibration, given = config.pop("calibration"), self._given()
        lines = [json.dumps(fit, separators=(",", ":")) for fit in calibration["fits"]]
        short = {k: v for k, v in config.items() if k in given or k.startswith("_")}
        text = json.dumps(short, indent=2, sort_keys=True)[:-2]
        head = ",\n".join(f"    {json.dumps(key)}: {json.dumps(calibration[key])}" for key in ("format", "provenance"))
        fits = ",\n".join(f"      {line}" for line in lines)
        return f'{text},\n  "calibration": {{\n{head},\n    "fits": [\n{fits}\n    ]\n  }}\n}}\n'

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the config, whole or not at all. In a folder, as `save_pretrained` does, a README that says what was
        fitted comes beside it; one of somebody else's stays.
        """
        path = Path(json_file_path)
        whole.write_text(path, self.to_json_string())
        if path.name == self.config_name:
            write_card(self.fitted, path.parent)

    # ---- which fit ---------------------------------------------------------------------------------------------------

    @property
    def strength(self) -> float:
        """The strength of guidance that runs are made for: the option, or what the attached pipeline draws with."""
        if self.config["guidance_scale"] is not None:
            return max(float(self.config["guidance_scale"]), 1.0)
        told = told_guidance(self)
        if len(told) > 1:
            values = ", ".join(f"{value:g}" for value in told)
            self.say_once(f"attached pipelines draw with guidance {values}; give each a scheduler of its own")
        if told:
            self._last_told = told[-1]
        if self._last_told is not None:
            return self._last_told
        strengths = self.fitted.guidance
        middle = strengths[len(strengths) // 2]
        self.say_once(
            f"no pipeline has told the strength of guidance, and {middle:g} is taken: call pipe.scheduler.attach(pipe) "
            "once after loading, or set guidance_scale"
        )
        return middle

    def _found(self, calls: int) -> Fit:
        """The fit for a number of calls, and what differs from what it was made for, said once."""
        fit, note = self.fitted.at(calls, self.strength)
        for sentence in (note, *differences(self, self._made_for)):
            if sentence:
                self.say_once(sentence)
        return fit

    def _place(self, calls: int) -> Announced:
        fit = self._found(calls)
        return fitted_levels(fit) if fit.table is not None else self._samplers.place(fit)

    def _explicit_stages(self, levels: Levels) -> Announced:
        return self._of_the_caller(levels)

    def _of_the_caller(self, levels: Levels, complete: bool = False) -> Announced:
        """A run whose levels the caller has chosen: a fit's own, or one that the known sampler makes.

        Args:
            levels: of its solver steps, and the end.
            complete: whether they are those of all its calls.
        """
        fit = self._found(len(levels) - 1)
        if fit.table is not None:
            own = fit.table.levels
            if np.allclose(own.t[:-1], levels.t[:-1], atol=1e-3) or np.allclose(own.ratio, levels.ratio, rtol=1e-5):
                return fitted_levels(fit)
            self.say_once(f"timesteps or sigmas of the caller's own are not those fitted: {fit.known} makes these runs")
        levels = levels if complete else self._samplers.staged(fit, levels)
        return self._samplers.place(replace(fit, table=None, companion=None), levels)

    def _handed_back(self, given: Any, sigmas: bool) -> None:
        """A fit's own timesteps and sigmas are told by `_of_the_caller`."""

    def announce(self, levels: Levels, device: str | torch.device | None = None) -> None:
        super().announce(levels if isinstance(levels, Announced) else self._of_the_caller(levels, True), device)

    @property
    def init_noise_sigma(self) -> float:
        """What pipelines scale the initial N(0, I) by."""
        return self._plan.levels.start if self._plan else 1.0

    def _trained(self) -> None:
        """Nothing is fitted for all the trained timesteps: a run must be announced."""

    @property
    def whole_calls(self) -> tuple[int, ...] | None:
        """The calls of the announced run, counted from the one that it begins with, that compute the whole U-Net; None
        is every one. U-Nets with `cache_schedule="sampler"` ask for them.
        """
        plan = self._plan
        fit = getattr(plan.levels, "fit", None) if plan else None
        if plan is None or fit is None or fit.whole_calls is None:
            return None
        return whole_from(fit.whole_calls, plan.begin or 0)

    # ---- its tables --------------------------------------------------------------------------------------------------

    def _compile(self, levels: Levels, begin: int, eta: float) -> Run:
        prediction, hook = self.schedule.prediction, hook_from_config(self.config)
        tables = self._tables(levels if isinstance(levels, Announced) else self._of_the_caller(levels, True), begin)
        run, *others = (Watched(table, prediction, hook, begin) for table in tables)
        run.companion = others[0] if others else None
        return run

    def _tables(self, levels: Levels, begin: int) -> list[Table]:
        """The table from a call on, and its companion if it has one."""
        assert isinstance(levels, Announced) and levels.fit is not None
        fit, eta = levels.fit, self.config["eta"]
        if levels.own is not None:
            table = self._samplers.of(fit)._compile(levels.own, begin, 0.0).table
            return [self._with_noise(table, fit.known)]
        assert fit.table is not None
        if not begin or fit.starts.get(begin):
            tables = [from_call(table, begin) for table in (fit.table, fit.companion) if table is not None]
            if eta and not all(map(takes_noise, tables)):
                raise InputError(
                    f"{type(self).__name__}: these tables cannot take noise; set eta to 0, or fit tables on x0 that "
                    "keep the marginal"
                )
            return [with_noise(table, eta) for table in tables]
        name, table = self._samplers.goes_on(fit, fit.table.levels[begin:])
        if begin not in fit.starts:
            self.say_once(f"nothing was fitted for a start at call {begin} of {fit.calls}: {name} makes the rest")
        return [self._with_noise(table, name)]

    def _with_noise(self, table: Table, name: str) -> Table:
        table, note = noisy(table, self.config["eta"])
        if note:
            self.say_once(f"{name} {note}")
        return table

    def _table(self, levels: Levels, eta: float) -> Table:
        return self._tables(levels if isinstance(levels, Announced) else self._of_the_caller(levels, True), 0)[0]

    # ---- on tensors --------------------------------------------------------------------------------------------------

    def _step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *rest: Any, **others: Any
    ) -> StepOutput | Any:
        plan = self._own.plan
        begins = plan is not None and plan.run is None and not is_compiling()
        if begins and (note := other_size(self, self._made_for, sample.shape)):
            self.say_once(note)
        made = super()._step(model_output, timestep, sample, *rest, **others)
        if not is_compiling() and plan is not None and plan.run is not None:
            self._check_guidance(plan.run, plan.levels)
        return made

    def _second(
        self, plan: Plan, run: Run, timestep: Any, m: torch.Tensor, x: torch.Tensor
    ) -> tuple[Run, torch.Tensor | None]:
        """As of any sampler of two fields; and the halves of the first call are kept, to see how it was guided."""
        noted = [] if is_compiling() or run.position else BOARD.noted(timestep)
        run, free = super()._second(plan, run, timestep, m, x)
        prompted = find_half(noted, m, HALVES.index("conditional")) if noted else None
        if free is None or prompted is None or prompted is m or prompted.shape != m.shape:
            return run, free
        if isinstance(run, Watched):
            run.halves = m.detach(), free.detach(), prompted.detach()
        return run, free

    def _check_guidance(self, run: Run, levels: Levels) -> None:
        """At the end of a run, whose pictures are waited for: say if it was guided at another strength than told when
        it was announced.
        """
        if not isinstance(run, Watched) or run.halves is None or run.position < len(run.calls):
            return
        drawn, run.halves = guidance_in(*run.halves), None
        fit = levels.fit if isinstance(levels, Announced) else None
        if drawn is not None and drawn >= 0 and fit is not None and abs(drawn - fit.guidance) > 0.02 * fit.guidance:
            self.say_once(
                f"this run was guided at {drawn:.3g}, and its sampler is the one for {fit.guidance:g}, which an "
                "attached pipeline or the option guidance_scale tells: attach the pipeline that draws "
                "(sd_ext.attach(pipe)), with a scheduler of its own"
            )

    def export(self, folder: str | Path, num_inference_steps: int | Iterable[int] | None = ()) -> Path:
        """Write a component folder that runs this sampler with Diffusers only, for the strength of guidance that it has
        now; see `export.export`.

        Args:
            folder: where to.
            num_inference_steps: as there; by default the numbers of calls that were fitted.
        """
        from ..export import counts_of  # few need it

        counts = counts_of(num_inference_steps)
        counts = self.fitted.calls if counts == () else counts
        self._keep(Path(folder))
        if len(self.fitted.guidance) > 1:
            self.say_once(f"an exported sampler is for one strength of guidance, here {self.strength:g}")
        if any(fit.whole_calls is not None for fit in self.fitted.fits):
            self.say_once(
                "fitted to a U-Net that reuses features in some calls; an exported sampler cannot tell it in which, so "
                "that every call is whole"
            )
        for calls in counts or ():
            self._found(calls)
        return super().export(folder, counts)

    def _keep(self, folder: Path) -> None:
        """Raise `InputError` where an export would replace a calibration, which the exported file does not hold."""
        path = folder / str(self.config_name)
        if path.is_file() and "calibration" in read_json(path, dict[str, Any]):
            raise InputError(f"{folder} holds a calibration, which an export would replace; give another folder")


CARRIED["calibrated"] = SamplerInfo("calibrated", CalibratedScheduler, None, "fitted to the model; docs/calibration.md")

"""A sampler as tables of numbers, and the code that runs them: this one file, torch and Diffusers.

    pipe = DiffusionPipeline.from_pretrained("a/pipeline", trust_remote_code=True)

`sd_ext` compiles its samplers to tables. It wrote this file, from the parts of itself that run a table, and beside it
the numbers, into `scheduler_config.json`. One network call is a small matrix. Out of the slots

    x, stash   the latent, alpha x0 + sigma noise, and one saved latent
    noise      a fresh draw from N(0, I)
    p0 p1 ...  predictions of x0 or of the noise (`basis`), newest first; p0 is this call's

it makes x' and stash', as weighted sums: `[[weights of x'], [weights of stash']]`, with zeros at the end of a list, and
a stash' of zeros, left out. `runs` holds, for each number of calls, `timesteps`, `sigmas` (sigma / alpha, null where
infinite), the levels `alpha` and `sigma` of its `calls`, and in `starts` those calls that differ in a run that begins
late (image to image); a start whose table is another one altogether stands in `late`. `trained` is the process: `alpha`
and `sigma` at its training times, what the network is `told` there if that is not the time itself, `flow` where alpha +
sigma = 1, `sigma_data`, and the `prediction` where its name does not say all. Where a run has `"fields": 2`, its rows
weigh `history` predictions and after them as many of one half of the guided ones (`second`), which
`pipe.scheduler.attach(pipe)` makes the U-Net leave; where nothing is left, tables of `companions` run in their place,
by the call they start at. `apart` says that the timesteps may be others than those of `alpha` and `sigma`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config

from .assemble import SOURCE
from .plan import StepOutput
from .prediction import PREDICTION_TYPES, hook_from_config
from .run import Run
from .stepping import Stepping
from .stored import StoredLevels, StoredTable, StoredTraining, check_numbers, check_run, check_trained, need, same

MODULE = "exported_scheduler"
"""This file's name in a pipeline's folder."""


class Shown(dict):
    """A dictionary that does not fill the screen when a config is printed."""

    def __repr__(self) -> str:
        return f"<{len(self)} entries>"


class ExportedScheduler(Stepping):
    """Runs stored tables.

    Args:
        runs, trained: the tables and the model's noise schedule; see the top of this file.
        init_noise_sigma: scale of the initial noise before a run is announced.
        eta: for samplers that take an `eta` at each step, the only one the tables are for.
        exported_from: where the tables come from.
        The others are as in Diffusers.

    Raises:
        ValueError: numbers that are not tables; the message says where.
    """

    @register_to_config
    def __init__(
        self,
        runs: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        init_noise_sigma: float = 1.0,
        eta: float | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        exported_from: str = "",
    ):
        need(prediction_type in PREDICTION_TYPES, f"prediction_type must be one of {PREDICTION_TYPES}")
        need(type(num_train_timesteps) is int and num_train_timesteps > 0, "num_train_timesteps must be a whole number")
        settings = init_noise_sigma, dynamic_thresholding_ratio, sample_max_value, clip_sample_range, eta or 0
        check_numbers("the scheduler's settings", settings)
        need(thresholding in (True, False) and clip_sample in (True, False), "switches must be true or false")
        if not isinstance(runs, dict) or not isinstance(trained, dict) or not runs:
            raise ValueError("scheduler_config.json: runs and trained must be dictionaries with entries")
        check_trained(trained, num_train_timesteps)
        for key, run in runs.items():
            check_run(key, run, prediction_type)
        self.register_to_config(runs=Shown(runs), trained=Shown(trained))
        self.schedule = StoredTraining(trained, prediction_type)
        # Pipelines record this as the component's module: the file that `save_config` puts beside the config.
        self.__module__ = MODULE
        self._forget_runs()

    def __repr__(self) -> str:
        return f"ExportedScheduler({self.config['exported_from']!r}, {len(self.config['runs'])} runs)"

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """The config and this file, without which the folder could not be loaded again."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / f"{MODULE}.py").write_bytes(SOURCE)
        super().save_config(save_directory, push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The config with one run a line; Diffusers would give each number a line."""
        config = json.loads(super().to_json_string())
        short = {k: v for k, v in config.items() if k not in ("runs", "trained")}
        text = json.dumps(short, indent=2, sort_keys=True)[:-2]
        for name in ("runs", "trained"):
            entries = self.config[name].items()
            lines = (f"    {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in entries)
            text += f',\n  "{name}": {{\n' + ",\n".join(lines) + "\n  }"
        return text + "\n}\n"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Announce a run: an exported number of network calls, or just the timesteps or sigmas of such a run, before or
        after their shift where that is a flow's. `mu` must be that of the run, if it has one.
        """
        name, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
        if (timesteps is not None and sigmas is not None) or (given is None and num_inference_steps is None):
            raise ValueError("pass one of num_inference_steps, timesteps and sigmas")
        if given is None:
            run = self.config["runs"].get(str(num_inference_steps))
        else:
            values = [float(v) for v in given]
            if name == "sigmas" and values[-1:] == [0.0]:
                values.pop()  # the end, which is no call
            run = self.config["runs"].get(str(len(values))) if num_inference_steps in (None, len(values)) else None
            run = run if run and any(same(stored, values) for stored in self._known_by(run, name)) else None
        if run is None:
            asked = f"num_inference_steps={num_inference_steps}" if given is None else f"these {name}"
            known = ", ".join(sorted(self.config["runs"], key=int))
            raise ValueError(f"{asked}: this sampler was exported for these numbers of network calls only: {known}")
        own = run.get("asked", {}).get("mu")
        if own is not None and (mu is None or not math.isclose(own, mu, rel_tol=1e-5)):
            raise ValueError(f"mu={mu}: this run was exported for mu={own}")
        self.announce(StoredLevels(run), device)

    def _known_by(self, run: dict[str, Any], name: str) -> list[list[float]]:
        """The timesteps of a run, or its sigmas as the scheduler shows them and as they were asked for."""
        if name == "timesteps":
            return [run[name]]
        asked = run.get("asked", {}).get("sigmas")
        shown = self._shown([math.inf if v is None else v for v in run["sigmas"][:-1]])
        return [shown] if asked is None else [asked, shown]

    def _compile(self, levels: StoredLevels, begin: int, eta: float) -> Run:
        tables = [StoredTable(levels.run, begin)]
        if (companion := levels.run.get("companions", {}).get(str(begin))) is not None:
            tables.append(StoredTable(companion, 0))
        run, *others = (Run(table, self.schedule.prediction, hook_from_config(self.config), begin) for table in tables)
        run.companion = others[0] if others else None
        return run

    @property
    def _process(self) -> StoredTraining:
        return self.schedule

    @property
    def init_noise_sigma(self) -> float:
        """What pipelines scale the initial N(0, I) by."""
        return float((self._plan.levels.run if self._plan else self.config)["init_noise_sigma"])

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
    ) -> StepOutput | Any:
        """As `Stepping.step`.

        Args:
            eta: pipelines pass it; 0 asks for nothing.
        """
        only = self.config["eta"]
        if eta and only is not None and eta != only:
            raise ValueError(f"this sampler was exported for eta={only} and cannot do eta={eta}")
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict)

"""A sampler as tables of numbers, and the code that runs them: this one file, torch and Diffusers.

    pipe = DiffusionPipeline.from_pretrained("a/pipeline", trust_remote_code=True)

`sd_ext` compiles its samplers to tables; `export` put this file here, word for word, and the numbers beside it, into
`scheduler_config.json`. One network call is a small matrix. Out of the slots

    x, stash   the latent, alpha x0 + sigma noise, and one saved latent
    noise      a fresh draw from N(0, I)
    p0 p1 ...  predictions of x0 or of the noise (`basis`), newest first; p0 is this call's

it makes x' and stash', as weighted sums: `[[weights of x'], [weights of stash']]`, with zeros at the end of a list, and
a stash' of zeros, left out. `runs` holds, for each number of calls, `timesteps`, `sigmas` (sigma / alpha, null where
infinite), the levels `alpha` and `sigma` of its `calls`, and in `starts` those calls that differ in a run that begins
late (image to image). `trained` is the model's noise schedule.
"""

from __future__ import annotations

import copy
import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

MODULE = "exported_scheduler"  # this file's name in a pipeline's folder
SOURCE = Path(__file__).read_bytes()
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
X, STASH, NOISE, P0 = range(4)
Weights = tuple[
    tuple[int, float], ...
]  # of (x, network output m, stash, noise, what was kept of p1, p2, ...), by place


class Shown(dict):
    """A dictionary that does not fill the screen when a config is printed."""

    def __repr__(self) -> str:
        return f"<{len(self)} entries>"


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"scheduler_config.json: {message}")


def check_numbers(where: str, values: Any, length: int | None = None) -> None:
    size = "numbers" if length is None else f"{length} numbers"
    need(isinstance(values, (list, tuple)) and length in (None, len(values)), f"{where} must be a list of {size}")
    finite = all(type(v) in (int, float) and -1.7e308 < v < 1.7e308 for v in values)
    need(finite, f"{where} must hold finite numbers only")


def check_run(n: int, run: Any, prediction_type: str) -> None:
    """Shapes, finite numbers, and that no call reads what no earlier call made, wherever the run starts."""
    where = f"runs[{n}]"
    need(n > 0 and isinstance(run, dict) and isinstance(run.get("starts"), dict), f"{where} is not a run")
    need(run.get("basis") in ("x0", "eps"), f"{where}.basis must be 'x0' or 'eps'")
    for key in ("timesteps", "alpha", "sigma"):
        check_numbers(f"{where}.{key}", run.get(key), n)
    check_numbers(f"{where}.sigmas", [v or 0 for v in run.get("sigmas") or ()], n + 1)
    check_numbers(f"{where}.init_noise_sigma", [run.get("init_noise_sigma")])
    need(min(run["sigma"]) > 0, f"{where}.sigma must be positive")
    need(min(run["alpha"]) >= (prediction_type == "epsilon") * 1e-300, f"{where}.alpha is too small")
    need(isinstance(run.get("calls"), list) and len(run["calls"]) == n, f"{where}.calls must be a list of {n}")
    for other in (dict(enumerate(run["calls"])), *run["starts"].values()):
        need(isinstance(other, dict), f"{where}.starts must hold calls by their index")
        for i, call in other.items():
            need(isinstance(call, list) and len(call) in (1, 2), f"{where}, call {i}: expected one or two lists")
            for weights in call:
                check_numbers(f"{where}, call {i}", weights)
    for begin in range(n):
        filled = False
        for i, call in enumerate(calls_from(run, begin), begin):
            need(max(map(len, call)) <= P0 + 1 + i - begin, f"{where}, call {i}: reads before the start at {begin}")
            need(filled or not any(any(w[STASH : STASH + 1]) for w in call), f"{where}, call {i}: reads an empty stash")
            filled = filled or len(call) == 2


def calls_from(run: dict[str, Any], begin: int) -> list[list[list[float]]]:
    """The calls of a run that starts at call `begin`."""
    other = run["starts"].get(str(begin), {})
    return [other.get(str(i), run["calls"][i]) for i in range(begin, len(run["calls"]))]


def linear_map(prediction_type: str, basis: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(cx, cm) with p = cx x + cm m for the network's output m."""
    if prediction_type == "sample":
        x0, eps = (0.0, 1.0), (1 / sigma, -alpha / sigma)
    elif prediction_type == "epsilon":
        x0, eps = (1 / alpha, -sigma / alpha), (0.0, 1.0)
    elif prediction_type == "v_prediction":
        norm = alpha**2 + sigma**2
        x0, eps = (alpha / norm, -sigma / norm), (sigma / norm, alpha / norm)
    else:
        norm = alpha + sigma
        x0, eps = (1 / norm, -sigma / norm), (1 / norm, alpha / norm)
    return x0 if basis == "x0" else eps


def hook_of(config: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Dynamic thresholding (arXiv 2205.11487, section 2.3) or clipping of x0, if the config asks for it."""
    limit, ratio, most = config["clip_sample_range"], config["dynamic_thresholding_ratio"], config["sample_max_value"]

    def threshold(x0: torch.Tensor) -> torch.Tensor:
        s = torch.quantile(x0.flatten(1).abs().float(), ratio, dim=1).clamp(min=1.0, max=max(1.0, most))
        s = s.to(x0.dtype).reshape(-1, *[1] * (x0.dim() - 1))
        return torch.clamp(x0, -s, s) / s

    if config["thresholding"]:
        return threshold
    return (lambda x0: x0.clamp(-limit, limit)) if config["clip_sample"] else None


class Call(NamedTuple):
    """A call for a prediction type. Kept for later calls: x + keep m, or m where keep is None."""

    alpha: float
    sigma: float
    x: Weights
    stash: Weights | None
    keep: float | None
    noisy: bool


def compile_calls(run: dict[str, Any], begin: int, prediction_type: str, hooked: bool) -> list[Call]:
    """A run's calls with the prediction type folded in and zero weights dropped; a hook gives p0 in place of m."""
    rows = [[[*w, *[0.0] * (P0 + 1 - len(w))] for w in (*call, [])[:2]] for call in calls_from(run, begin)]
    levels = list(zip(run["alpha"], run["sigma"], strict=True))[begin:]
    reads = [(0.0, 1.0) if hooked else linear_map(prediction_type, run["basis"], *level) for level in levels]
    scales = [cx if cx else cm for cx, cm in reads]

    def fold(i: int, w: list[float]) -> Weights:
        cx, cm = reads[i]
        past = [p * scales[i - j] for j, p in enumerate(w[P0 + 1 :], 1)]
        weights = enumerate([w[X] + w[P0] * cx, w[P0] * cm, w[STASH], w[NOISE], *past])
        return tuple((place, float(weight)) for place, weight in weights if weight) or ((0, 0.0),)

    calls, stash_read = [], False
    for i, (x, stash) in reversed(list(enumerate(rows))):
        (cx, cm), noisy = reads[i], bool(x[NOISE] or stash[NOISE])
        calls.append(
            Call(*levels[i], fold(i, x), fold(i, stash) if stash_read else None, cm / cx if cx else None, noisy)
        )
        stash_read = stash_read or bool(x[STASH] or stash[STASH])
    return calls[::-1]


def weighted_sum(weights: Weights, tensors: Sequence[Any]) -> torch.Tensor:
    place, weight = weights[0]
    if weight == 1.0 and len(weights) == 1:
        return tensors[place]
    total = tensors[place] * weight
    for place, weight in weights[1:]:
        total.add_(tensors[place], alpha=weight)
    return total


class StepOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample` (x0), computed only if it is read."""

    _x0: Callable[[], torch.Tensor]

    @property
    def pred_original_sample(self) -> torch.Tensor:
        return self._x0()


class Run:
    """One announced run and, from its first call on, its position and what it remembers."""

    def __init__(self, run: dict[str, Any], device: str | torch.device | None):
        whole = all(float(t).is_integer() for t in run["timesteps"])
        timesteps = torch.tensor(run["timesteps"], dtype=torch.int64 if whole else torch.float32)
        self.run, self.values, self.timesteps = run, timesteps.tolist(), timesteps.to(device)
        self.announced: int | None = None
        self.calls: list[Call] | None = None

    def start(self, timestep: float | torch.Tensor, config: Any) -> list[Call]:
        self.begin = self.index_of(timestep) if self.announced is None else self.announced
        self.prediction_type, self.hook = config["prediction_type"], hook_of(config)
        self.calls = compile_calls(self.run, self.begin, self.prediction_type, self.hook is not None)
        self.depth = max(len(w) for call in calls_from(self.run, self.begin) for w in call) - P0 - 1
        self.position, self.stash, self.past = 0, None, ()
        return self.calls

    def index_of(self, timestep: float | torch.Tensor) -> int:
        """Where a timestep stands; a view of `timesteps`, as in a pipeline's loop, is not read from its device."""
        if isinstance(timestep, torch.Tensor):
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return int(timestep.storage_offset() - self.timesteps.storage_offset())
            timestep = float(timestep.flatten()[0])
        places = [i for i, value in enumerate(self.values) if abs(value - timestep) < 1e-3]
        if not places:
            raise ValueError(f"timestep {timestep:g} is not one of this run's timesteps {self.values}")
        return places[0]

    def denoised(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        x0 = weighted_sum(tuple(enumerate(linear_map(self.prediction_type, "x0", call.alpha, call.sigma))), (x, m))
        return x0 if self.hook is None else self.hook(x0)

    def advance(self, call: Call, x: torch.Tensor, m: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        if self.hook is not None:
            x0 = self.denoised(call, x, m)
            m = x0 if self.run["basis"] == "x0" else (x - call.alpha * x0) / call.sigma
        tensors = (x, m, self.stash, noise, *self.past)
        previous = weighted_sum(call.x, tensors)
        if call.stash is not None:
            self.stash = weighted_sum(call.stash, tensors)
        if self.depth > 0:
            kept = m if call.keep is None else torch.add(x, m, alpha=call.keep)
            self.past = (kept, *self.past[: self.depth - 1])
        self.position += 1
        return previous


class Runs(threading.local):
    """`run` is this thread's own. A deep copy goes on where that stands, for pipelines that branch in mid-run."""

    run: Run | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Runs:
        other = Runs()
        other.run = copy.deepcopy(self.run, memo)
        return other


class ExportedScheduler(SchedulerMixin, ConfigMixin):
    """Runs stored tables. One timestep is one network call, latents are in the model's own scale, and one object may
    serve many threads: a run belongs to the thread that called `set_timesteps`.

    Args:
        runs, trained: the tables and the model's noise schedule; see the top of this file.
        init_noise_sigma: scale of the initial noise before a run is announced.
        eta: for samplers that take an `eta` at each step, the only one the tables are for.
        exported_from: where the tables come from.
        The others are as in Diffusers.
    """

    order = 1
    # With these a config keeps the keys of Diffusers' schedulers, so that another one can be made from it.
    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012

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
        if not isinstance(runs, dict) or not isinstance(trained, dict) or not runs:
            raise ValueError("scheduler_config.json: runs and trained must be dictionaries with entries")
        for name in ("alpha", "sigma"):
            check_numbers(f"trained.{name}", trained.get(name), num_train_timesteps + bool(trained.get("flow")))
        for n, run in runs.items():
            check_run(int(n) if n.isdecimal() else 0, run, prediction_type)
        self.register_to_config(runs=Shown(runs), trained=Shown(trained))
        # Pipelines record this as the component's module: the file that `save_config` puts beside the config.
        self.__module__ = MODULE
        self.__setstate__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedScheduler:
        """The scheduler in the middle of its run; a pickle leaves the run behind."""
        other = type(self).__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_own", "_latest", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own, self._latest, self._cache = Runs(), None, {}

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
    ) -> None:
        """Announce a run: an exported number of network calls, or just the timesteps or sigmas of such a run."""
        key, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
        if (timesteps is not None and sigmas is not None) or (given is None and num_inference_steps is None):
            raise ValueError("pass one of num_inference_steps, timesteps and sigmas")
        if given is None:
            run = self.config["runs"].get(str(num_inference_steps))
        else:
            values = [float(v) for v in given]
            if key == "sigmas" and values[-1:] == [0.0]:
                values.pop()  # the end, which is no call
            run = self.config["runs"].get(str(len(values))) if num_inference_steps in (None, len(values)) else None
            stored = [math.inf if v is None else v for v in run[key][: len(values)]] if run else []
            run = run if stored and all(map(partial(math.isclose, rel_tol=1e-5), stored, values)) else None
        if run is None:
            asked = f"num_inference_steps={num_inference_steps}" if given is None else f"these {key}"
            known = ", ".join(sorted(self.config["runs"], key=int))
            raise ValueError(f"{asked}: this sampler was exported for these numbers of network calls only: {known}")
        self._own.run = self._latest = Run(run, device)

    @property
    def _run(self) -> Run | None:
        """This thread's run, or the last one announced if this thread has none."""
        return self._own.run or self._latest

    def _announced(self, caller: str) -> Run:
        if self._run is None:
            raise ValueError(f"{caller}() needs a run: call set_timesteps() first")
        return self._run

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the announced run at this call."""
        run = self._announced("set_begin_index")
        if not 0 <= begin_index < len(run.values):
            raise ValueError(f"begin_index must be 0 to {len(run.values) - 1}, got {begin_index}")
        run.announced, run.calls = begin_index, None

    @property
    def timesteps(self) -> torch.Tensor:
        return self._run.timesteps if self._run else torch.arange(self.config["num_train_timesteps"] - 1, -1, -1)

    @property
    def sigmas(self) -> torch.Tensor:
        """sigma / alpha of the calls and the end, float32."""
        alpha, sigma = (self.config["trained"][name][::-1] for name in ("alpha", "sigma"))
        trained = [*(s / a if a else None for a, s in zip(alpha, sigma, strict=True)), 0.0]
        values = self._run.run["sigmas"] if self._run else trained
        return torch.tensor([math.inf if v is None else v for v in values], dtype=torch.float32)

    @property
    def num_inference_steps(self) -> int | None:
        return len(self._run.values) if self._run else None

    @property
    def begin_index(self) -> int | None:
        return self._run.announced if self._run else None

    @property
    def step_index(self) -> int | None:
        """Index of the call that comes next; None before the first."""
        return self._run.begin + self._run.position if self._run and self._run.calls else None

    @property
    def init_noise_sigma(self) -> float:
        return float((self._run.run if self._run else self.config)["init_noise_sigma"])

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def scale_model_input(self, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
    ) -> StepOutput | tuple[torch.Tensor]:
        """One network call's worth of sampling; half precision is computed in float32.

        Args:
            timestep: looked up only at a start that nobody announced; afterwards the position is a counter.
            generator: one, or one per sample.
            variance_noise: N(0, I) to use in place of a draw.
            eta: pipelines pass it; 0 asks for nothing.
        """
        run, only_eta = self._own.run or self._announced("step"), self.config["eta"]
        if eta and only_eta is not None and eta != only_eta:
            raise ValueError(f"this sampler was exported for eta={only_eta} and cannot do eta={eta}")
        x, m = sample, model_output
        if m.shape != x.shape:
            if m.dim() != x.dim() or x.dim() < 2 or m.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
                raise ValueError(f"model_output {tuple(m.shape)} and sample {tuple(x.shape)} differ in shape")
            m = m[:, : x.shape[1]]  # the other half is a variance, which these tables do not use
        calls = run.calls or run.start(timestep, self.config)
        if run.position == len(calls):
            raise ValueError(f"this run's {len(run.values)} calls are made; call set_timesteps() to begin another")
        call, dtype = calls[run.position], torch.float64 if x.dtype == torch.float64 else torch.float32
        x, m, noise = x.to(dtype), m.to(dtype), None
        if call.noisy and variance_noise is not None:
            if variance_noise.shape != x.shape:
                raise ValueError(
                    f"variance_noise must be {tuple(x.shape)} as sample, got {tuple(variance_noise.shape)}"
                )
            noise = variance_noise.to(device=x.device, dtype=dtype)
        elif call.noisy:  # drawn in float32 whatever the dtype: one seed is one picture in every precision
            noise = randn_tensor(x.shape, generator, x.device, torch.float32).to(dtype)
        previous = run.advance(call, x, m, noise).to(sample.dtype)
        if not return_dict:
            return (previous,)
        output = StepOutput(prev_sample=previous)
        output._x0 = lambda: run.denoised(call, x, m).to(sample.dtype)
        return output

    def _levels(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma at whole or fractional timesteps, shaped to broadcast over `like`. Between the training's
        timesteps log(sigma / alpha) is linear; for flow matching, or beside a timestep without signal, alpha is.
        """
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        t, key, trained = t.reshape(-1).to(like.device), (dtype, like.device), self.config["trained"]
        if key not in self._cache:
            values = (torch.tensor(trained[name], dtype=dtype, device=like.device) for name in ("alpha", "sigma"))
            self._cache[key] = tuple(values)
        alpha, sigma = self._cache[key]
        low = t.floor().long() if t.is_floating_point() else t
        a, s = alpha[low], sigma[low]
        if t.is_floating_point():
            high, part = (low + 1).clamp(max=len(alpha) - 1), (t - low).to(dtype)
            between = torch.lerp(a, alpha[high], part)
            if not trained.get("flow"):
                log_ratio = torch.log(sigma / alpha)
                curved = torch.sigmoid(-2 * torch.lerp(log_ratio[low], log_ratio[high], part)) ** 0.5
                between = torch.where(alpha[high] == 0, between, curved)
            a = torch.where(part == 0, a, between)
            s = torch.where(part == 0, s, 1 - a if trained.get("flow") else torch.sqrt(1 - a**2))
        shape = (-1,) + (1,) * (like.dim() - 1)
        return a.reshape(shape), s.reshape(shape)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t x0 + sigma_t noise."""
        alpha, sigma = self._levels(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t noise - sigma_t x0."""
        alpha, sigma = self._levels(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """alpha_t^2, float32."""
        return torch.tensor([a * a for a in self.config["trained"]["alpha"]], dtype=torch.float32)

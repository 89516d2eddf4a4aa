"""A pipeline as a problem: its U-Net, called with the very conditions that the pipeline itself would give it.

What a pipeline hands to its U-Net is taken from a call of the pipeline that is ended at the U-Net's door. So every kind
of U-Net pipeline is understood that guides in one batch, without a word here about what its conditions are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..schedulers import NoiseSchedule, TableScheduler, make_scheduler
from ..schedulers.prediction import hook_from_config, linear_map
from ..unets import sampling
from .problem import Predictions, Problem

GUIDED = 5.0
"""Any guidance that makes a pipeline guide."""


class _AtTheDoor(Exception):
    """Raised where the pipeline calls its U-Net, to end the pipeline's call."""


@dataclass(frozen=True)
class Conditions:
    """What a pipeline gives its U-Net beside the timestep.

    Args:
        start: the latents, `(pairs, channels, height, width)` in float32.
        rows: arguments that have a row for each prediction, `(2 pairs, ...)`: first without prompts, then with them.
        same: arguments that are the same for every prediction.
    """

    start: Tensor
    rows: dict[str, Any]
    same: dict[str, Any]


def scheduler_of(pipe: Any) -> TableScheduler:
    """A scheduler of this package for the pipeline's model, for its noise schedule and what its network predicts.

    Raises:
        InputError: the pipeline's own scheduler does not tell.
    """
    config = getattr(getattr(pipe, "scheduler", None), "config", None)
    if config is None or "num_train_timesteps" not in config:
        name = type(getattr(pipe, "scheduler", None)).__name__
        raise InputError(f"the scheduler {name} does not tell the noise schedule that the model was trained on")
    return make_scheduler("dpm++ 2m", config)


def check_unet(pipe: Any) -> Any:
    """The pipeline's U-Net.

    Raises:
        InputError: it has none, or one that expects what is not known here.
    """
    unet = getattr(pipe, "unet", None)
    name = type(pipe).__name__
    if not isinstance(unet, torch.nn.Module):
        raise InputError(f"{name} has no U-Net; only pipelines with one can be calibrated")
    config: Any = getattr(unet, "config", {})
    channels = config.get("in_channels"), config.get("out_channels")
    if channels[0] != channels[1]:
        raise InputError(
            f"the U-Net of {name} takes {channels[0]} channels and gives {channels[1]}; only those that take latents "
            "alone can be calibrated (no inpainting, depth or upscaling networks)"
        )
    if config.get("encoder_hid_dim_type") in ("ip_image_proj", "image_proj", "text_image_proj"):
        raise InputError(
            f"the U-Net of {name} expects a picture with each prompt (IP-Adapter), and a calibration has none: call "
            "pipe.unload_ip_adapter() first"
        )
    if config.get("time_cond_proj_dim") is not None:
        raise InputError(f"the U-Net of {name} is told the guidance (a distilled model), and guides no second time")
    return unet


@contextmanager
def _lent(pipe: Any, scheduler: Any) -> Iterator[None]:
    """The pipeline with another scheduler and without its progress bar. Afterwards it is as it was, also in what a
    call leaves in it, such as the strength of guidance.
    """
    own, before = pipe.scheduler, {name: value for name, value in vars(pipe).items() if name.startswith("_")}
    pipe.scheduler = scheduler
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**before.get("_progress_bar_config", {}), "disable": True})
    try:
        yield
    finally:
        pipe.scheduler = own
        for name in [name for name in vars(pipe) if name.startswith("_") and name not in before]:
            delattr(pipe, name)
        vars(pipe).update({name: value for name, value in before.items() if name != "_internal_dict"})


def conditions(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int] | None, negative: str = ""
) -> Conditions:
    """What the pipeline gives its U-Net for these prompts and seeds.

    Args:
        pipe: the pipeline.
        prompts: one for each pair.
        seeds: of each pair's noise, drawn on the CPU, as `generate --seed` does.
        size: (width, height) in pixels; None is the pipeline's own.
        negative: the negative prompt of all.

    Raises:
        InputError: the pipeline refuses, or does not call a U-Net with guidance in one batch.
    """
    unet = check_unet(pipe)
    seen: dict[str, Any] = {}

    def look(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.update(inspect.signature(module.forward).bind(*positional, **named).arguments)
        raise _AtTheDoor

    accepted = inspect.signature(pipe.__call__).parameters
    arguments: dict[str, Any] = {
        "prompt": list(prompts),
        "num_inference_steps": 1,
        "guidance_scale": GUIDED,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "output_type": "latent",
    }
    if negative:
        arguments["negative_prompt"] = [negative] * len(prompts)
    if size is not None:
        arguments["width"], arguments["height"] = size
    if missing := [name for name in arguments if name not in accepted]:
        raise InputError(f"{type(pipe).__name__} does not take {', '.join(missing)}, so it cannot be calibrated")
    handle = unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with _lent(pipe, scheduler_of(pipe)), torch.no_grad():
            pipe(**arguments)
    except _AtTheDoor:
        pass
    except InputError:
        raise
    except (ValueError, TypeError) as error:  # the pipeline's own check of its arguments
        raise InputError(f"{type(pipe).__name__} refuses to draw these prompts: {error}") from error
    finally:
        handle.remove()
    return _sorted(pipe, seen, len(prompts))


def _sorted(pipe: Any, seen: dict[str, Any], pairs: int) -> Conditions:
    """The arguments of a call of the U-Net, divided into those with a row for each prediction and the others."""
    arguments = {**{k: v for k, v in seen.items() if k != "kwargs"}, **seen.get("kwargs", {})}
    sample = arguments.pop("sample", None)
    arguments.pop("timestep", None)
    arguments.pop("return_dict", None)
    if not isinstance(sample, Tensor) or len(sample) != 2 * pairs:
        raise InputError(f"{type(pipe).__name__} does not guide in one batch of its U-Net, so it cannot be calibrated")
    rows = {name: value for name, value in arguments.items() if _has_rows(value, 2 * pairs)}
    same = {name: value for name, value in arguments.items() if name not in rows}
    return Conditions(sample[:pairs].float(), rows, same)


def _has_rows(value: Any, rows: int) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_has_rows(each, rows) for each in value.values())
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows


def _taken(value: Any, rows: Tensor) -> Any:
    if isinstance(value, dict):
        return {name: _taken(each, rows) for name, each in value.items()}
    return value[rows.to(value.device)]


def _joined(some: Sequence[Any]) -> Any:
    """Conditions of several batches as one: those without prompts first, then those with them."""
    if isinstance(some[0], dict):
        return {name: _joined([each[name] for each in some]) for name in some[0]}
    halves = [each.chunk(2) for each in some]
    return torch.cat([first for first, _ in halves] + [second for _, second in halves])


def exactly(unet: Any) -> AbstractContextManager[Any]:
    """Context manager: the U-Net reuses and leaves out nothing."""
    return getattr(unet, "exactly", nullcontext)()


class PipelineProblem(Problem):
    """A pipeline's U-Net on prompts and seeds.

    Args:
        pipe: a pipeline with a U-Net, as it would draw: LoRAs and embeddings in use, attention chosen, on its device.
        prompts: one for each pair.
        seeds: one for each pair.
        size: (width, height) in pixels; None is the pipeline's own.
        negative: the negative prompt.
        batch: pairs in one call of the network; halved by `measured` where memory is too small.

    Raises:
        InputError: a pipeline that is not understood.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        size: tuple[int, int] | None = None,
        negative: str = "",
        batch: int = 16,
    ):
        if not prompts:
            raise InputError("no prompts to calibrate with; give some, one for each picture")
        self.pipe, self.unet, self.batch = pipe, check_unet(pipe), batch
        self.scheduler: Any = scheduler_of(pipe)
        self.config = self.scheduler.config
        self.schedule: NoiseSchedule = self.scheduler.schedule
        self.prediction_type = self.config["prediction_type"]
        self.hook = hook_from_config(self.config)
        self.stateful = bool(getattr(self.unet, "active_features", ()))
        self.step = 1e-2 if self.unet.dtype == torch.float32 else 3e-2
        made = [
            conditions(pipe, prompts[i : i + batch], seeds[i : i + batch], size, negative)
            for i in range(0, len(prompts), batch)
        ]
        self.starts = torch.cat([each.start for each in made])
        self.rows = {name: _joined([each.rows[name] for each in made]) for name in made[0].rows}
        self.same = made[0].same
        self.pairs = len(prompts)

    def start(self, pairs: range) -> Tensor:
        return self.starts[pairs.start : pairs.stop]

    def begin(self, whole_calls: Sequence[int] | None = None) -> None:
        self.scheduler.whole_calls = whole_calls
        if hasattr(self.unet, "reset"):
            self.unet.reset()

    def exactly(self) -> AbstractContextManager[Any]:
        """U-Nets of this package can reuse features; then the rows are fitted to what they do so, not the pictures."""
        return exactly(self.unet)

    def predict(self, pairs: range, x: Tensor, t: float, alpha: float, sigma: float, guidance: float) -> Predictions:
        guided = guidance > 1
        rows = torch.arange(pairs.start, pairs.stop)
        rows = torch.cat([rows, rows + self.pairs]) if guided else rows + self.pairs
        told = torch.tensor(t, dtype=torch.float32, device=x.device)
        given = {name: _taken(value, rows) for name, value in self.rows.items()}
        sample = (torch.cat([x, x]) if guided else x).to(self.unet.dtype)
        telling = sampling(self.unet, guidance_scale=guidance, scheduler=self.scheduler)
        with torch.no_grad(), telling:
            said = self.unet(sample, told, **given, **self.same, return_dict=False)[0].to(x.dtype)
        if not guided:
            return self._x0(x, said, alpha, sigma), None
        free, prompted = said.chunk(2)
        return self._x0(x, free + guidance * (prompted - free), alpha, sigma), self._x0(x, free, alpha, sigma)

    def _x0(self, x: Tensor, said: Tensor, alpha: float, sigma: float) -> Tensor:
        cx, cm = linear_map(self.prediction_type, "x0", alpha, sigma)
        x0 = cx * x + cm * said
        return x0 if self.hook is None else self.hook(x0)

"""A sampler's run as JSON, for programs that are not this one: browsers, servers, other languages.

    text = to_json(scheduler)            a scheduler on which `set_timesteps` was called
    sd-ext samplers "dpm++ 2m karras" --steps 8 --json

What the file holds is told in docs/interchange.md and checked by the JSON schema beside the runner in JavaScript,
docs/live/sampler.schema.json and docs/live/runner.js: the table (see `table.Table`), what the network predicts, what it
is told at each call, and the scale of the first noise. Whoever has a network needs nothing else to draw with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..declared import make
from ..errors import InputError
from ..reading import parse_json
from .export import RunsTables
from .prediction import Hook, Prediction, clip_hook
from .run import Run
from .table import Table

FORMAT = "sd_ext.run/1"
"""What the JSON of a run says it is."""

WHERE = "not a sampler's run: it"

Kind = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "consistency"]
"""What a network predicts; see `prediction.linear_map`."""


@dataclass(frozen=True, eq=False)
class Interchanged:
    """One announced run of a sampler.

    Args:
        sampler: what made it, for people; "" if nothing is known.
        prediction: what the network's output is.
        timesteps: what the network is told at each call, `(calls,)`.
        init_noise_sigma: the scale of the first latent, out of N(0, I).
        table: the coefficients.
        clip: x0 is clipped to -clip ... clip at each call; None, it is not.
        companion: for a table of two fields, that of one field which stands in for it where a network gives no halves
            of its guided predictions.

    Raises:
        InputError: parts that do not fit together.
    """

    sampler: str
    prediction: Prediction
    timesteps: tuple[float, ...]
    init_noise_sigma: float
    table: Table
    clip: float | None = None
    companion: Table | None = None

    def __post_init__(self) -> None:
        if len(self.timesteps) != self.table.calls:
            raise InputError(f"{self.table.calls} calls need as many timesteps, got {len(self.timesteps)}")
        if self.prediction.kind not in get_args(Kind):
            raise InputError(f"prediction.kind must be one of {get_args(Kind)}, got {self.prediction.kind!r}")
        if self.prediction.sigma_data <= 0 or self.init_noise_sigma <= 0 or (self.clip is not None and self.clip <= 0):
            raise InputError("sigma_data, init_noise_sigma and clip must be above 0")
        if self.companion is not None and (self.table.fields, self.companion.fields) != (2, 1):
            raise InputError("a companion has one field, and stands in for a table of two")
        if self.companion is not None and self.companion.calls != self.table.calls:
            raise InputError(f"the companion makes {self.companion.calls} calls, the table {self.table.calls}")

    @property
    def hook(self) -> Hook | None:
        """What is done to each prediction of x0."""
        return None if self.clip is None else clip_hook(self.clip)

    def run(self, halves: bool = True) -> Run:
        """The run, at its first call.

        Args:
            halves: whether the network gives both halves of its guided predictions; else the companion runs, if there
                is one.
        """
        table = self.table if halves or self.companion is None else self.companion
        return Run(table, self.prediction, self.hook)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; floats survive JSON exactly."""
        kind, sign, sigma_data, sigma_min = self.prediction
        return {
            "format": FORMAT,
            "sampler": self.sampler,
            "prediction": {"kind": kind, "sign": sign, "sigma_data": sigma_data, "sigma_min": sigma_min},
            "timesteps": list(self.timesteps),
            "init_noise_sigma": self.init_noise_sigma,
            **({} if self.clip is None else {"clip": self.clip}),
            "table": self.table.to_dict(),
            **({} if self.companion is None else {"companion": self.companion.to_dict()}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interchanged:
        """The reverse of `to_dict`; everything is checked.

        Raises:
            InputError: a key is missing, of another type, or the format is another one.
            TableError: the numbers are not a table.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise InputError(f"not a sampler's run: expected 'format': {FORMAT!r}")
        saved = make(_Saved, data, WHERE)
        prediction = make(_Prediction, saved.prediction, WHERE, "prediction")
        companion = None if saved.companion is None else Table.from_dict(saved.companion)
        try:
            return cls(
                saved.sampler, Prediction(**vars(prediction)), tuple(map(float, saved.timesteps)),
                float(saved.init_noise_sigma), Table.from_dict(saved.table), saved.clip, companion,
            )  # fmt: skip
        except InputError as problem:
            raise type(problem)(f"{WHERE} is wrong: {problem}") from None

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Interchanged:
        """The reverse of `to_json`. Raises `InputError` for text that is not JSON, or not a run."""
        return cls.from_dict(parse_json(text, WHERE))


@dataclass(frozen=True)
class _Prediction:
    """What `Prediction` is as JSON."""

    kind: Kind
    sign: float = 1.0
    sigma_data: float = 1.0
    sigma_min: float = 0.0


@dataclass(frozen=True)
class _Saved:
    """What a run is as JSON."""

    prediction: Mapping[str, Any]
    timesteps: Sequence[float]
    init_noise_sigma: float
    table: Mapping[str, Any]
    sampler: str = ""
    clip: float | None = None
    companion: Mapping[str, Any] | None = None


def interchanged(scheduler: RunsTables, begin_index: int = 0, sampler: str = "") -> Interchanged:
    """The run that a scheduler has announced.

    Args:
        scheduler: on which `set_timesteps` was called; it is left as it is.
        begin_index: the call that it begins at (image to image).
        sampler: what to call it; "" takes the class's name.

    Raises:
        InputError: no run is announced, it has no such call, or the scheduler does at run time what no table says:
            dynamic thresholding, noise from a Brownian path, noise or variance from elsewhere.
    """
    config, name = scheduler.config, type(scheduler).__name__
    reason = getattr(scheduler, "not_exportable", None)
    if config.get("thresholding"):
        reason = "dynamic thresholding looks at each picture; set thresholding=False"
    if config.get("noise_type", "gaussian") != "gaussian":
        reason = f"noise_type {config['noise_type']!r} is not in a table; set it to 'gaussian'"
    if reason:
        raise InputError(f"{name} cannot be written as a table alone: {reason}")
    if scheduler.num_inference_steps is None:
        raise InputError(f"{name} has no run to write: call set_timesteps() first")
    if not 0 <= begin_index < scheduler.num_inference_steps:
        raise InputError(f"begin_index must be 0 to {scheduler.num_inference_steps - 1}, got {begin_index}")
    return Interchanged(
        sampler or name,
        scheduler.schedule.prediction,
        tuple(float(t) for t in scheduler.timesteps[begin_index:].tolist()),
        float(scheduler.init_noise_sigma),
        scheduler.table(begin_index),
        float(config["clip_sample_range"]) if config.get("clip_sample") else None,
        scheduler.companion(begin_index),
    )


def to_json(scheduler: RunsTables, begin_index: int = 0) -> str:
    """The run that a scheduler has announced, as JSON text; arguments and errors as `interchanged`."""
    return interchanged(scheduler, begin_index).to_json()


def from_json(text: str) -> Interchanged:
    """A run out of JSON text; see `Interchanged.from_json`."""
    return Interchanged.from_json(text)

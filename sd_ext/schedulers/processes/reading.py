"""What a scheduler's config says of its process, in this package's options.

Two kinds of configs come: of this package, which say all of it, and of Diffusers, where part is in the name of the
class. A class that is not in the lists below is believed if its config has the keys that say it, and refused if not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from ...errors import InputError, UnknownNameError

PROCESSES = ("betas", "continuous", "flow", "unit_flow", "edm", "cosine", "consistency", "angle")
"""What `process` can say; without it, it is one of the first three, by the other options."""

MOST_TIMESTEPS = 100_000
"""A hundred times what models have; more would fill the memory."""

OF_FLOW = ("shift", "flow_shift", "use_dynamic_shifting", "shift_terminal", "invert_sigmas")
"""Options that move or turn round the sigmas of flow matching, and mean nothing elsewhere."""

PRECONDITIONED = ("edm", "cosine", "consistency")
"""Processes whose networks predict relative to the spread of the data, `sigma_data`."""


@dataclass
class ProcessOptions:
    """The options of every scheduler of this package that are about the model's process, checked; `base.TableScheduler`
    says what each means.

    Raises:
        InputError: a value that no model has, or options of one process beside another.
    """

    process: str | None = None
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    rescale_betas_zero_snr: bool | None = False
    snr_shift_scale: float | None = 1.0
    prediction_type: str = "epsilon"
    timestep_type: str = "discrete"
    use_flow_sigmas: bool | None = False
    shift: float = 1.0
    flow_shift: float = 1.0
    use_dynamic_shifting: bool | None = False
    base_shift: float | None = 0.5
    max_shift: float | None = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None
    invert_sigmas: bool = False
    sigma_data: float | None = None
    sigma_schedule: str | None = None
    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise InputError(f"num_train_timesteps must be 1 to {MOST_TIMESTEPS:,}, got {self.num_train_timesteps}")
        if self.process is not None and self.process not in PROCESSES:
            raise UnknownNameError("process", self.process, PROCESSES)
        self._choices()
        self._positive()
        self._of_this_process()

    @property
    def kind(self) -> str:
        """Which of `PROCESSES` this is."""
        if self.process is not None:
            return self.process
        if self.use_flow_sigmas or self.prediction_type == "flow_prediction":
            return "flow"
        # Diffusers' Euler, which has this option, tells other networks whole timesteps.
        continuous = self.timestep_type == "continuous" and self.prediction_type == "v_prediction"
        return "continuous" if continuous else "betas"

    @property
    def flows(self) -> bool:
        """Whether this is flow matching."""
        return self.kind in ("flow", "unit_flow")

    @property
    def fixed_shift(self) -> float:
        """The shift of flow matching, by either of its names."""
        return self.shift if self.shift != 1 else self.flow_shift

    def _choices(self) -> None:
        for name, allowed in (
            ("time_shift_type", ("exponential", "linear")),
            ("timestep_type", ("discrete", "continuous")),
            ("sigma_schedule", ("karras", "exponential", None)),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")

    def _positive(self) -> None:
        for name in ("shift", "flow_shift", "rho", "sigma_data", "snr_shift_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, got {value!r}")
        if self.shift_terminal and not 0 < self.shift_terminal < 1:
            raise InputError(f"shift_terminal must be between 0 and 1, got {self.shift_terminal!r}")
        if self.shift != 1 and self.flow_shift != 1 and self.shift != self.flow_shift:
            raise InputError(
                f"shift={self.shift:g} and flow_shift={self.flow_shift:g} are two names of one thing; give one of them"
            )

    def _of_this_process(self) -> None:
        kind = self.kind
        own = f"this config's process is {kind!r} (prediction_type {self.prediction_type!r})"
        if not self.flows:
            usual = {field.name: field.default for field in fields(self)}
            given = [name for name in OF_FLOW if getattr(self, name) not in (None, usual[name])]
            if given:
                raise InputError(
                    f"{given[0]}={getattr(self, given[0])!r} is of flow matching, and {own}: leave it out, or give "
                    "prediction_type='flow_prediction'"
                )
        elif self.sigma_max is not None and self.sigma_max > 1 and not self.use_flow_sigmas:
            raise InputError(
                f"sigma_max={self.sigma_max:g} is no sigma of flow matching, which ends at 1; models that run another "
                "process through a flow scheduler, as Cosmos does, keep theirs"
            )
        if self.sigma_data is not None and kind not in PRECONDITIONED:
            raise InputError(
                f"sigma_data={self.sigma_data:g} is of networks with EDM's preconditioning, and {own}: leave it out, "
                "or give process='edm'"
            )
        if kind != "betas" and self.snr_shift_scale not in (None, 1):
            raise InputError(f"snr_shift_scale={self.snr_shift_scale:g} is of processes with betas, and {own}")


NAMES = tuple(field.name for field in fields(ProcessOptions))

# ---- Diffusers' classes ----------------------------------------------------------------------------------------------

_FLOW = {"prediction_type": "flow_prediction"}

_BY_KEYS = [
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
]

UNDERSTOOD: dict[str, dict[str, Any]] = {
    **{name: {} for name in _BY_KEYS},
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "LTXEulerAncestralRFScheduler": _FLOW,
    "MiniMaxH3Scheduler": {**_FLOW, "process": "unit_flow"},
    "EDMEulerScheduler": {"process": "edm"},
    "EDMDPMSolverMultistepScheduler": {"process": "edm"},
    "CosineDPMSolverMultistepScheduler": {"process": "cosine"},
    "CMStochasticIterativeScheduler": {"process": "consistency", "prediction_type": "sample"},
    "IPNDMScheduler": {"process": "angle", "prediction_type": "v_prediction"},
}
"""Classes of Diffusers 0.42 whose process is known: their keys say it, with what is added here where they do not."""

_TOKENS = "it takes masks from tokens, and there is no noise in the process that a sampler could take"
REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "ConsistencyDecoderScheduler": "it belongs to an autoencoder's decoder, which calls it at two timesteps of its own",
    "DDPMWuerstchenScheduler": "its pipelines leave the last timestep out, so that other samplers would not end",
    "FlowMapEulerDiscreteScheduler": "its network is a flow map, which must also be told where a step ends",
    "HeliosScheduler": "it goes through stages of several sizes, with noise added in between",
    "HeliosDMDScheduler": "it goes through stages of several sizes, with noise added in between",
    "KarrasVeScheduler": "its pipeline runs algorithm 2 of arXiv 2206.00364 itself, with methods of its own",
    "PiflowScheduler": "its network predicts a policy for a whole stretch, not the noise or the picture at one level",
    "RFD4ProteinaScheduler": "it moves several kinds of coordinates at once, each on its own schedule",
    "SCMScheduler": "its pipeline leaves out the last of its timesteps and reads a second output of each step",
    "ScoreSdeVeScheduler": "its network predicts the score, and its pipeline corrects between the steps",
    "ScoreSdeVpScheduler": "its network predicts the score, and its pipeline corrects between the steps",
}
"""Classes whose process samplers of tables cannot run, and why."""

ENOUGH = {"process", "beta_schedule", "trained_betas", "beta_start", "prediction_type", "use_flow_sigmas"}
"""Keys by one of which a config of an unknown class says its process."""


@lru_cache(maxsize=1)
def signatures() -> dict[str, dict[str, Any]]:
    """The constructor arguments of the classes above and their defaults, of those that this Diffusers has."""
    import diffusers  # importing it takes seconds
    from diffusers.utils import DummyObject

    found = {}
    for name in (*UNDERSTOOD, *REFUSED):
        cls = getattr(diffusers, name, None)
        if inspect.isclass(cls) and not isinstance(cls, DummyObject):  # which stands in for one that lacks a library
            parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
            found[name] = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    return found


def class_name(config: Mapping[str, Any]) -> str | None:
    """The class that a config is of. A scheduler that was made and not loaded has a config without a name, but with
    every argument of its class: it is the class with just these.
    """
    name = config.get("_class_name")
    name = name[-1] if isinstance(name, list | tuple) and name else name
    if isinstance(name, str):
        return name
    keys = {key for key in config if not key.startswith("_")}
    if keys == {"shift"} and type(config) is dict:  # written by hand; also all that a made MiniMaxH3Scheduler says
        return "FlowMatchEulerDiscreteScheduler"
    same = [name for name, arguments in signatures().items() if arguments and keys == arguments.keys()]
    if config.get("trained_betas") is not None and "IPNDMScheduler" in same:
        return None  # betas of the caller's own
    if not same and "shift" in keys and not ENOUGH & keys:
        return "FlowMatchEulerDiscreteScheduler"
    return same[0] if same else None


def defaults_of(name: str | None) -> dict[str, Any]:
    """What the Diffusers class of this name takes for the options of a process that its config leaves out."""
    if name not in UNDERSTOOD:
        return {}
    arguments = signatures().get(name, {})
    return {key: value for key, value in arguments.items() if key in NAMES and value is not inspect.Parameter.empty}


def read(config: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a config says of its process.

    Args:
        config: of any scheduler; a class of Diffusers stands for what it does not say.
        given: options that go before it.

    Returns:
        Options of this package, by name; those that nothing is said about are left out.

    Raises:
        InputError: a class whose process samplers cannot run, or one that is not known and does not say it.
    """
    given, name = given or {}, class_name(config)
    if name in REFUSED:
        raise InputError(f"a config of {name} cannot be run by samplers of tables: {REFUSED[name]}")
    said = {key: config[key] for key in NAMES if key in config}
    if name is not None and name not in UNDERSTOOD and not ENOUGH & {*said, *given}:
        raise InputError(
            f"which process a config of {name} describes is not known here; say it with prediction_type and, for flow "
            "matching, shift"
        )
    if name == "FlowMatchLCMScheduler" and config.get("scale_factors"):
        raise InputError("a FlowMatchLCMScheduler with scale_factors resizes the latent between calls; leave them out")
    told = defaults_of(name) | said
    if said.get("process") is None and not (name == "IPNDMScheduler" and "beta_schedule" in said):
        for key, value in UNDERSTOOD.get(name or "", {}).items():
            if said.get(key) is None:
                told[key] = value
    told = one_shift(told | _known(given))
    # DDIM and DDPM clip unless told otherwise, for pixels between -1 and 1; consistency models say it so.
    if not _of_betas(told) and "clip_sample" not in given and "clip_sample" not in config:
        told["clip_sample"] = name == "CMStochasticIterativeScheduler" and bool(config.get("clip_denoised", True))
    elif _does_not_clip(name) and "clip_sample" not in given and not config.get("clip_sample"):
        told["clip_sample"] = False
    return told


def _does_not_clip(name: str | None) -> bool:
    """Whether Diffusers' class of this name leaves x0 as it is unless told otherwise: so does another sampler then."""
    return name in UNDERSTOOD and not signatures().get(name or "", {"clip_sample": True}).get("clip_sample")


def _of_betas(told: Mapping[str, Any]) -> bool:
    """Whether what a config says is the process of most models."""
    flow = told.get("prediction_type") == "flow_prediction" or told.get("use_flow_sigmas")
    return not flow and told.get("process") in (None, "betas") and told.get("timestep_type") != "continuous"


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of the process; one of the two names of the shift stands for both."""
    told = {key: value for key, value in given.items() if key in NAMES}
    if ("shift" in told) != ("flow_shift" in told) and isinstance(told.get("shift", 1), int | float):
        told["shift"] = told["flow_shift"] = told.get("shift", told.get("flow_shift"))
    return told


def one_shift(told: dict[str, Any]) -> dict[str, Any]:
    """The same with the shift of flow matching under both of its names, `shift` of Diffusers' flow schedulers and
    `flow_shift` of its others, so that either kind reads it.
    """
    if told.get("prediction_type") != "flow_prediction" and not told.get("use_flow_sigmas"):
        return told
    shift, flow_shift = told.get("shift", 1.0), told.get("flow_shift", 1.0)
    if all(isinstance(value, int | float) for value in (shift, flow_shift)) and 1 in (shift, flow_shift):
        told = told | {
            "shift": flow_shift if shift == 1 else shift,
            "flow_shift": shift if flow_shift == 1 else flow_shift,
        }
    return told

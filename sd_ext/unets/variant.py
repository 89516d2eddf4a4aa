"""A U-Net with every feature of this package, all neutral until switched on."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING as EXPANSIONS
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput

from ..errors import InputError, UnknownNameError
from .attention.processors import AttentionSwitch
from .features.cache import DeepFeatureCache
from .features.feature import Feature, Inner
from .features.freeu import FreeU, FreeUSwitch, adopted
from .features.gate import CrossAttentionGate
from .features.highres import HighRes
from .features.perturbed import PerturbedGuidance
from .features.tokens import TokenReduction
from .inside.sharing import share
from .steps import Call, States

FEATURES: tuple[Feature, ...] = (
    PerturbedGuidance(),
    HighRes(),
    TokenReduction(),
    FreeU(),
    CrossAttentionGate(),
    DeepFeatureCache(),
)
"""Every feature, outermost first: guidance, then (`before_steps` ends) large pictures, gating, cache."""

OPTIONS: dict[str, Any] = {name: value for feature in FEATURES for name, value in feature.options.items()}
PLAIN = UNet2DConditionModel
EAGER: Callable[..., Any] = torch.compiler.disable(PLAIN.forward)
log = logging.getLogger(__name__)
ARGUMENTS = tuple(inspect.signature(PLAIN.forward).parameters)[4:]
"""The arguments of `forward` after `encoder_hidden_states`, in their order."""

Variant = TypeVar("Variant", bound="VariantUNet2DConditionModel")


class VariantUNet2DConditionModel(AttentionSwitch, FreeUSwitch, UNet2DConditionModel):
    """`UNet2DConditionModel` with this package's features. Takes every argument of it, and the features' options.

    Options are in the config: `save_pretrained` and `from_pretrained` keep them, and Diffusers' own class loads what
    was saved. `from_pretrained(path, **options)` takes any checkpoint of a `UNet2DConditionModel`. With neutral
    options, which are the default, the model is the plain one to the last bit.

    Raises:
        InputError: an option that this model cannot have, or a checkpoint of another architecture.
    """

    _defaults: ClassVar[dict[str, Any]] = {}
    """Options that a subclass switches on."""
    _compiled: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _settle(cls)

    # ---- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As Diffusers', but a configuration of another architecture and an unknown option are errors."""
        _check_architecture(cls, config)
        known = set(inspect.signature(cls.__init__).parameters)
        for name in kwargs:
            if name not in known and not name.startswith("_"):
                raise UnknownNameError(f"option of {cls.__name__}", name, OPTIONS)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def from_unet(cls: type[Variant], unet: torch.nn.Module, **options: Any) -> Variant:
        """This class around the weights of a U-Net in memory; nothing is copied but the structure.

        Parameters and buffers are the same objects in both: moving, casting, training or fusing one does it to the
        other. Attention processors, adapters loaded later, hooks and options are each model's own.

        Args:
            unet: a `UNet2DConditionModel`, also with peft adapters or compiled. Offloading hooks are refused: enable
                offloading afterwards.
            options: of features. Where not given, a variant's own are kept, and what this class switches on is on.
        """
        unet = getattr(unet, "_orig_mod", unet)
        if not isinstance(unet, UNet2DConditionModel):
            raise InputError(f"from_unet() takes a UNet2DConditionModel, got {type(unet).__name__}")
        _check_known(options)
        model = cls.__new__(cls)
        model.__dict__.update(unet._bare_copy() if isinstance(unet, VariantUNet2DConditionModel) else share(unet))
        PLAIN.disable_freeu(model)
        # A plain one loaded from a variant's folder has the options in its config, and does nothing by them.
        own = unet.options if isinstance(unet, VariantUNet2DConditionModel) else adopted(unet)
        off = {name for name, neutral in OPTIONS.items() if own.get(name, neutral) == neutral}
        new = {} if isinstance(unet, cls) else {name: on for name, on in cls._defaults.items() if name in off}
        model._begin({**OPTIONS, **own, **new, **options})
        return model

    def _begin(self, options: dict[str, Any]) -> None:
        """The rest of the construction, once there are modules and a config."""
        self._states = States()
        self._compiled = None
        self._undo: list[Callable[[], None]] = []
        self._wraps: tuple[Feature, ...] | None = ()
        self._out = 0
        self._said: set[str] = set()
        self._apply_options(options)

    # ---- options -----------------------------------------------------------------------------------------------------

    def set_options(self, **options: Any) -> None:
        """Change options; those not named stay. Takes effect at the next call, which begins a run.

        Raises:
            InputError: an unknown option, or a value this model cannot have. The model stays as it was.
        """
        _check_known(options)
        self._apply_options({**self.options, **options})

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its value."""
        return {name: self.config[name] for name in OPTIONS}

    @property
    def active_features(self) -> tuple[Feature, ...]:
        """Features that are not neutral, outermost first."""
        return tuple(feature for feature in FEATURES if not feature.is_neutral(self.config))

    def _apply_options(self, options: dict[str, Any]) -> None:
        options = copy.deepcopy(options)  # lists in it are the caller's, or the defaults of all models
        for feature in FEATURES:
            if not feature.is_neutral(options):
                feature.validate(self, options)
        with self.uninstalled():
            _register(self, options)
        self.reset()
        active = self.active_features
        counts = any(feature.needs_steps or (feature.wraps and not feature.before_steps) for feature in active)
        wraps = tuple(feature for feature in active if feature.wraps)
        self._wraps = wraps if wraps or counts else None

    @contextmanager
    def uninstalled(self) -> Iterator[None]:
        """The model without its features' changes in place; they are made again at the end, on what is there then."""
        self._out += 1
        while self._undo:
            self._undo.pop()()
        try:
            yield
        finally:
            self._out -= 1
            if not self._out:
                self._install()

    def _install(self) -> None:
        for feature in self.active_features:
            undo = feature.install(self, self.config)
            if undo is not None:
                self._undo.append(undo)

    def describe(self) -> str:
        """What differs from the plain U-Net, such as `cache (cache_interval=3)`; "plain" if nothing does."""
        parts = []
        for feature in self.active_features:
            changed = {name: self.config[name] for name, neutral in feature.options.items()}
            shown = ", ".join(f"{k}={v!r}" for k, v in changed.items() if v != feature.options[k])
            parts.append(f"{feature.name} ({shown})")
        return "; ".join(parts) or "plain"

    # ---- the call ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the runs in progress: the next call begins one. Needed only where no new timesteps say so."""
        self._states.reset()

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Calls within belong to a run of their own: for several pipelines that take turns with one U-Net.

        Threads need no context: the runs of each are apart anyway.
        """
        return self._states.context(name)

    @property
    def call(self) -> Call | None:
        """The call in progress in this thread: its step and branch. None where no active feature counts steps."""
        return self._states.current().call

    @property
    def memory(self) -> dict[str, Any]:
        """What features remember of this caller's run, by feature; cleared when a run begins."""
        return self._states.current().memory

    @functools.wraps(PLAIN.forward)
    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        plain = self._compiled or PLAIN.forward
        if self._wraps is None:
            return plain(self, sample, timestep, encoder_hidden_states, *args, **kwargs)
        kwargs.update(zip(ARGUMENTS, args, strict=False))
        return self._with_features(sample, timestep, encoder_hidden_states, **kwargs)

    # Without `__wrapped__`: accelerate follows that to take its wrappers off, and would take this one too.
    forward.__signature__ = inspect.signature(PLAIN.forward)  # type: ignore[attr-defined]
    del forward.__wrapped__

    @torch.compiler.disable(recursive=False)
    def _with_features(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        """What to run is decided in eager code; what is run may be compiled."""
        inner: Inner = self._run
        wraps = self._wraps or ()
        for feature in reversed([feature for feature in wraps if not feature.before_steps]):
            inner = functools.partial(feature.forward, self, inner)
        inner = functools.partial(self._counted, inner)
        for feature in reversed([feature for feature in wraps if feature.before_steps]):
            inner = functools.partial(feature.forward, self, inner)
        try:
            prediction = inner(sample, timestep, encoder_hidden_states, **kwargs)
        finally:
            self._states.current().call = None
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _counted(
        self, inner: Callable[..., torch.Tensor], sample: Any, timestep: Any, *args: Any, **kwargs: Any
    ) -> Any:
        call = self._states.observe(timestep)
        call.model = self
        return inner(sample, timestep, *args, **kwargs)

    def _run(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any) -> torch.Tensor:
        """The network itself, or the view of it that a feature has put in its place."""
        call = self.call
        model = self if call is None else call.model
        plain = EAGER if call is not None and call.eager else self._compiled or PLAIN.forward
        return plain(model, sample, timestep, encoder_hidden_states, return_dict=False, **kwargs)[0]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network; takes the arguments of `torch.compile`. Features decide in eager code around it."""
        self._compiled = torch.compile(PLAIN.forward, *args, **kwargs)

    def say_once(self, message: str) -> None:
        """Log a warning, once for each model."""
        if message not in self._said:
            self._said.add(message)
            log.warning("%s: %s", type(self).__name__, message)

    # ---- what changes the modules below the features -----------------------------------------------------------------

    @property
    def attn_processors(self) -> dict[str, Any]:
        """The processors by name, without the features'."""
        with self.uninstalled():
            return super().attn_processors

    # ---- copies ------------------------------------------------------------------------------------------------------

    def _bare_copy(self) -> dict[str, Any]:
        """The attributes of a copy that shares the weights and has no feature installed."""
        with self.uninstalled():
            return share(self)

    def __getstate__(self) -> dict[str, Any]:
        return self._bare_copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin({name: self.config[name] for name in OPTIONS})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self._bare_copy(), memo))
        return other


def _settle(cls: type[VariantUNet2DConditionModel]) -> None:
    """The constructor with all options in its signature, and the short module name that pipelines record."""
    defaults = {**OPTIONS, **cls._defaults}
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    base = inspect.signature(PLAIN.__init__)
    signature = base.replace(parameters=[*base.parameters.values(), *extra])
    build = inspect.unwrap(PLAIN.__init__)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        signature.bind(self, *args, **kwargs)
        options = {name: kwargs.pop(name, value) for name, value in defaults.items()}
        build(self, *args, **kwargs)
        self._begin(options)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    cls.__init__ = register_to_config(__init__)
    EXPANSIONS[cls.__name__] = EXPANSIONS[PLAIN.__name__]  # by its name Diffusers expands LoRA weights by block
    if cls.__module__.startswith("sd_ext."):
        cls.__module__ = "sd_ext"


_settle(VariantUNet2DConditionModel)


def _register(unet: VariantUNet2DConditionModel, options: dict[str, Any]) -> None:
    """Write options into the config, where none of them counts as a default that was left alone."""
    # IP-Adapter loading sets attributes of the config beside its items.
    beside = {k: v for k, v in vars(unet.config).items() if k in unet.config and unet.config[k] is not v}
    defaulted = [name for name in unet.config.get("_use_default_values", []) if name not in OPTIONS]
    unet.register_to_config(**options, _use_default_values=defaulted)
    for name, value in beside.items():
        setattr(unet.config, name, value)


def _check_known(options: dict[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise UnknownNameError("option", name, OPTIONS)


def _check_architecture(cls: type, config: Any) -> None:
    """A checkpoint says its class; its other settings would be taken for ours as far as they have the same names."""
    name = config.get("_class_name", PLAIN.__name__) if isinstance(config, dict) else PLAIN.__name__
    known = {PLAIN.__name__, cls.__name__, *(c.__name__ for c in _subclasses(VariantUNet2DConditionModel))}
    if name not in known:
        raise InputError(f"{cls.__name__} loads checkpoints of {PLAIN.__name__}; this one is of {name}")


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def _guarded(name: str) -> Callable[..., Any]:
    """The inherited method, run with the features' changes undone."""
    inherited = getattr(PLAIN, name)

    @functools.wraps(inherited)
    def method(self: VariantUNet2DConditionModel, *args: Any, **kwargs: Any) -> Any:
        with self.uninstalled():
            self.reset()
            return inherited(self, *args, **kwargs)

    return method


def _forgetting(name: str) -> Callable[..., Any]:
    """The inherited method, after which nothing computed before is reused."""
    inherited = getattr(PLAIN, name)

    @functools.wraps(inherited)
    def method(self: VariantUNet2DConditionModel, *args: Any, **kwargs: Any) -> Any:
        try:
            return inherited(self, *args, **kwargs)
        finally:
            self.reset()

    return method


# A feature's processor wraps what is there; what sets or reads processors sees the ones below.
for _name in ("set_attn_processor", "set_attention_slice"):
    setattr(VariantUNet2DConditionModel, _name, _guarded(_name))
# What changes weights or what is done with them.
for _name in (
    *("load_lora_adapter", "add_adapter", "delete_adapters", "set_adapter", "set_adapters", "unload_lora"),
    *("enable_adapters", "disable_adapters", "enable_lora", "disable_lora", "fuse_lora", "unfuse_lora"),
    *("fuse_qkv_projections", "unfuse_qkv_projections"),
    *("load_state_dict", "_load_ip_adapter_weights"),
):
    setattr(VariantUNet2DConditionModel, _name, _forgetting(_name))

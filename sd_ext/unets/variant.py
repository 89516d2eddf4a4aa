"""A U-Net with all features of this package, each off by default."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from torch.compiler import is_dynamo_compiling

from ..board import BOARD, edits
from ..declared import check
from ..errors import InputError, UnknownNameError
from ..model_configs import GuardedConfig
from ..seams.accelerate import stands_for
from ..seams.diffusers.records import bare_constructor, record_as_ours, write_options
from ..seams.torch import uncompiled
from .attention.processors import AttentionSwitch
from .caching import CacheSwitch
from .features.cache import DeepFeatureCache
from .features.feature import Feature, Inner, check_conflicts
from .features.freeu import FreeU, FreeUSwitch, adopted
from .features.gate import CrossAttentionGate
from .features.highres import HighRes
from .features.mix import GuidanceMix
from .features.nag import NormalisedAttentionGuidance
from .features.options import Option
from .features.perp_neg import PerpNeg
from .features.perturbed import PerturbedGuidance
from .features.sag import SelfAttentionGuidance
from .features.skip import SkippedCalls
from .features.tokens import TokenReduction
from .inside.host import Host, Runs
from .inside.sharing import share
from .inside.steps import States
from .inside.told import UNTOLD, tell
from .motion import watch
from .overrides import Overrides

FEATURES: tuple[type[Feature], ...] = (
    GuidanceMix,
    PerpNeg,
    SelfAttentionGuidance,
    PerturbedGuidance,
    SkippedCalls,
    HighRes,
    TokenReduction,
    FreeU,
    NormalisedAttentionGuidance,
    CrossAttentionGate,
    DeepFeatureCache,
)
"""All features, outermost first. Those with `before_steps` (guidance) must come before all others."""

DECLARED: dict[str, Option] = {name: option for feature in FEATURES for name, option in feature.options.items()}
"""What is declared of every option."""
OPTIONS: dict[str, Any] = {name: option.neutral for name, option in DECLARED.items()}
"""Every option with its neutral value."""
PLAIN = UNet2DConditionModel
EAGER: Callable[..., Any] = torch.compiler.disable(PLAIN.forward)
ARGUMENTS = tuple(inspect.signature(PLAIN.forward).parameters)[4:]
"""The arguments of `forward` after `encoder_hidden_states`, in their order."""

Variant = TypeVar("Variant", bound="VariantUNet2DConditionModel")


def idle(options: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each feature that is off and has options that differ from those it is off with."""
    for feature in FEATURES:
        if feature.is_neutral(options):
            names = [name for name in feature.options if options[name] != OPTIONS[name]]
            if names:
                yield f"{' and '.join(names)} alone changes nothing: the feature {feature.name!r} is off"


class VariantUNet2DConditionModel(
    GuardedConfig, AttentionSwitch, CacheSwitch, FreeUSwitch, Overrides, Runs, UNet2DConditionModel
):
    """`UNet2DConditionModel` with this package's features. Takes all of its arguments, and the options of the features.

    Options are in the config: `save_pretrained` and `from_pretrained` keep them, and Diffusers' own class can load what
    was saved. `from_pretrained(path, **options)` loads any checkpoint of a `UNet2DConditionModel`. With the default
    options, the results equal those of the plain model bit by bit.

    Raises:
        InputError: an option that this model cannot have, or a checkpoint of another architecture.
    """

    _defaults: ClassVar[dict[str, Any]] = {}
    """The options that a subclass switches on by default."""
    _compiled: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _finish_class(cls)

    # ---- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in Diffusers, except that unknown options and configs of other architectures raise an `InputError`."""
        _check_architecture(cls, config)
        known = set(inspect.signature(cls.__init__).parameters)
        for name in kwargs:
            if name not in known and not name.startswith("_"):
                raise UnknownNameError(f"option of {cls.__name__}", name, OPTIONS)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def from_unet(cls: type[Variant], unet: torch.nn.Module, **options: Any) -> Variant:
        """Make a model of this class that shares the weights of a U-Net in memory; only the module structure is copied.

        Parameters and buffers are the same objects in both: moving, casting, training or fusing one changes the other.
        Attention processors, adapters loaded later, hooks and options are separate.

        Args:
            unet: a `UNet2DConditionModel`, which may have peft adapters or be compiled. It must not be offloaded:
                enable offloading afterwards.
            options: options of features. Those not given keep their value if `unet` is a variant; options that this
                class switches on by default are switched on where `unet` has them off, unless it is of this class
                already.

        Raises:
            InputError: another kind of model, an offloaded one, or options that it cannot have.
        """
        unet = uncompiled(unet)
        if not isinstance(unet, UNet2DConditionModel):
            raise InputError(f"from_unet() takes a UNet2DConditionModel, got {type(unet).__name__}")
        _check_known(options)
        model = cls.__new__(cls)
        vars(model).update(unet._bare_copy() if isinstance(unet, VariantUNet2DConditionModel) else share(unet))
        PLAIN.disable_freeu(model)
        # A plain U-Net loaded from a variant's folder has the options in its config too, but they have no effect there.
        own = unet.options if isinstance(unet, VariantUNet2DConditionModel) else adopted(unet)
        off = {name for name, neutral in OPTIONS.items() if own.get(name, neutral) == neutral}
        new = {} if isinstance(unet, cls) else {name: on for name, on in cls._defaults.items() if name in off}
        model._begin({**OPTIONS, **own, **new, **options})
        return model

    def _begin(self, options: dict[str, Any]) -> None:
        """Finish the construction, once modules and config exist."""
        self._states = States()
        self._compiled = None
        self._edits = edits(self.config["in_channels"], self.config["out_channels"])
        self._active: tuple[Feature, ...] = ()
        self._wraps: tuple[Feature, ...] | None = None
        self._apply_options(options)

    # ---- options -----------------------------------------------------------------------------------------------------

    def set_options(self, **options: Any) -> None:
        """Change some options; the others stay. The next call begins a new run, with the new options.

        Raises:
            InputError: an unknown option, or a value that this model cannot have. The model is then unchanged.
        """
        _check_known(options)
        self._apply_options({**self.options, **options})

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Context manager: nothing is reused, frozen or merged; features that save no work act as before."""
        own = self.options
        saving = {name for feature in FEATURES if feature.approximates for name in feature.options}
        if all(own[name] == OPTIONS[name] for name in saving):
            yield
            return
        self.set_options(**{name: OPTIONS[name] for name in saving})
        try:
            yield
        finally:
            self.set_options(**{name: own[name] for name in saving})

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values."""
        return {name: self.config[name] for name in OPTIONS}

    @property
    def active_features(self) -> tuple[Feature, ...]:
        """The features that are switched on, as they are bound to this model, outermost first."""
        return self._active

    def _apply_options(self, options: dict[str, Any]) -> None:
        options = copy.deepcopy(options)  # its lists may belong to the caller, or be defaults that all models share
        for name, option in DECLARED.items():
            check(options[name], option.kind, type(self).__name__, name)
        host: Host = self
        bound = tuple(feature.bind(host, options) for feature in FEATURES if not feature.is_neutral(options))
        check_conflicts(bound)
        with self._states.lock:
            for feature in self._active:
                feature.undo()
            for feature in bound:
                feature.install()
            wraps = tuple(feature for feature in bound if feature.wraps())
            self._active, self._wraps = bound, wraps or None
            write_options(self, options)
        for sentence in idle(options):
            self.say_once(sentence)
        self.reset()

    def describe(self) -> str:
        """The features that are on with their options, such as `cache (cache_interval=3)`; "plain" if none."""
        parts = []
        for feature in self.active_features:
            values = {name: (self.config[name], option.neutral) for name, option in feature.options.items()}
            shown = ", ".join(f"{name}={value!r}" for name, (value, neutral) in values.items() if value != neutral)
            parts.append(f"{feature.name} ({shown})")
        return "; ".join(parts) or "plain"

    def reuse_keys(self) -> tuple[Hashable, ...]:
        """The active features' values that must be equal in two calls for one to reuse features of the other."""
        return tuple(feature.reuse_key() for feature in self._active)

    # ---- the call ----------------------------------------------------------------------------------------------------

    @stands_for(PLAIN.forward)
    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        plain = self._compiled or PLAIN.forward
        if self._wraps is None:
            predicted = plain(self, sample, timestep, encoder_hidden_states, *args, **kwargs)
        else:
            kwargs.update(zip(ARGUMENTS, args, strict=False))
            predicted = self._with_features(sample, timestep, encoder_hidden_states, **kwargs)
        if not is_dynamo_compiling():  # of the ways to ask this the one that takes least
            BOARD.write(timestep, predicted[0], False, self._edits)
        return predicted

    @torch.compiler.disable(recursive=False)
    def _with_features(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        """Run the features around the network. This is ordinary Python; only the network itself may be compiled."""
        inner: Inner = self._run
        wraps = self._wraps or ()
        for feature in reversed([feature for feature in wraps if not feature.before_steps]):
            inner = functools.partial(feature.forward, inner)
        inner = functools.partial(self._counted, inner)
        for feature in reversed([feature for feature in wraps if feature.before_steps]):
            inner = functools.partial(feature.forward, inner)
        state = self._states.current()
        state.told = tell(self, timestep, len(sample))
        try:
            prediction = inner(sample, timestep, encoder_hidden_states, **kwargs)
        finally:
            state.call, state.told = None, UNTOLD
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _counted(
        self, inner: Callable[..., torch.Tensor], sample: Any, timestep: Any, *args: Any, **kwargs: Any
    ) -> Any:
        call = self._states.observe(timestep)
        call.model = self._states.current().base or self
        return inner(sample, timestep, *args, **kwargs)

    def _run(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any) -> torch.Tensor:
        """Run the network, or the view of it that a feature has chosen."""
        call = self.call
        model = self if call is None else call.model
        plain = EAGER if call is not None and call.eager else self._compiled or PLAIN.forward
        return plain(model, sample, timestep, encoder_hidden_states, return_dict=False, **kwargs)[0]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network, with the arguments of `torch.compile`. The features' own code is not compiled."""
        self._compiled = torch.compile(PLAIN.forward, *args, **kwargs)

    # ---- copies ------------------------------------------------------------------------------------------------------

    def _bare_copy(self) -> dict[str, Any]:
        """The attributes for a copy that shares the weights and has no features; this model is not changed by it."""
        with self._states.lock:
            return share(self, without=("_active", "_wraps", "_states"))

    def __getstate__(self) -> dict[str, Any]:
        return self._bare_copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        PLAIN.disable_freeu(self)
        self._begin({name: self.config[name] for name in OPTIONS})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self._bare_copy(), memo))
        return other


def _finish_class(cls: type[VariantUNet2DConditionModel]) -> None:
    """Build a variant class's `__init__`, and set the name under which saved pipelines record the class.

    `__init__` takes the arguments of `UNet2DConditionModel` and, by keyword, every option of every feature. All are in
    its signature, because Diffusers reads from it which entries of a config to pass.

    Args:
        cls: changed in place; its `_defaults` are the options that differ from the neutral ones.
    """
    defaults = {**OPTIONS, **cls._defaults}
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    base = inspect.signature(PLAIN.__init__)
    signature = base.replace(parameters=[*base.parameters.values(), *extra])
    build = bare_constructor(PLAIN)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        signature.bind(self, *args, **kwargs)
        options = {name: kwargs.pop(name, value) for name, value in defaults.items()}
        build(self, *args, **kwargs)
        self._begin(options)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    cls.__init__ = register_to_config(__init__)
    record_as_ours(cls)


_finish_class(VariantUNet2DConditionModel)
watch()


def _check_known(options: dict[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise UnknownNameError("option", name, OPTIONS)


def _check_architecture(cls: type, config: Any) -> None:
    """Raise `InputError` for a config of another class, of which settings of the same name would be used silently."""
    name = config.get("_class_name", PLAIN.__name__) if isinstance(config, dict) else PLAIN.__name__
    known = {PLAIN.__name__, cls.__name__, *(c.__name__ for c in _subclasses(VariantUNet2DConditionModel))}
    if name not in known:
        raise InputError(f"{cls.__name__} loads checkpoints of {PLAIN.__name__}; this one is of {name}")


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)

"""`Feature`: the base of a U-Net variant's features.

One file holds one feature, a class. The class declares options, flat names with JSON values, the same in `set_options`,
in `from_pretrained` and in config.json. `Feature.bind(host, options)` makes an object of it: the feature as it acts in
one model with these options, parsed once, with a state of its own. It acts in one or both of two ways:

- `install` changes the model in place (forward hooks of blocks), and `undo` takes the changes back.
- `forward` wraps the call of the network, and may change its input, its output, or the network that is run.

A feature must not replace registered modules, add parameters or buffers, or set `forward` on a block. This keeps the
names in the state dict those of the plain U-Net, and views of its blocks (`views.py`) run the same hooks. Several
threads may run it at once: what belongs to a call is kept in `host.memory` or in an `OfThread`. What a feature may use
of its model is defined in `inside/host.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from ...errors import InputError
from ..inside.host import Host
from .options import Option

Options = Mapping[str, Any]
Inner = Callable[..., torch.Tensor]
"""The next feature or the plain network: a function of (sample, timestep, encoder_hidden_states, **kwargs)."""
PREDICTION = ("plain prediction", "the network")
"""What guidance by a difference starts from and changes, as something that features take and need."""


class Feature:
    """One feature, bound to a model.

    Args:
        host: the model.
        options: the feature's options, in range. A subclass parses them here, and raises `InputError`, naming the
            option, its value and what this model allows. The model's weights may be on the meta device.

    Attributes:
        host: the model.
        values: the options' values.
        name: its name in messages.
        options: its options, by name. Names begin with the feature, as in `cache_interval`.
        approximates: whether it saves work at the price of exactness.
        before_steps: whether `forward` runs before the step is counted. Such a feature may call `inner` several times;
            each call is a branch of the same step.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Option]]
    approximates: ClassVar[bool] = False
    before_steps: ClassVar[bool] = False

    def __init__(self, host: Host, options: Options):
        self.host, self.values = host, options

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        """Whether these options leave the model as it is; the feature is then not bound at all."""
        return all(options[name] == option.neutral for name, option in cls.options.items())

    @classmethod
    def bind(cls, host: Host, options: Options) -> Self:
        """The feature in a model.

        Args:
            host: the model.
            options: the values of all features' options, of the declared types.

        Raises:
            InputError: an option out of its range, or one that this model cannot have.
        """
        own = {name: options[name] for name in cls.options}
        for name, option in cls.options.items():
            option.check(name, own[name])
        return cls(host, own)

    def takes(self) -> Mapping[tuple[str, str], str]:
        """What it changes in layers of the model that others may need: (what, name of the layer) -> the option."""
        return {}

    def needs(self) -> Mapping[tuple[str, str], str]:
        """What it needs of layers, and by which option; in conflict with `takes` of another feature."""
        return {}

    def install(self) -> None:
        """Change the model in place."""

    def undo(self) -> None:
        """Undo what `install` has changed."""

    def forward(
        self,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute the prediction, by calling `inner`. Runs as ordinary Python, even if the model is compiled.

        Args:
            inner: calls the next feature, with the same arguments as here without `inner`.
            sample: `(batch, in_channels, height, width)`.
            timestep: a number, or a tensor `()`, `(1,)` or `(batch,)`.
            encoder_hidden_states: the text states, `(batch, tokens, channels)`.
            kwargs: the remaining arguments of `UNet2DConditionModel.forward` as the caller gave them, without
                `return_dict`.

        Returns:
            The prediction, `(batch, out_channels, height, width)`. Features with `before_steps` see `host.call` only
            after calling `inner`.
        """
        return inner(sample, timestep, encoder_hidden_states, **kwargs)

    def reuse_key(self) -> Hashable:
        """A value that must be equal at two steps for one to reuse features of the other, such as a scale factor."""
        return None

    @classmethod
    def wraps(cls) -> bool:
        """Whether the feature has its own `forward`."""
        return cls.forward is not Feature.forward


def check_conflicts(features: tuple[Feature, ...]) -> None:
    """Raise `InputError` if a feature needs of some layer what another takes from it."""
    for one in features:
        for other in features:
            takes = other.takes() if other is not one else {}
            for thing, option in one.needs().items():
                if thing in takes:
                    what, layer = thing
                    raise InputError(f"{option} needs the {what} of {layer}, which {takes[thing]} changes: choose one")

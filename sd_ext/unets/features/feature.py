"""`Feature`: the base of a U-Net variant's features. A feature has options in the config, and makes reversible changes.

One file holds one feature. Its options are flat names with JSON values, the same in `set_options`, in `from_pretrained`
and in config.json. A feature acts in one or both of two ways:

- `install` changes the model in place (attention processors, forward hooks of blocks) and returns a function that
  undoes the changes.
- `forward` wraps the call of the network, and may change its input, its output, or the network that is run.

A feature must not replace registered modules, add parameters or buffers, or set `forward` on a block. This keeps the
names in the state dict those of the plain U-Net, and views of its blocks (`views.py`) run the same hooks. What a
feature may use of its model is defined in `inside/host.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import torch

from ..inside.host import Host

Options = Mapping[str, Any]
Inner = Callable[..., torch.Tensor]
"""The next feature or the plain network: a function of (sample, timestep, encoder_hidden_states, **kwargs)."""


class Feature:
    """One feature of a U-Net variant. Instances have no state, since all models share them.

    Attributes:
        name: its name in messages.
        options: its options and their neutral values. Names begin with the feature, as in `cache_interval`.
        kinds: the declared type of each option (see `sd_ext.declared`), which is checked before anything else.
        before_steps: whether `forward` runs before the step is counted. Such a feature may call `inner` several times;
            each call is a branch of the same step.
        needs_steps: whether steps must be counted (`unet.call`) even if the feature has no `forward`.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]]
    kinds: ClassVar[dict[str, Any]]
    before_steps: ClassVar[bool] = False
    needs_steps: ClassVar[bool] = False

    def is_neutral(self, options: Options) -> bool:
        """Whether these options leave the model as it is. The other methods are called only if they do not."""
        return all(options[name] == value for name, value in self.options.items())

    def validate(self, unet: Host, options: Options) -> None:
        """Raise `InputError`, naming the option, its value and what this model allows. Types have been checked already.

        The model's weights may be on the meta device.
        """

    def install(self, unet: Host, options: Options) -> Callable[[], None] | None:
        """Change the model in place. Called again, after undoing, whenever options or attention processors change.

        Args:
            unet: the model; what `forward` needs of the changes is stored in `unet.installed`.
            options: the values of all features' options.

        Returns:
            A function that undoes the changes; None if there are none.
        """
        return None

    def forward(
        self,
        unet: Host,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute the prediction, by calling `inner`. Runs as ordinary Python, even if the model is compiled.

        Args:
            unet: the model. `unet.call` is the current call; features with `before_steps` see it only after calling
                `inner`.
            inner: calls the next feature, with the same arguments as here without `unet` and `inner`.
            sample: `(batch, in_channels, height, width)`.
            timestep: a number, or a tensor `()`, `(1,)` or `(batch,)`.
            encoder_hidden_states: the text states, `(batch, tokens, channels)`.
            kwargs: the remaining arguments of `UNet2DConditionModel.forward` as the caller gave them, without
                `return_dict`.

        Returns:
            The prediction, `(batch, out_channels, height, width)`.
        """
        return inner(sample, timestep, encoder_hidden_states, **kwargs)

    def reuse_key(self, unet: Host, options: Options) -> Hashable:
        """A value that must be equal at two steps for one to reuse features of the other, such as a scale factor."""
        return None

    @property
    def wraps(self) -> bool:
        """Whether the feature has its own `forward`."""
        return type(self).forward is not Feature.forward

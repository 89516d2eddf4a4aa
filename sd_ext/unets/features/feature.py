"""What a feature of a variant U-Net is: options in its config, and changes that can be undone.

One file holds one feature. Its options are flat names with JSON values, the same in `set_options`, in `from_pretrained`
and in config.json. A feature acts in one or both of two ways:

- `install` changes the model in place (attention processors, forward hooks of blocks) and returns what undoes it.
- `forward` stands around the call of the network and may change what goes in, what comes out, or what is run.

What no feature does: put another module in the place of a registered one, add parameters or buffers, or set `forward`
on a block. So names in the state dict stay those of the plain U-Net, and views of its blocks (`views.py`) run the same
hooks. What a feature may ask of its model is in `inside/host.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import torch

from ..inside.host import Host

Options = Mapping[str, Any]
Inner = Callable[..., torch.Tensor]
"""The next feature, or the plain network: (sample, timestep, encoder_hidden_states, **kwargs) to the prediction."""


class Feature:
    """One thing a variant can do. Objects hold no state: they are shared by all models.

    Attributes:
        name: how messages call it.
        options: its options and their neutral values. Prefix them with the feature, as in `cache_interval`.
        kinds: the declared type of each (see `sd_ext.declared`), to which values are held before all else.
        before_steps: whether `forward` stands outside the counting of steps; such a feature may call `inner` several
            times, and each is a branch of the same step.
        needs_steps: whether the step is counted (`unet.call`) even if the feature has no `forward`.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]]
    kinds: ClassVar[dict[str, Any]]
    before_steps: ClassVar[bool] = False
    needs_steps: ClassVar[bool] = False

    def is_neutral(self, options: Options) -> bool:
        """Whether the model with these options is the plain one. All other methods are called only if it is not."""
        return all(options[name] == value for name, value in self.options.items())

    def validate(self, unet: Host, options: Options) -> None:
        """Raise `InputError` naming the option, its value and what this model allows; types are as declared.

        Weights may be on `meta`.
        """

    def install(self, unet: Host, options: Options) -> Callable[[], None] | None:
        """Change the model in place. Called again, after the undoing, whenever options or attention processors change.

        Args:
            unet: to be changed; what `forward` needs of the changes is kept in `unet.installed`.
            options: the values of all features' options.

        Returns:
            What undoes it, or None where nothing was done.
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
        """What the model predicts. Runs in eager code, also in a compiled model.

        Args:
            unet: the model. Its `call` is there, save before a feature with `before_steps` has called `inner`.
            inner: calls the next feature; takes and gives tensors as here.
            sample: `(batch, in_channels, height, width)`.
            timestep: a number, or a tensor `()`, `(1,)` or `(batch,)`.
            encoder_hidden_states: of the text, `(batch, tokens, channels)`.
            kwargs: the remaining arguments of `UNet2DConditionModel.forward` as the caller gave them, without
                `return_dict`.

        Returns:
            The prediction, `(batch, out_channels, height, width)`.
        """
        return inner(sample, timestep, encoder_hidden_states, **kwargs)

    def reuse_key(self, unet: Host, options: Options) -> Hashable:
        """What must be equal in two steps for one to use features of the other, such as the level of a downscaling."""
        return None

    @property
    def wraps(self) -> bool:
        """Whether it has a `forward` of its own."""
        return type(self).forward is not Feature.forward

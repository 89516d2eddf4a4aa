"""Methods of `UNet2DConditionModel` that must do more in a model with features.

After methods that change the weights or their use, nothing computed before is reused. Runs go on: the steps that a run
has made are its own, whatever the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from diffusers import UNet2DConditionModel

from ..seams.diffusers.records import expand_strengths_as
from .inside.host import Runs

FORGETTING = (
    *("set_attn_processor", "set_attention_slice"),
    *("load_lora_adapter", "add_adapter", "delete_adapters", "set_adapter", "unload_lora"),
    *("enable_adapters", "disable_adapters", "enable_lora", "disable_lora", "fuse_lora", "unfuse_lora"),
    *("fuse_qkv_projections", "unfuse_qkv_projections", "load_state_dict"),
)


class Overrides(Runs):
    """Mixin, to stand before `UNet2DConditionModel`.

    Loading an IP-Adapter is covered, since it calls `set_attn_processor`.
    """

    def set_adapters(self, adapter_names: Any, weights: Any = None) -> None:
        """Set which adapters are active and how strong, as in Diffusers.

        Args:
            adapter_names: a name or a list of names.
            weights: one strength or a list; a strength may be given by block, as `{"down": 0.5}`.

        Raises:
            SeamError: strengths by block, which do not work with the installed version of Diffusers.
        """
        strengths = weights if isinstance(weights, list) else [weights]
        if any(isinstance(each, dict) for each in strengths):
            expand_strengths_as(type(self), UNet2DConditionModel)
        try:
            super().set_adapters(adapter_names, weights)  # type: ignore[misc]
        finally:
            self.forget()


def _forgetting(name: str) -> Callable[..., Any]:
    """A method that runs the plain U-Net's method of this name and then forgets what was computed before."""
    inherited = getattr(UNet2DConditionModel, name)

    @functools.wraps(inherited)
    def method(self: Runs, *args: Any, **kwargs: Any) -> Any:
        try:
            return inherited(self, *args, **kwargs)
        finally:
            self.forget()

    return method


for _name in FORGETTING:
    if hasattr(UNet2DConditionModel, _name):  # not every version of Diffusers has all of them
        setattr(Overrides, _name, _forgetting(_name))

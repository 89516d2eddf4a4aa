"""Methods of `UNet2DConditionModel` that do more in a model with features.

What sets or reads attention processors sees those below the features' own, and what changes weights, or what is done
with them, ends the reuse of what was computed before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from diffusers import UNet2DConditionModel

from ..seams.diffusers.records import expand_strengths_as
from .inside.host import Host

BELOW = ("set_attn_processor", "set_attention_slice")
FORGETTING = (
    *("load_lora_adapter", "add_adapter", "delete_adapters", "set_adapter", "unload_lora"),
    *("enable_adapters", "disable_adapters", "enable_lora", "disable_lora", "fuse_lora", "unfuse_lora"),
    *("fuse_qkv_projections", "unfuse_qkv_projections", "load_state_dict"),
)


class Overrides(Host):
    """Mixin, before `UNet2DConditionModel`. Loading an IP-Adapter goes through `set_attn_processor`."""

    @property
    def attn_processors(self) -> dict[str, Any]:
        """The processors by name, without the features'."""
        with self.uninstalled():
            return super().attn_processors  # type: ignore[misc]

    def set_adapters(self, adapter_names: Any, weights: Any = None) -> None:
        """As Diffusers': which adapters are active and how strong, by block too, as `{"down": 0.5}`.

        Raises:
            SeamError: strengths by block, which the Diffusers installed keeps where we do not find them.
        """
        strengths = weights if isinstance(weights, list) else [weights]
        if any(isinstance(each, dict) for each in strengths):
            expand_strengths_as(type(self), UNet2DConditionModel)
        try:
            super().set_adapters(adapter_names, weights)  # type: ignore[misc]
        finally:
            self.reset()


def _below(name: str) -> Callable[..., Any]:
    """The plain U-Net's method, run with the features' changes undone."""
    inherited = getattr(UNet2DConditionModel, name)

    @functools.wraps(inherited)
    def method(self: Host, *args: Any, **kwargs: Any) -> Any:
        with self.uninstalled():
            self.reset()
            return inherited(self, *args, **kwargs)

    return method


def _forgetting(name: str) -> Callable[..., Any]:
    """The plain U-Net's method, after which nothing computed before is reused."""
    inherited = getattr(UNet2DConditionModel, name)

    @functools.wraps(inherited)
    def method(self: Host, *args: Any, **kwargs: Any) -> Any:
        try:
            return inherited(self, *args, **kwargs)
        finally:
            self.reset()

    return method


for _names, _more in ((BELOW, _below), (FORGETTING, _forgetting)):
    for _name in _names:
        if hasattr(UNet2DConditionModel, _name):  # not every version of Diffusers has all of them
            setattr(Overrides, _name, _more(_name))

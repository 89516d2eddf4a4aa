"""Views of a U-Net: networks that consist of its own modules, except some, and run by Diffusers' own forward.

A view shares all parameters and hooks with the model and is not registered in it. Only modules that contain a replaced
one are copied, and only shallowly. Making a view takes microseconds, so one is made for each call and reflects the
model's present state (adapters, processors, FreeU, offloading of layers).

A cut (depth, layer) divides the network in two. The shallow part is everything on the outer side of one skip
connection: the first `depth` down blocks and the first `layer` layers of the next, then the last `layer + 1` layers of
up block `-1 - depth` and the up blocks after it. The deep part is everything in between; its output is one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ...errors import InputError
from ...seams import torch as torch_seam
from ...seams.diffusers.unets import has_skip_for_each_layer, is_offloaded_in_groups, say_whether_cross
from .host import Host


class Cut(NamedTuple):
    """Where the network is divided into a shallow and a deep part; see the top of this file."""

    depth: int
    layer: int


def cuts(unet: Any) -> list[Cut]:
    """Every possible cut of this model, shallowest first; empty if its blocks cannot be divided."""
    if not has_skip_for_each_layer(unet):
        return []
    up = list(unet.up_blocks)
    return [Cut(depth, layer) for depth in range(len(up)) for layer in range(len(up[-1 - depth].resnets))]


def replica(module: Any, children: Mapping[str, Any]) -> Any:
    """A shallow copy of a module with some children replaced. The copy of a variant is a plain U-Net."""
    cls = UNet2DConditionModel if isinstance(module, UNet2DConditionModel) else type(module)
    return torch_seam.replica(module, children, cls)


def substitute(module: Any, replacements: Mapping[str, nn.Module]) -> Any:
    """A view of a module in which others take the places of some submodules.

    Args:
        module: the module, which is not changed.
        replacements: path, such as `"up_blocks.1.attentions.0"` -> the module to put there.
    """
    inner: dict[str, dict[str, nn.Module]] = {}
    children: dict[str, nn.Module] = {}
    for path, replacement in replacements.items():
        head, _, rest = path.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = replacement
        else:
            children[head] = replacement
    for head, rest in inner.items():
        children[head] = substitute(getattr(module, head), rest)
    return replica(module, children)


class Capture(nn.Module):
    """Wraps a module and keeps a copy of its output in `kept`; a copy, because FreeU changes hidden states in place."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner
        say_whether_cross(self, inner)
        self.kept: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        self.kept = (out[0] if isinstance(out, tuple) else out).clone()
        return out


class Replay(nn.Module):
    """Takes the place of the deep part and returns a stored output.

    Args:
        deep: the stored output, `(batch, channels, height, width)`; None returns the input instead.
        see: called with the deep part's input.
    """

    def __init__(self, deep: torch.Tensor | None, see: Callable[[torch.Tensor], None] | None = None):
        super().__init__()
        say_whether_cross(self, None)
        self.deep, self.see = deep, see

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if self.see is not None:
            self.see(sample)
        return sample if self.deep is None else self.deep.clone()


def shallow(unet: Any, cut: Cut, replay: Replay) -> Any:
    """The view that runs only the shallow part.

    Args:
        unet: the model, or a view of it.
        cut: one of `cuts(unet)`.
        replay: takes the place of the deep part.
    """
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    depth, layer = cut
    near_down = _trimmed(down[depth], slice(0, layer), downsamplers=None)
    near_up = _trimmed(up[-1 - depth], slice(-1 - layer, None))
    children = {
        "down_blocks": nn.ModuleList([*down[:depth], near_down]),
        "mid_block": replay,
        "up_blocks": nn.ModuleList([near_up, *up[len(up) - depth :]]),
    }
    return replica(unet, children)


def capturing(unet: Any, cut: Cut) -> tuple[Any, Capture]:
    """The view that runs everything and keeps the output of the deep part.

    Args:
        unet: the model, or a view of it.
        cut: one of `cuts(unet)`.

    Returns:
        The view, and the module in it whose `kept` is the deep part's output once the view has run.
    """
    path = _last_deep(unet, cut)
    capture = Capture(unet.get_submodule(path))
    return substitute(unet, {path: capture}), capture


def ends_at_mid(unet: Any, cut: Cut) -> bool:
    """Whether the deep part ends with the mid block, to whose output ControlNet adds a residual."""
    return _last_deep(unet, cut) == "mid_block"


def _trimmed(block: Any, layers: slice, **children: Any) -> Any:
    """A view of a block with only some of its layers, and other children replaced."""
    lists = {name: getattr(block, name) for name in ("resnets", "attentions") if hasattr(block, name)}
    return replica(block, {**{name: nn.ModuleList(list(m)[layers]) for name, m in lists.items()}, **children})


def _last_deep(unet: Any, cut: Cut) -> str:
    """The path of the module whose output is the deep part's output."""
    place = len(unet.up_blocks) - 1 - cut.depth
    layer = len(unet.up_blocks[place].resnets) - 1 - cut.layer
    if layer == place == 0:
        return "mid_block"
    if layer == 0:  # the last layer of the block before
        place -= 1
        upsamplers = getattr(unet.up_blocks[place], "upsamplers", None)
        if upsamplers:
            return f"up_blocks.{place}.upsamplers.{len(upsamplers) - 1}"
        layer = len(unet.up_blocks[place].resnets)
    kind = "attentions" if hasattr(unet.up_blocks[place], "attentions") else "resnets"
    return f"up_blocks.{place}.{kind}.{layer - 1}"


def processed(host: Host, layers: Iterable[str], processor: Any) -> AbstractContextManager[None]:
    """Context manager: this thread runs the model with another processor in some attention layers.

    It runs a view; a layer's own processor stays registered, also if it is a module with weights. Where a block's
    forward has been replaced, as by offloading in groups, which allows one thread only, the layers themselves change.

    Args:
        host: the model.
        layers: the names of the layers.
        processor: a processor without weights.
    """
    network = host.network
    if replaced_around(network, layers):
        found = [network.get_submodule(name) for name in layers]
        return torch_seam.shadowed(found, "processor", processor)
    return host.running(with_processor(network, layers, processor))


def with_processor(network: Any, layers: Iterable[str], processor: Any) -> Any:
    """A view with another processor in some attention layers.

    Args:
        network: the model, or a view of it.
        layers: the names of the layers.
        processor: a processor without weights.
    """
    found = {name: network.get_submodule(name) for name in layers}
    changed = {name: torch_seam.replica(each, {}, attributes={"processor": processor}) for name, each in found.items()}
    return substitute(network, changed)


def without(host: Host, replacements: Mapping[str, nn.Module], option: str) -> AbstractContextManager[None]:
    """Context manager: this thread runs the model with other modules in some places.

    Args:
        host: the model.
        replacements: see `substitute`.
        option: the option that asks for it, for messages.

    Raises:
        InputError: a forward has been replaced on the way there, as by offloading in groups.
    """
    if replaced_around(host.network, replacements):
        raise InputError(
            f"{option} needs a network whose layers are not offloaded or replaced; offload the whole model"
        )
    return host.running(substitute(host.network, replacements))


def replaced_around(network: Any, names: Iterable[str]) -> bool:
    """Whether the forward of a module, or of one that contains it, has been replaced."""
    around = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    return any("forward" in vars(network.get_submodule(name)) for name in around)


def obstacle(unet: Any) -> str | None:
    """Why views of this model cannot be used now, as a clause for a message; None if they can."""
    if unet.training or torch.is_grad_enabled():
        return "gradients are enabled (use torch.no_grad())" if not unet.training else "the model is in training mode"
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    if any(is_offloaded_in_groups(module) for module in (unet.conv_in, *blocks) if module is not None):
        return "its layers are offloaded in groups, in the order of the whole network"
    if any("forward" in vars(block) for block in blocks if block is not None):
        return "a block's forward has been replaced"
    return None

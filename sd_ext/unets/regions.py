"""Regional prompts: parts of a picture have prompts of their own, in cross-attention.

At every place of the picture, what cross-attention gives for the prompts of the regions is mixed, as the masks say:

    (1 - b) (m1 z1 + m2 z2 + ...) + (b + (1 - b) (1 - m1 - m2 - ...)) z

with z for the pipeline's prompt, z1, z2, ... for those of the regions, masks m1, m2, ... that are divided by their sum
where it is above 1, and b the share that the pipeline's prompt has everywhere. Only the conditional half is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..errors import InputError
from ..seams.diffusers.pipelines import can_be_guided
from ..seams.torch import is_compiled_in_place, uncompiled
from .features.gate import cross_attentions
from .inside.blur import grid_of
from .inside.hooks import Hooks
from .inside.levels import is_number
from .inside.texts import encode
from .inside.told import CONDITIONAL, Told, place, tell


@contextmanager
def regional(pipe: Any, regions: Sequence[tuple[Any, str]], base: float = 0.0) -> Iterator[None]:
    """Context manager: parts of the pictures that a pipeline draws have prompts of their own.

        with sd_ext.regional(pipe, [((0, 0, 0.5, 1), "red apple"), ((0.5, 0, 1, 1), "blue cup")]):
            pipe("a table", ...)

    It holds for the calls of this pipeline in this thread, with any U-Net that attends to the text. All pictures of a
    batch have the same regions. Each region costs one more computation of every cross-attention, and none of the rest.
    Of SDXL, the pooled text is that of the pipeline's prompt; a ControlNet sees that prompt alone.

    Args:
        pipe: the pipeline.
        regions: (where, prompt) each. Where is a box (left, top, right, bottom) in shares of the picture, or a mask
            `(height, width)` of numbers from 0 to 1 (a tensor, an array or a picture) of the picture's proportions.
        base: the share of the pipeline's own prompt within the regions, from 0 to 1.

    Raises:
        InputError: another kind of pipeline, a bad region or share; and in a call, a mask of other proportions.
    """
    network = uncompiled(getattr(pipe, "unet", None))
    name = type(pipe).__name__
    if not isinstance(network, torch.nn.Module) or not can_be_guided(pipe) or not cross_attentions(network):
        raise InputError(f"regional: {name} has no U-Net that attends to a prompt")
    if is_compiled_in_place(network) or network is not pipe.unet or getattr(network, "_compiled", None) is not None:
        raise InputError("regional: a compiled U-Net hides its layers; use the one that is not compiled")
    options = pipe.unet.config
    if "cross" in options.get("token_merge_parts", ()) and options.get("token_merge_ratio"):
        raise InputError("regional: token_merge_parts merges tokens in cross-attention; leave 'cross' out")
    if not is_number(base) or not 0 <= base <= 1:
        raise InputError(f"regional: base must be a share from 0 to 1, got {base!r}")
    hooks, call = Hooks(), _Call(pipe, network, [_region(i, each) for i, each in enumerate(regions)], base)
    hooks.before(network, call.see)
    for layer in cross_attentions(network):
        hooks.after(network.get_submodule(layer), call.mix)
    try:
        _forget(network)
        yield
    finally:
        hooks.remove()
        _forget(network)


class _Call:
    """The hooks on a network and its cross-attentions, and what they share.

    Args:
        pipe, base: see `regional`.
        network: the pipeline's U-Net.
        regions: (box or mask, prompt) each.
    """

    def __init__(self, pipe: Any, network: Any, regions: list[tuple[Any, str]], base: float):
        if not regions:
            raise InputError("regional: there is no region; give at least one (where, prompt)")
        self.pipe, self.network, self.regions, self.base = pipe, network, regions, base
        self.thread, self.within = threading.get_ident(), False
        self.told: Told | None = None
        self.texts: list[torch.Tensor] = []
        self.size = (0, 0)

    def see(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the network: note what the call is."""
        if threading.get_ident() != self.thread:
            return
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        self.told = None
        if place(self.pipe, timestep) is None:
            return
        self.size = (sample.shape[-2], sample.shape[-1])
        for where, prompt in self.regions:
            if isinstance(where, torch.Tensor) and where.shape[0] * self.size[1] != where.shape[1] * self.size[0]:
                raise InputError(
                    f"regional: the mask of {prompt!r} is {where.shape[1]} x {where.shape[0]}, which are not the "
                    f"proportions of the picture ({self.size[1]} x {self.size[0]} latents)"
                )
        if not self.texts:
            self.texts = [encode("regional", self.pipe, prompt, text).states for _, prompt in self.regions]
        self.told = tell(self.network, timestep, len(sample))

    def mix(self, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> Any:
        """After a cross-attention: mix its result with those for the regions' prompts."""
        if self.within or self.told is None or threading.get_ident() != self.thread:
            return None
        now = getattr(self.network, "told", None)  # of the call that a feature makes, where one does
        branches = now.branches if isinstance(now, Told) and now.sure else self.told.branches
        if CONDITIONAL[0] not in branches or len(output) % len(branches):
            return None
        each = len(output) // len(branches)
        begin = branches.index(CONDITIONAL[0]) * each
        weights = self._weights(output)
        mixed = (1 - weights.sum(0)) * output[begin : begin + each]
        for weight, text in zip(weights, self.texts, strict=True):
            mixed = mixed + weight * self._attend(attn, args, kwargs, text)[begin : begin + each]
        return torch.cat([output[:begin], mixed, output[begin + each :]])

    def _attend(self, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], text: torch.Tensor) -> torch.Tensor:
        """The layer's result for another text, for all rows."""
        given = kwargs["encoder_hidden_states"]
        rows = len(args[0])
        states = text.expand(rows, -1, -1)
        other = (states, *given[1:]) if isinstance(given, tuple) else states  # of an IP-Adapter: pictures besides
        self.within = True
        try:
            return attn(*args, **{**kwargs, "encoder_hidden_states": other, "attention_mask": None})
        finally:
            self.within = False

    def _weights(self, output: torch.Tensor) -> torch.Tensor:
        """The weight of every region at every token, `(regions, 1, tokens, 1)`."""
        grid = grid_of(output.shape[1], self.size[0] / self.size[1])
        masks = torch.stack([_on_grid(where, grid) for where, _ in self.regions]).to(output)
        masks = masks / masks.sum(0).clamp_min(1)
        return ((1 - self.base) * masks).flatten(1)[:, None, :, None]


def _on_grid(where: Any, grid: tuple[int, int]) -> torch.Tensor:
    """A region as the share that it has of each cell of a grid, `grid` high and wide."""
    if isinstance(where, torch.Tensor):
        return functional.adaptive_avg_pool2d(where[None, None], grid)[0, 0]
    left, top, right, bottom = where
    return _covered(top, bottom, grid[0])[:, None] * _covered(left, right, grid[1])[None]


def _covered(begin: float, end: float, cells: int) -> torch.Tensor:
    """How much of each of so many equal cells of [0, 1] lies within [begin, end]."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    return ((edges[1:].clamp_max(end) - edges[:-1].clamp_min(begin)) * cells).clamp(0, 1)


def _region(index: int, region: Any) -> tuple[Any, str]:
    """A region that has been checked: (box or mask, prompt)."""
    place_of = f"regional: region {index + 1}"
    if not isinstance(region, tuple | list) or len(region) != 2 or not isinstance(region[1], str):
        raise InputError(f"{place_of} must be (box or mask, prompt), got {region!r:.80}")
    where, prompt = region
    if isinstance(where, tuple | list) and len(where) == 4 and all(map(is_number, where)):
        left, top, right, bottom = where
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(f"{place_of}: a box is (left, top, right, bottom) in shares from 0 to 1, got {where!r}")
        return tuple(where), prompt
    return _mask(place_of, where), prompt


def _mask(place_of: str, where: Any) -> torch.Tensor:
    """A mask as `(height, width)` in float32 from 0 to 1."""
    if callable(getattr(where, "convert", None)):  # a picture
        where = np.asarray(where.convert("L"), np.float32) / 255
    try:
        mask = torch.as_tensor(where).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{place_of}: {type(where).__name__} is no box and no mask") from error
    if mask.ndim != 2 or not mask.numel():
        raise InputError(f"{place_of}: a mask is (height, width), got the shape {tuple(mask.shape)}")
    if not (mask.min() >= 0 and mask.max() <= 1 and mask.max() > 0):
        raise InputError(f"{place_of}: a mask has numbers from 0 to 1 and is not empty")
    return mask


def _forget(network: Any) -> None:
    """What a U-Net with features remembers was computed for other prompts."""
    if callable(forget := getattr(network, "forget", None)):
        forget()

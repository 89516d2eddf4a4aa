"""Hooks that reduce the tokens of a transformer block, around its attention and feed-forward modules.

No module, processor or class is replaced, so that LoRA, IP-Adapter, any attention backend and `compile_repeated_blocks`
work as usual, and removing the hooks restores the block completely.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import merging, tiling
from .hooks import Hooks, OfThread
from .say import say


class Clock(OfThread):
    """The current step, for the hooks of one model.

    Args:
        seed: for choices that are made anew at each step; None for no such choices.

    Attributes:
        odd: whether the step's number is odd; blocks shift their tiles by turns.
        salt: the random number of the step, an int64 scalar tensor, or None. A Python number would make a compiled
            model compile again for every new value.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.set(0)

    def set(self, step: int) -> None:
        """Set the step."""
        self.odd = bool(step % 2)
        self.salt = None if self.seed is None else torch.tensor((self.seed * 0x9E3779B1 + step) & 0xFFFFFFFF)


class Grid:
    """Height and width, in tokens, of a transformer's input, noted when the transformer is called.

    Its blocks get a sequence of tokens, which does not show them. A thread that has not called the transformer uses the
    size that another thread noted last: autograd runs checkpointed blocks again in threads of its own.
    """

    def __init__(self) -> None:
        self._own, self._last = OfThread(), (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return getattr(self._own, "size", self._last)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        """Set the size, for this thread and as the last one noted."""
        self._own.size = self._last = size

    def see(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hook before the transformer: note the size of its input."""
        x = args[0] if args else kwargs["hidden_states"]
        self.size = (x.shape[-2], x.shape[-1])


@dataclass(frozen=True)
class Reduction:
    """What is done at one level. The default values change nothing.

    Attributes:
        ratio, cell, weighted, parts: of token merging; see `tokens.TokenReduction`.
        stride: keys and values of every n-th token are used.
        tile: height and width of tiles in tokens, or None.
        shift: whether tiles move by half their side at every other block and step.
    """

    ratio: float = 0.0
    cell: int = 2
    weighted: bool = False
    parts: tuple[str, ...] = ("self",)
    stride: int = 1
    tile: tuple[int, int] | None = None
    shift: bool = False


class Held(OfThread):
    """Values that the hooks of one block share during a call.

    Attributes:
        merge: which tokens are merged, determined at self-attention; None if none are.
        merged: whether the module that is running got merged tokens.
        tiles: the last arguments of `tiling.cut`, if tokens were cut into tiles; else None.
    """

    merge: merging.Merge | None = None
    merged: bool = False
    tiles: tuple[tuple[int, int], tuple[int, int], bool] | None = None


@dataclass
class BlockTokens:
    """The hooks of one transformer block.

    Args:
        plan: what is done at the block's level.
        grid: the size of the transformer's input.
        clock: the model's current step.
        turn: whether tiles are shifted at even steps; otherwise at odd ones.
        held: values shared between the hooks.
    """

    plan: Reduction
    grid: Grid
    clock: Clock
    turn: bool
    held: Held = field(default_factory=Held)

    def install(self, block: Any, hooks: Hooks) -> None:
        """Put the hooks on the block's attention and feed-forward modules."""
        hooks.before(block.attn1, self.before_self)
        hooks.after(block.attn1, self.after_self)
        for name, module in (("cross", block.attn2), ("ff", block.ff)):
            if self.plan.ratio and name in self.plan.parts and module is not None:
                hooks.before(module, self.before_other)
                hooks.after(module, self.after_other)

    def before_self(self, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before self-attention: cut the tokens into tiles, then merge them, or thin keys and values."""
        held, plan, grid, x = self.held, self.plan, self.grid.size, args[0]
        held.merge = held.tiles = None
        held.merged = False
        if not _plain(x, grid, kwargs):
            return None
        tile = self._tile(grid)
        if tile != grid:
            held.tiles = (grid, tile, plan.shift and self.turn != self.clock.odd)
            x, grid = tiling.cut(x, *held.tiles), tile
        if merging.removed(grid, plan.cell, plan.ratio):
            held.merge = merge = merging.match(x, grid, plan.ratio, plan.cell, self.clock.salt)
            held.merged = "self" in plan.parts
            if held.merged:
                kwargs = {**kwargs, "attention_mask": merge.log_sizes(x.dtype) if plan.weighted else None}
                x = merge.merge(x)
        elif plan.stride > 1 and not _fused(attn):
            kwargs = {**kwargs, "encoder_hidden_states": tiling.thin(x, grid, plan.stride)}
        return (x, *args[1:]), kwargs

    def after_self(self, _: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
        """After self-attention: restore all tokens of the grid."""
        output = self.after_other(_, __, ___, output)
        return output if self.held.tiles is None else tiling.join(output, *self.held.tiles)

    def before_other(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before cross-attention or feed-forward: merge the same tokens as at self-attention."""
        merge = self.held.merge
        # Not with image masks, which cover the whole grid, nor where a chunked feed-forward gets only some tokens.
        masked = kwargs.get("ip_adapter_masks") is not None
        self.held.merged = merge is not None and not masked and args[0].shape[:2] == merge.owner.shape
        return ((merge.merge(args[0]), *args[1:]), kwargs) if merge is not None and self.held.merged else None

    def after_other(self, _: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
        """After cross-attention or feed-forward: restore all tokens."""
        merge = self.held.merge
        return merge.unmerge(output) if merge is not None and self.held.merged else output

    def _tile(self, grid: tuple[int, int]) -> tuple[int, int]:
        if self.plan.tile is None:
            return grid
        high, wide = (
            tiling.nearest_divisor(length, wanted) for length, wanted in zip(grid, self.plan.tile, strict=True)
        )
        return high, wide


def _plain(x: torch.Tensor, grid: tuple[int, int], kwargs: Mapping[str, Any]) -> bool:
    """Whether this is ordinary self-attention over the whole grid.

    If it has a mask or other keys, that is logged once.
    """
    if x.ndim == 3 and x.shape[1] == grid[0] * grid[1]:
        given = [name for name in ("encoder_hidden_states", "attention_mask") if kwargs.get(name) is not None]
        if not given:
            return True
        say(logging.WARNING, f"self-attention with {' and '.join(given)} keeps all its tokens")
    return False


def _fused(attn: nn.Module) -> bool:
    """Whether the layer's projections are fused, so that keys and values cannot be thinned; logged once."""
    fused = getattr(attn, "fused_projections", False)
    if fused:
        advice = "call unfuse_qkv_projections() for token_kv_stride"
        say(logging.WARNING, f"fused projections keep all keys and values; {advice}")
    return fused

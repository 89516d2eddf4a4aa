"""Fewer tokens in a transformer block, by hooks around its attention and feed-forward modules.

Modules, processors and classes stay what they are: LoRA, IP-Adapter, any attention backend and
`compile_repeated_blocks` see the block they know, and removing the hooks leaves nothing behind.
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
    """The step, as the hooks of one model need it.

    Args:
        seed: of the choices that are made anew at each step; None for no such choices.

    Attributes:
        odd: whether the step's number is odd; blocks take turns in shifting their tiles.
        salt: what random choices of the step are made from, an int64 scalar, or None. A tensor, because a compiled
            model would be compiled again for each other number.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.set(0)

    def set(self, step: int) -> None:
        """Go to a step."""
        self.odd = bool(step % 2)
        self.salt = None if self.seed is None else torch.tensor((self.seed * 0x9E3779B1 + step) & 0xFFFFFFFF)


class Grid:
    """Height and width of what a transformer is called with, noted when it is called.

    Its blocks get a sequence of tokens, from which they cannot tell. A thread that has not called the transformer takes
    what another one noted last: autograd has threads of its own, which run checkpointed blocks again.
    """

    def __init__(self) -> None:
        self._own, self._last = OfThread(), (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return getattr(self._own, "size", self._last)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._own.size = self._last = size

    def see(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the size; a pre-hook of the transformer."""
        x = args[0] if args else kwargs["hidden_states"]
        self.size = (x.shape[-2], x.shape[-1])


@dataclass(frozen=True)
class Reduction:
    """What is done at one level. The neutral values change nothing.

    Attributes:
        ratio, cell, weighted, parts: of merging, see `tokens.TokenReduction`.
        stride: of keys and values.
        tile: height and width of tiles in tokens, or None.
        shift: whether tiles move by half their side every other block and step.
    """

    ratio: float = 0.0
    cell: int = 2
    weighted: bool = False
    parts: tuple[str, ...] = ("self",)
    stride: int = 1
    tile: tuple[int, int] | None = None
    shift: bool = False


class Held(OfThread):
    """What the hooks of one block hand to each other during a call.

    Attributes:
        merge: which tokens are merged, found at self-attention; None where none are.
        merged: whether the module that is running has been given merged tokens.
        tiles: how tokens were cut into tiles, as the last arguments of `tiling.cut`; None where they were not.
    """

    merge: merging.Merge | None = None
    merged: bool = False
    tiles: tuple[tuple[int, int], tuple[int, int], bool] | None = None


@dataclass
class BlockTokens:
    """The hooks of one block.

    Args:
        plan: what is done at its level.
        grid, clock: of its transformer and of its model.
        turn: whether it shifts its tiles at even steps; else it does at odd ones.
        held: what its hooks hand to each other.
    """

    plan: Reduction
    grid: Grid
    clock: Clock
    turn: bool
    held: Held = field(default_factory=Held)

    def install(self, block: Any, hooks: Hooks) -> None:
        """Put the hooks on the block's attention and feed-forward."""
        hooks.before(block.attn1, self.before_self)
        hooks.after(block.attn1, self.after_self)
        for name, module in (("cross", block.attn2), ("ff", block.ff)):
            if self.plan.ratio and name in self.plan.parts and module is not None:
                hooks.before(module, self.before_other)
                hooks.after(module, self.after_other)

    def before_self(self, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Cut into tiles, then merge, or thin keys and values."""
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
        """Back to all tokens of the grid."""
        output = self.after_other(_, __, ___, output)
        return output if self.held.tiles is None else tiling.join(output, *self.held.tiles)

    def before_other(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Merge what cross-attention or the feed-forward reads, in the groups found at self-attention."""
        merge = self.held.merge
        # Image masks are of the whole grid; a chunked feed-forward reads a part of the tokens.
        masked = kwargs.get("ip_adapter_masks") is not None
        self.held.merged = merge is not None and not masked and args[0].shape[:2] == merge.owner.shape
        return ((merge.merge(args[0]), *args[1:]), kwargs) if merge is not None and self.held.merged else None

    def after_other(self, _: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
        """Back to all tokens."""
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
    """Whether this is self-attention over the whole grid; said once where it is not."""
    if x.ndim == 3 and x.shape[1] == grid[0] * grid[1]:
        given = [name for name in ("encoder_hidden_states", "attention_mask") if kwargs.get(name) is not None]
        if not given:
            return True
        say(logging.WARNING, f"self-attention with {' and '.join(given)} keeps all its tokens")
    return False


def _fused(attn: nn.Module) -> bool:
    """Fused projections have no keys and values of their own."""
    fused = getattr(attn, "fused_projections", False)
    if fused:
        advice = "call unfuse_qkv_projections() for token_kv_stride"
        say(logging.WARNING, f"fused projections keep all keys and values; {advice}")
    return fused

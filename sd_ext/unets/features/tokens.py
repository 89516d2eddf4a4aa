"""Fewer tokens in self-attention: merging, thinned keys and values, tiles; for every level that has attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...errors import InputError
from ..inside import levels
from ..inside.hooks import Hooks
from ..inside.host import Host
from ..inside.token_hooks import BlockTokens, Clock, Grid, Reduction
from .feature import Feature, Inner, Options

PARTS = ("self", "cross", "ff")


class TokenReduction(Feature):
    """Token merging, key/value downsampling and tiled self-attention; each may be on at its own levels.

    A level is how often the latent's grid has been halved: SD 1.x and 2.x attend at levels 0 to 3, SDXL at 1 and 2. A
    number holds at the finest level that has attention, where nearly all of its cost is; a list has one number for
    each level from 0 on. Grids may have any shape, odd sides too.

    Options:
        token_merge_ratio: share of the tokens that merging removes, 0 (none) to 1 - 1 / cell**2: with cells of 2 at
            most 0.75. arXiv 2303.17604; see `merging`.
        token_merge_parts: which layers run on merged tokens: "self" (attention), "cross" (attention), "ff".
        token_merge_cell: side of the cells of tokens that keep one each.
        token_merge_seed: which token of a cell is kept is drawn anew each step from this seed, the same for a whole
            batch and for guidance apart or batched; None keeps the upper left one always. With gradient
            checkpointing it is the same each step, for blocks are run again.
        token_merge_weighted: whether a merged token weighs in attention as much as its members (proportional
            attention, arXiv 2210.09461). Then equal tokens merge exactly whatever the groups; it costs the kernels
            that take no mask.
        token_kv_stride: keys and values of every n-th token down and across; 1 is all. arXiv 2402.13573.
        tile_size: side of the tiles in tokens of their level that self-attention stays within; 0 is no tiles. Where it
            does not divide a grid's side, the nearest divisor of that side is taken, the side itself if that is nearer.
            "auto" is the training size at the finest level: exact up to it, windows of it beyond.
        tile_shift: whether tiles move by half their side every other block and step, so that borders do not show.

    Merging and thinning exclude each other at one level; both work within tiles.
    """

    name = "tokens"
    options: ClassVar[dict[str, Any]] = {
        "token_merge_ratio": 0.0,
        "token_merge_parts": ["self"],
        "token_merge_cell": 2,
        "token_merge_seed": 0,
        "token_merge_weighted": False,
        "token_kv_stride": 1,
        "tile_size": 0,
        "tile_shift": False,
    }
    kinds: ClassVar[dict[str, Any]] = {
        "token_merge_ratio": float | list[float],
        "token_merge_parts": list[str],
        "token_merge_cell": int,
        "token_merge_seed": int | None,
        "token_merge_weighted": bool,
        "token_kv_stride": int | list[int],
        "tile_size": Literal["auto"] | int | list[int],
        "tile_shift": bool,
    }

    def is_neutral(self, options: Options) -> bool:
        return not any(
            each != off
            for name, off in (("token_merge_ratio", 0), ("token_kv_stride", 1), ("tile_size", 0))
            for each in (options[name] if isinstance(options[name], list | tuple) else [options[name]])
        )

    def validate(self, unet: Host, options: Options) -> None:
        plan(unet, options)

    def install(self, unet: Host, options: Options) -> Callable[[], None]:
        """Put hooks on the blocks of the levels asked for."""
        reductions, clock, hooks = plan(unet, options), Clock(options["token_merge_seed"]), Hooks()
        for level, transformer in levels.transformers(unet):
            if level not in reductions:
                continue
            grid = Grid()
            hooks.before(transformer, grid.see)
            for index, block in enumerate(levels.transformer_blocks(transformer)):
                BlockTokens(reductions[level], grid, clock, bool(index % 2)).install(block, hooks)
        unet.installed[self.name] = clock

        def undo() -> None:
            hooks.remove()
            del unet.installed[self.name]

        return undo

    def forward(
        self,
        unet: Host,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Set the clock by the step, then run."""
        # Checkpointed blocks run again in the backward pass, at whatever step the clock then stands.
        recomputed = torch.is_grad_enabled() and unet.is_gradient_checkpointing
        unet.installed[self.name].set(unet.call.step if unet.call and not recomputed else 0)
        return inner(sample, timestep, encoder_hidden_states, **kwargs)


def plan(unet: nn.Module, options: Options) -> dict[int, Reduction]:
    """What is done at each level, by options.

    Raises:
        InputError: an option out of its range, for a level without attention, or in conflict with another.
    """
    cell, parts = _cell(options["token_merge_cell"]), _parts(options["token_merge_parts"])
    ratios = levels.by_level(unet, "token_merge_ratio", options["token_merge_ratio"], 0)
    strides = levels.by_level(unet, "token_kv_stride", options["token_kv_stride"], 1)
    tiles = _tiles(unet, options["tile_size"])
    for name, given, least, most in (
        ("token_merge_ratio", ratios, 0, 1 - cell**-2),
        ("token_kv_stride", strides, 1, math.inf),
    ):
        for level, value in given.items():
            if not least <= value <= most:
                raise InputError(f"{name} must be from {least} to {most:g}, got {value!r} at level {level}")
    for level in ratios.keys() & strides.keys():
        raise InputError(f"token_merge_ratio and token_kv_stride are both on at level {level}: choose one of them")
    if set(parts) != {"self"} and (both := ratios.keys() & tiles.keys()):
        raise InputError(f"token_merge_parts={list(parts)!r} with tiles at level {min(both)}: tiles merge 'self' alone")
    return {
        level: Reduction(
            ratio=ratios.get(level, 0.0),
            cell=cell,
            weighted=options["token_merge_weighted"],
            parts=parts,
            stride=strides.get(level, 1),
            tile=tiles.get(level),
            shift=options["tile_shift"],
        )
        for level in ratios.keys() | strides.keys() | tiles.keys()
    }


def _cell(cell: int) -> int:
    if cell < 2:
        raise InputError(f"token_merge_cell must be a whole number of at least 2 tokens, got {cell!r}")
    return cell


def _parts(parts: Sequence[str]) -> tuple[str, ...]:
    if not parts or not all(part in PARTS for part in parts):
        raise InputError(f"token_merge_parts must be a list of {', '.join(map(repr, PARTS))}, got {parts!r}")
    return tuple(parts)


def _tiles(unet: nn.Module, size: Any) -> dict[int, tuple[int, int]]:
    if size != "auto":
        sides = levels.by_level(unet, "tile_size", size, 0)
        for level, side in sides.items():
            if side < 1:
                raise InputError(f"tile_size must be 0 (off) or a side in tokens, got {side!r} at level {level}")
        return {level: (side, side) for level, side in sides.items()}
    finest = next(iter(levels.by_level(unet, "tile_size", 1, 0)))
    height, width = levels.training_size(unet, 'tile_size="auto"')
    return {finest: (-(-height >> finest), -(-width >> finest))}

"""Fewer tokens in self-attention, at selectable levels: merged tokens, thinned keys and values, tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...errors import InputError
from ..inside import levels
from ..inside.hooks import Hooks
from ..inside.host import Host
from ..inside.token_hooks import BlockTokens, Clock, Grid, Reduction
from .feature import Feature, Inner, Options
from .options import Option

PARTS = ("self", "cross", "ff")


class TokenReduction(Feature):
    """Token merging, key/value downsampling and tiled self-attention, each at the levels chosen for it.

    A level is how often the latents' grid has been halved: SD 1.x and 2.x have attention at levels 0 to 3, SDXL at 1
    and 2. Options given as one number apply to the finest level that has attention, which has nearly all of its cost; a
    list has one number for each level from 0 on. Grids may have any shape, including odd sides.

    Options:
        token_merge_ratio: the fraction of tokens that merging removes, from 0 (none) to 1 - 1 / cell**2, which is 0.75
            for cells of 2. arXiv 2303.17604; see `merging`.
        token_merge_parts: which layers run on merged tokens: "self" (attention), "cross" (attention), "ff"
            (feed-forward).
        token_merge_cell: side of the square cells of tokens of which one token each is always kept.
        token_merge_seed: seed for choosing the token that is kept in each cell, anew at each step; the choice is the
            same for the whole batch, and for guidance in one batch or in separate calls. None always keeps the upper
            left one. With gradient checkpointing the choice is the same at every step, since blocks are computed twice.
        token_merge_weighted: whether a merged token has as much weight in attention as all its members (proportional
            attention, arXiv 2210.09461). Equal tokens then merge without any error, but attention kernels without masks
            cannot be used.
        token_kv_stride: use keys and values only of every n-th token down and across; 1 uses all. arXiv 2402.13573.
        tile_size: side, in tokens of the level, of the tiles that self-attention is confined to; 0 is no tiles. If it
            does not divide the grid's side, the nearest divisor is used, which may be the whole side. "auto" is the
            training size at the finest level: exact up to that size, windows of it above.
        tile_shift: whether tiles move by half their side at every other block and step, so that their borders do not
            show.

    Merging and thinning cannot both be on at one level; each can be combined with tiles.
    """

    name = "tokens"
    approximates: ClassVar[bool] = True
    options: ClassVar[dict[str, Option]] = {
        "token_merge_ratio": Option(
            0.0,
            float | list[float],
            "the share of tokens merged around self-attention (arXiv 2303.17604), at the finest level or by level",
        ),
        "token_merge_parts": Option(
            ["self"], list[str], 'what runs on merged tokens: "self" and "cross" attention, "ff"'
        ),
        "token_merge_cell": Option(
            2,
            int,
            "side of the cells of tokens that keep one",
            lambda value: value >= 2,
            "a whole number of at least 2 tokens",
        ),
        "token_merge_seed": Option(0, int | None, "chooses the token that is kept; None keeps the upper left one"),
        "token_merge_weighted": Option(False, bool, "whether a merged token counts as all its members"),
        "token_kv_stride": Option(
            1, int | list[int], "keys and values of every n-th token down and across (arXiv 2402.13573)"
        ),
        "tile_size": Option(
            0, Literal["auto"] | int | list[int], 'side of the tiles of self-attention; "auto" is the training size'
        ),
        "tile_shift": Option(False, bool, "whether tiles move by half at every other block and step"),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        return not any(
            each != off
            for name, off in (("token_merge_ratio", 0), ("token_kv_stride", 1), ("tile_size", 0))
            for each in (options[name] if isinstance(options[name], list | tuple) else [options[name]])
        )

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.reductions, self.hooks = plan(host.network, options), Hooks()
        self.clock = Clock(options["token_merge_seed"])
        self.transformers = [each for each in levels.transformers(host.network) if each[0] in self.reductions]

    def takes(self) -> Mapping[tuple[str, str], str]:
        """The whole grid of the layers whose tokens are merged or tiled."""
        names = {module: name for name, module in self.host.network.named_modules()}
        taken: dict[tuple[str, str], str] = {}
        for level, transformer in self.transformers:
            how = self.reductions[level]
            if how.ratio or how.tile:
                option = "token_merge_ratio" if how.ratio else "tile_size"
                taken |= {("grid of tokens", names[module]): option for module in transformer.modules()}
        return taken

    def install(self) -> None:
        """Put hooks on the transformer blocks of the chosen levels."""
        for level, transformer in self.transformers:
            grid = Grid()
            self.hooks.before(transformer, grid.see)
            for index, block in enumerate(levels.transformer_blocks(transformer)):
                BlockTokens(self.reductions[level], grid, self.clock, bool(index % 2)).install(block, self.hooks)

    def undo(self) -> None:
        """Remove the hooks."""
        self.hooks.remove()

    def forward(
        self,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Tell the hooks the current step, then run."""
        # The backward pass runs checkpointed blocks again, perhaps after the step has changed, so the step stays 0.
        recomputed = torch.is_grad_enabled() and self.host.network.is_gradient_checkpointing
        self.clock.set(self.host.call.step if self.host.call and not recomputed else 0)
        return inner(sample, timestep, encoder_hidden_states, **kwargs)


def plan(unet: nn.Module, options: Options) -> dict[int, Reduction]:
    """What to do at each level according to the options.

    Args:
        unet: the model.
        options: the values of all features' options.

    Returns:
        Level -> what is done there; levels at which nothing is done are missing.

    Raises:
        InputError: an option out of its range, for a level without attention, or in conflict with another.
    """
    cell, parts = options["token_merge_cell"], _parts(options["token_merge_parts"])
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

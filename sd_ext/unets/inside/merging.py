"""Token merging for diffusion: which tokens are merged, their mean, and how they are restored.

Bolya & Hoffman, "Token Merging for Fast Stable Diffusion", 2023, arXiv 2303.17604: one token in each cell of the grid
is a destination, every other token is a source. The sources most similar to a destination are merged into it, the layer
runs on fewer tokens, and each merged token is written back to all its members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Merge:
    """Which tokens are merged into which row, for each sample of a batch separately.

    The rows are the destinations, in the order of the grid, followed by the sources that are not merged.

    Attributes:
        keepers: `(batch, rows)`, the token that each row stands for.
        moved: `(batch, removed)`, the tokens that are merged into another.
        target: `(batch, removed)`, the row that each of these is merged into.
        owner: `(batch, tokens)`, the row that each token belongs to.
        sizes: `(batch, rows)`, the number of tokens in each row, float32.
    """

    keepers: torch.Tensor
    moved: torch.Tensor
    target: torch.Tensor
    owner: torch.Tensor
    sizes: torch.Tensor

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of each row's tokens: from `(batch, tokens, channels)` to `(batch, rows, channels)`."""
        rows = _take(x, self.keepers)
        # The mean is computed from differences to the destination, so equal tokens merge without rounding errors.
        apart = (_take(x, self.moved) - _take(rows, self.target)) / self.sizes.gather(1, self.target)[..., None].to(x)
        return rows.scatter_add(1, _wide(self.target, x), apart)

    def unmerge(self, y: torch.Tensor) -> torch.Tensor:
        """Give each token the value of its row: from `(batch, rows, channels)` to `(batch, tokens, channels)`."""
        return _take(y, self.owner)

    def log_sizes(self, dtype: torch.dtype) -> torch.Tensor:
        """The attention bias `(batch, 1, rows)` that gives each row as much weight as all its tokens would have.

        "Proportional attention": Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461, section 3.
        """
        return self.sizes.log().to(dtype)[:, None]


def _wide(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.gather(1, _wide(index, x))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Hash of 32-bit numbers held in int64 (Wellons' lowbias32): the same on every device, without a generator."""
    low = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = ((x ^ (x >> 15)) * 0x846CA68B) & low
    return x ^ (x >> 16)


def destinations(
    grid: tuple[int, int], cell: int, salt: torch.Tensor | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    """Choose one token in each cell of `cell` x `cell` tokens; cells at the right and the bottom may be smaller.

    Args:
        grid: height and width in tokens.
        cell: side of a cell in tokens.
        salt: int64 scalar from 0 to 2^32 - 1 that determines the token within each cell; None takes the upper left one.
        device: of the result.

    Returns:
        Positions in the flattened grid, int64, one for each of the ceil(height / cell) * ceil(width / cell) cells, cell
        row by cell row.
    """
    height, width = grid
    y = torch.arange(0, height, cell, device=device)[:, None]
    x = torch.arange(0, width, cell, device=device)[None]
    if salt is None:
        return (y * width + x).flatten()
    draw = _mix(_mix(y * width + x) ^ _mix(salt))
    down = (draw & 0xFFFF) % (height - y).clamp(max=cell)
    right = (draw >> 16) % (width - x).clamp(max=cell)
    return ((y + down) * width + x + right).flatten()


def removed(grid: tuple[int, int], cell: int, ratio: float) -> int:
    """How many tokens are removed: floor(ratio * tokens), but one is kept in each cell."""
    tokens, cells = grid[0] * grid[1], -(-grid[0] // cell) * -(-grid[1] // cell)
    return min(int(ratio * tokens), tokens - cells)


@torch.no_grad()
def match(
    x: torch.Tensor, grid: tuple[int, int], ratio: float, cell: int = 2, salt: torch.Tensor | None = None
) -> Merge:
    """Bipartite soft matching on the grid (arXiv 2303.17604, sections 3 and 4.1).

    Args:
        x: `(batch, height * width, channels)`. Tokens are compared by cosine similarity, each sample separately, so
            that a sample's result does not depend on its batch.
        grid: height and width in tokens.
        ratio: the fraction of tokens to remove, see `removed`.
        cell: side of the cells, which contain one destination each.
        salt: see `destinations`; the same for all samples of the batch.

    Returns:
        A `Merge`. If nothing is to be removed, merging and unmerging restores x exactly.
    """
    batch, tokens, _ = x.shape
    dst = destinations(grid, cell, salt, x.device)
    taken = torch.zeros(tokens, dtype=torch.bool, device=x.device).index_fill(0, dst, True)
    src = taken.to(torch.uint8).argsort(stable=True)[: tokens - len(dst)]

    unit = F.normalize(x, dim=-1)
    likeness, nearest = (unit[:, src] @ unit[:, dst].mT).max(-1)
    order = likeness.argsort(dim=1, descending=True, stable=True)
    going, staying = order.tensor_split([removed(grid, cell, ratio)], dim=1)

    moved, target = src[going], nearest.gather(1, going)
    keepers = torch.cat([dst.expand(batch, -1), src[staying]], dim=1)
    rows = torch.arange(keepers.shape[1], device=x.device).expand(batch, -1)
    owner = x.new_zeros(batch, tokens, dtype=torch.int64).scatter(1, keepers, rows).scatter(1, moved, target)
    sizes = torch.ones_like(rows, dtype=torch.float32)
    sizes = sizes.scatter_add(1, target, torch.ones_like(target, dtype=torch.float32))
    return Merge(keepers, moved, target, owner, sizes)

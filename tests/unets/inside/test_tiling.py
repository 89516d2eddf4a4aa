"""Tiles and thinned tokens: cut and joined without loss, and the same as a mask that forbids what they leave out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sd_ext.unets.inside.tiling import cut, join, nearest_divisor, thin

SIDES = st.tuples(st.integers(1, 4), st.integers(1, 5))


@given(SIDES, SIDES, st.booleans())
@settings(deadline=None, max_examples=30)
def test_join_undoes_cut_and_tiles_are_as_large_as_asked(vertical, horizontal, shift):
    (rows, th), (columns, tw) = vertical, horizontal
    grid, tile = (rows * th, columns * tw), (th, tw)
    x = torch.randn(2, grid[0] * grid[1], 3)
    tiles = cut(x, grid, tile, shift)
    assert tiles.shape == (2 * rows * columns, th * tw, 3)
    assert torch.equal(join(tiles, grid, tile, shift), x)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("grid", "tile"), [((6, 8), (3, 4)), ((4, 4), (2, 4)), ((5, 9), (5, 3)), ((4, 6), (4, 6))])
def test_attention_in_tiles_is_attention_under_a_mask_of_blocks(grid, tile, shift):
    (height, width), (th, tw) = grid, tile
    q, k, v = torch.randn(3, 2, height * width, 8).double()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    if shift:  # which tile each token is in once the grid has been rolled
        y, x = (y - (th // 2 if th < height else 0)) % height, (x - (tw // 2 if tw < width else 0)) % width
    number = (y // th * (width // tw) + x // tw).flatten()
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=number[:, None] == number[None])
    tiled = F.scaled_dot_product_attention(*(cut(each, grid, tile, shift) for each in (q, k, v)))
    torch.testing.assert_close(join(tiled, grid, tile, shift), exact)


@given(st.integers(1, 200), st.integers(1, 200))
@settings(deadline=None, max_examples=50)
def test_a_tile_divides_the_side_and_no_divisor_is_nearer(length, wanted):
    side = nearest_divisor(length, wanted)
    assert length % side == 0
    distance = lambda d: max(d / wanted, wanted / d)  # noqa: E731
    if wanted < length:
        assert all(distance(side) <= distance(d) + 1e-12 for d in range(1, length + 1) if length % d == 0)
    else:
        assert side == length


@pytest.mark.parametrize(
    ("length", "wanted", "side"), [(64, 32, 32), (96, 32, 32), (47, 32, 47), (47, 2, 1), (90, 32, 30)]
)
def test_sides_that_do_not_divide(length, wanted, side):
    assert nearest_divisor(length, wanted) == side


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_thinned_tokens_are_those_of_nearest_neighbour_downsampling(height, width, stride):
    x = torch.randn(2, height * width, 3)
    thinned = thin(x, (height, width), stride)
    picked = [y * width + z for y in range(0, height, stride) for z in range(0, width, stride)]
    assert torch.equal(thinned, x[:, picked])
    if height % stride == width % stride == 0:
        image = x.mT.reshape(2, 3, height, width)
        down = F.interpolate(image, scale_factor=1 / stride, mode="nearest").flatten(2).mT
        assert torch.equal(thinned, down)

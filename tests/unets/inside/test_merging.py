"""Token merging: every token is held once, means are means, nothing is lost where nothing differs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_ext.unets.inside.merging import destinations, match, removed

GRIDS = st.tuples(st.integers(1, 13), st.integers(1, 13))
SALTS = st.none() | st.integers(0, 2**32 - 1).map(torch.tensor)


def features(batch: int, grid: tuple[int, int], channels: int = 8, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(grid[0] * 100 + grid[1])
    return torch.randn(batch, grid[0] * grid[1], channels, generator=generator).to(dtype)


@given(GRIDS, st.integers(2, 4), SALTS)
@settings(deadline=None, max_examples=30)
def test_one_destination_lies_in_each_cell(grid, cell, salt):
    positions = destinations(grid, cell, salt)
    cells = [(p // grid[1] // cell, p % grid[1] // cell) for p in positions.tolist()]
    assert cells == [(y, x) for y in range(-(-grid[0] // cell)) for x in range(-(-grid[1] // cell))]


def test_destinations_are_drawn_evenly_and_anew_for_each_salt():
    places = torch.stack([destinations((32, 32), 2, torch.tensor(salt)) for salt in range(100)])
    down, right = places // 32 % 2, places % 2
    counts = torch.bincount((2 * down + right).flatten())
    assert counts.min() > 0.95 * counts.sum() / 4
    assert len({tuple(row.tolist()) for row in places}) == 100
    assert torch.equal(places[7], destinations((32, 32), 2, torch.tensor(7)))


@given(GRIDS, st.floats(0, 0.75), st.integers(2, 3), SALTS, st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_merged_tokens_are_the_means_of_their_members_and_the_mass_is_kept(grid, ratio, cell, salt, batch):
    x = features(batch, grid)
    merge = match(x, grid, ratio, cell, salt)
    rows, tokens = merge.merge(x), grid[0] * grid[1]
    assert rows.shape[1] == tokens - removed(grid, cell, ratio)
    for b in range(batch):
        for row in range(rows.shape[1]):
            members = x[b, merge.owner[b] == row]
            assert len(members) == merge.sizes[b, row]
            torch.testing.assert_close(rows[b, row], members.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((rows * merge.sizes[..., None]).sum(1), x.sum(1), rtol=1e-4, atol=1e-4)


@given(GRIDS, st.floats(0.01, 0.75), SALTS)
@settings(deadline=None, max_examples=30)
def test_the_most_alike_are_merged_each_into_its_nearest_destination(grid, ratio, salt):
    """By a search written out, over all pairs."""
    x = features(1, grid)[0]
    merge = match(x[None], grid, ratio, 2, salt)
    unit = torch.nn.functional.normalize(x, dim=-1)
    chosen = destinations(grid, 2, salt).tolist()
    best = {s: max((float(unit[s] @ unit[d]), d) for d in chosen) for s in range(len(x)) if s not in chosen}
    moved = merge.moved[0].tolist()
    left = [likeness for s, (likeness, _) in best.items() if s not in moved]
    for token, row in zip(moved, merge.target[0].tolist(), strict=True):
        likeness, nearest = best[token]
        into = int(merge.keepers[0, row])
        assert into == nearest or abs(float(unit[token] @ unit[into]) - likeness) < 1e-5
        assert all(likeness >= other - 1e-5 for other in left)


@given(GRIDS, SALTS, st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
@settings(deadline=None, max_examples=20)
def test_nothing_removed_is_the_identity_bit_for_bit(grid, salt, dtype):
    x = features(2, grid, dtype=dtype)
    merge = match(x, grid, 0.0, 2, salt)
    assert torch.equal(merge.unmerge(merge.merge(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(8, 8), (7, 5)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_equal_tokens_merge_without_loss(dtype, grid, ratio):
    constant = torch.randn(2, 1, 8).to(dtype).expand(2, grid[0] * grid[1], 8)
    merge = match(constant, grid, ratio)
    assert torch.equal(merge.unmerge(merge.merge(constant)), constant)
    cells = torch.randn(2, -(-grid[0] // 2), -(-grid[1] // 2), 8).to(dtype)
    x = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, : grid[0], : grid[1]].flatten(1, 2)
    merge = match(x, grid, ratio, salt=torch.tensor(3))
    assert torch.equal(merge.unmerge(merge.merge(x)), x)


def test_a_batch_is_merged_as_its_samples_are_apart():
    x = features(4, (9, 6))
    together = match(x, (9, 6), 0.5, 2, torch.tensor(1))
    for b in range(4):
        alone = match(x[b : b + 1], (9, 6), 0.5, 2, torch.tensor(1))
        assert torch.equal(alone.owner[0], together.owner[b])
        assert torch.equal(alone.merge(x[b : b + 1])[0], together.merge(x)[b])


def test_gradients_flow_to_every_token():
    x = features(1, (6, 6)).requires_grad_()
    merge = match(x, (6, 6), 0.5)
    (merge.unmerge(merge.merge(x)) ** 2).sum().backward()
    assert x.grad is not None and bool((x.grad.abs().sum(-1) > 0).all())

"""Ways to combine LoRAs, against the papers' formulas in numpy, and peft's functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import magnitude_prune, ties

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Combine, Keep, Lora, ModuleName, merge, resize
from sd_ext.lora.combine import METHODS, combined

ONE, TWO = ModuleName("unet", "mid_block.a"), ModuleName("unet", "mid_block.b")
quick = settings(max_examples=15, deadline=None)
counts, densities, strengths = st.integers(1, 4), st.floats(0.1, 1), st.lists(st.floats(-2, 2), min_size=4, max_size=4)


def drawn(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((6, 9)).astype(np.float32) for _ in range(count)]


def trimmed(change: np.ndarray, density: float) -> np.ndarray:
    keep = max(1, int(density * change.size))
    least = np.sort(np.abs(change).ravel())[-keep]
    return np.where(np.abs(change) >= least, change, 0)


def ties_by_the_paper(changes: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Elect the sign with the larger total mass, then average what has that sign, value by value."""
    made = np.zeros_like(changes[0])
    for place in np.ndindex(made.shape):
        values = [w * change[place] for w, change in zip(weights, changes, strict=True)]
        positive, negative = sum(v for v in values if v > 0), -sum(v for v in values if v < 0)
        agree = [v for v in values if (v > 0 if positive > negative else v < 0)]
        made[place] = sum(agree) / len(agree) if agree else 0.0
    return made


def run(method: str, changes: list[np.ndarray], weights: list[float], density: float, seed: int = 0) -> np.ndarray:
    how = Combine(method, density, seed)
    return combined([torch.from_numpy(change) for change in changes], weights, how, "a.module").numpy()


@quick
@given(counts, densities, strengths)
def test_ties_and_magnitude_are_the_papers(count, density, weights):
    weights = [round(w, 3) for w in weights[:count]]
    changes = drawn(count)
    kept = [trimmed(change, density) for change in changes]
    total = sum(w * change for w, change in zip(weights, kept, strict=True))
    np.testing.assert_allclose(run("magnitude", changes, weights, density), total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        run("ties", changes, weights, density), ties_by_the_paper(kept, weights), rtol=1e-5, atol=1e-5
    )


def test_they_are_pefts_too():
    changes = drawn(3)
    tensors = [torch.from_numpy(change) for change in changes]
    of_each = (("ties", ties, [1.0, 1.0, 1.0]), ("magnitude", magnitude_prune, [0.7, -0.4, 1.1]))
    for method, theirs, weights in of_each:  # peft elects signs before, we after strengths are applied
        expected = theirs(tensors, torch.tensor(weights), 0.4)
        np.testing.assert_allclose(run(method, changes, weights, 0.4), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_dare_keeps_a_share_and_its_mean_is_the_change():
    (change,) = drawn(1)
    samples = np.stack([run("dare", [change], [1.0], 0.25, seed) for seed in range(400)])
    kept = samples != 0
    np.testing.assert_allclose(samples[kept], np.broadcast_to(4 * change, samples.shape)[kept], rtol=1e-5)
    assert kept.mean() == pytest.approx(0.25, abs=0.01)
    assert np.abs(samples.mean(0) - change).max() < 6 * np.abs(change).max() * np.sqrt(3 / 400)
    both = run("dare_ties", drawn(3), [1.0, 1.0, 1.0], 0.5, 7)
    singles = [run("dare", [np.zeros_like(c)] * i + [c], [0.0] * i + [1.0], 0.5, 7) for i, c in enumerate(drawn(3))]
    np.testing.assert_allclose(both, ties_by_the_paper(singles, [1, 1, 1]), rtol=1e-5, atol=1e-6)


def lora(seed: int, rank: int = 2, size: int = 8) -> Lora:
    draw = torch.Generator().manual_seed(seed)
    return Lora(
        {
            module: Adapter(
                "lora",
                {"down": torch.randn(rank, size, generator=draw), "up": torch.randn(size, rank, generator=draw)},
                1.5,
            )
            for module in (ONE, TWO)
        }
    )


def test_random_choices_depend_on_the_seed_alone():
    made = [merge([(lora(1), 1.0), (lora(2), 0.5)], energy=1.0, how=Combine("dare", 0.5, seed)) for seed in (3, 3, 4)]
    assert torch.equal(made[0].delta(ONE), made[1].delta(ONE))
    assert not torch.equal(made[0].delta(ONE), made[2].delta(ONE))
    torch.rand(5)  # the global generator has no part in it
    alone = merge([(Lora({ONE: lora(i).adapters[ONE]}), s) for i, s in ((1, 1.0), (2, 0.5))], energy=1.0,
                  how=Combine("dare", 0.5, 3))  # fmt: skip
    assert torch.equal(made[0].delta(ONE), alone.delta(ONE))  # nor have other modules
    same = [run("dare", drawn(2), [1.0, 0.0], 0.5, 3), run("dare", drawn(2), [0.0, 1.0], 0.5, 3)]
    assert ((same[0] != 0) != (same[1] != 0)).any()  # LoRAs are thinned apart


@quick
@given(st.lists(st.floats(-2, 2).filter(lambda s: abs(s) > 0.01), min_size=2, max_size=3), st.booleans())
def test_cosine_counts_what_is_common_once(weights, exact):
    loras = [lora(seed) for seed in range(len(weights))]
    found = merge(list(zip(loras, weights, strict=True)), energy=None if exact else 1.0, how=Combine("cosine"))
    changes = [w * each.delta(ONE).double().numpy() for each, w in zip(loras, weights, strict=True)]
    expected = np.zeros((8, 8))
    for i, change in enumerate(changes):
        cosines = [
            max(0.0, (change * other).sum() / np.linalg.norm(change) / np.linalg.norm(other))
            for j, other in enumerate(changes)
            if j != i
        ]
        expected += change / (1 + sum(cosines))
    np.testing.assert_allclose(found.delta(ONE).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_equal_loras_are_averaged_and_opposite_ones_cancel():
    for sign, share in ((1.0, 1.0), (-1.0, 0.0)):
        made = merge([(lora(1), 1.0), (lora(1), sign)], how=Combine("cosine"))
        torch.testing.assert_close(made.delta(ONE), share * lora(1).delta(ONE), rtol=1e-4, atol=1e-5)


def test_the_difference_of_two_is_added_to_a_third():
    a, b, c = lora(1), lora(2), lora(3)
    expected = a.delta(ONE) + 0.7 * (b.delta(ONE) - c.delta(ONE))
    torch.testing.assert_close(merge([(a, 1.0), (b, 0.7), (c, -0.7)]).delta(ONE), expected, rtol=1e-5, atol=1e-5)


def test_other_ways_than_sums_need_a_limit_and_are_written_exactly_with_all():
    for method in METHODS:
        if method in ("sum", "cosine"):
            continue
        with pytest.raises(InputError, match=f"{method}: no exact sum; give a rank"):
            merge([(lora(1), 1.0), (lora(2), 1.0)], how=Combine(method))
        made = merge([(lora(1), 1.0), (lora(2), 1.0)], energy=1.0, how=Combine(method, 0.6))
        changes = [each.delta(ONE) for each in (lora(1), lora(2))]
        expected = combined(changes, [1.0, 1.0], Combine(method, 0.6), str(ONE))
        torch.testing.assert_close(made.delta(ONE), expected, rtol=1e-4, atol=1e-5)
    for wrong in (
        {"method": "mean"},
        {"density": 0.5},
        {"method": "ties", "density": 0.0},
        {"method": "dare", "density": 2},
    ):
        with pytest.raises(InputError, match=r"density|unknown way"):
            Combine(*wrong)


# ---- how much is kept ------------------------------------------------------------------------------------------------


def as_kohya_counts(values: np.ndarray, name: str, target: float) -> int:
    """The number of directions, as kohya's resize script defines it."""
    if name == "sv_ratio":
        return int((values > values[0] / target).sum())
    parts = values if name == "sv_cumulative" else values**2
    shares = np.cumsum(parts) / parts.sum()
    return int(np.searchsorted(shares, target if name == "sv_cumulative" else target**2)) + 1


@quick
@given(st.sampled_from(["sv_fro", "sv_cumulative", "sv_ratio"]), st.floats(0.05, 0.99), st.integers(0, 50))
def test_kohyas_limits(name, share, seed):
    target = 1 + 20 * share if name == "sv_ratio" else share
    wide = lora(seed, rank=6)
    values = np.linalg.svd(wide.delta(ONE).double().numpy(), compute_uv=False)[:6]
    found = resize(wide, keep=Keep(**{name: target}))
    assert found.adapters[ONE].rank == max(1, as_kohya_counts(values, name, target))
    if name == "sv_fro":
        assert found.adapters[ONE].rank == resize(wide, energy=share**2).adapters[ONE].rank
        assert found.errors[ONE] ** 2 <= 1 - share**2 + 1e-6


def test_limits_hold_together_and_convolutions_have_their_own():
    draw = torch.Generator().manual_seed(0)
    for size, expected in ((None, 4), (1, 4), (3, 2)):
        kernel = () if size is None else (size, size)
        tensors = {"down": torch.randn(8, 9, *kernel, generator=draw), "up": torch.randn(9, 8, generator=draw)}
        tensors["up"] = tensors["up"].reshape(9, 8, *[1] * len(kernel))
        one = Lora({ONE: Adapter("lora", tensors, 8.0)})
        assert resize(one, keep=Keep(rank=4, conv_rank=2)).adapters[ONE].rank == expected
        assert resize(one, keep=Keep(rank=4, conv_rank=2, sv_ratio=1.0001)).adapters[ONE].rank == 1
        same = resize(one, keep=Keep(rank=8, conv_rank=9)).adapters[ONE]
        assert same is one.adapters[ONE]
    for wrong in ({}, {"conv_rank": 0}, {"sv_ratio": 1.0}, {"sv_fro": 0.0}, {"sv_cumulative": 1.1}):
        with pytest.raises(InputError, match=r"rank|sv_|energy"):
            Keep(**wrong)

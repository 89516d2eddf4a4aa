"""Merging, resizing and extracting, against the matrices they stand for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Lora, ModuleName, apply_lora, extract, merge, read_lora, resize, save_lora
from sd_ext.lora.low_rank import Keep, truncate, truncate_product

from . import models

ONE = ModuleName("unet", "conv_in")
sides, ranks, kernels = st.integers(1, 9), st.integers(1, 6), st.sampled_from([None, 1, 3])
alphas = st.floats(0.1, 20)
quick = settings(max_examples=25, deadline=None)


def random_lora(out, inside, rank, alpha, kernel=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    size = () if kernel is None else (kernel, kernel)
    down, up = torch.randn(rank, inside, *size, generator=draw), torch.randn(out, rank, generator=draw)
    return Lora({ONE: Adapter("lora", {"down": down, "up": up.reshape(out, rank, *[1] * len(size))}, alpha)})


def dense(lora):
    return lora.delta(ONE).flatten(1).double()


@quick
@given(sides, sides, st.lists(st.tuples(ranks, alphas, st.floats(-2, 2)), min_size=1, max_size=4), kernels)
def test_merging_is_exactly_the_sum(out, inside, parts, kernel):
    loras = [(random_lora(out, inside, r, a, kernel, seed), s) for seed, (r, a, s) in enumerate(parts)]
    merged = merge(loras)
    expected = sum(s * dense(lora) for lora, s in loras)
    torch.testing.assert_close(dense(merged), expected, rtol=1e-5, atol=1e-4)
    assert merged.adapters[ONE].rank == sum(r for r, _, _ in parts)
    assert merged.adapters[ONE].scale == 1
    again = merge(loras, energy=1.0)
    torch.testing.assert_close(dense(again), expected, rtol=1e-5, atol=1e-4)
    assert again.adapters[ONE].rank <= min(expected.shape)


@quick
@given(sides, sides, ranks, alphas, kernels, st.integers(1, 8))
def test_resizing_is_the_best_approximation(out, inside, rank, alpha, kernel, wanted):
    lora = random_lora(out, inside, rank, alpha, kernel)
    resized = resize(lora, rank=wanted)
    values = np.linalg.svd(dense(lora).numpy(), compute_uv=False)
    left_out = np.sqrt((values[wanted:] ** 2).sum())
    assert (dense(resized) - dense(lora)).norm() == pytest.approx(left_out, abs=2e-5 * values[0])
    assert resized.errors[ONE] == pytest.approx(left_out / np.linalg.norm(values), abs=1e-6)
    if wanted >= rank:
        assert resized.adapters[ONE] is lora.adapters[ONE]  # to its own rank: not even rounded


@quick
@given(sides, sides, ranks, st.floats(0.05, 1.0))
def test_energy_keeps_the_fewest_directions_that_hold_it(out, inside, rank, energy):
    lora = random_lora(out, inside, rank, 1.0)
    resized = resize(lora, energy=energy)
    shares = np.cumsum(np.linalg.svd(dense(lora).numpy(), compute_uv=False) ** 2)
    shares /= shares[-1]
    kept = resized.adapters[ONE].rank
    assert shares[kept - 1] >= energy - 1e-6
    assert kept == 1 or shares[kept - 2] < energy + 1e-6
    assert 1 - resized.errors[ONE] ** 2 == pytest.approx(shares[kept - 1], abs=1e-6)


@quick
@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 6))
def test_errors_fall_as_ranks_rise(out, inside, rank):
    lora = random_lora(out, inside, rank, 3.0)
    errors = [resize(lora, rank=r).errors[ONE] for r in range(1, rank + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


@quick
@given(st.integers(1, 12), st.integers(1, 12), ranks, st.integers(1, 8))
def test_a_product_is_truncated_as_its_matrix_is(out, inside, rank, wanted):
    draw = torch.Generator().manual_seed(out * 13 + inside)
    up, down = torch.randn(out, rank, generator=draw), torch.randn(rank, inside, generator=draw)
    one, other = truncate_product(up, down, Keep(wanted)), truncate(up.double() @ down.double(), Keep(wanted))
    torch.testing.assert_close(one.up @ one.down, other.up @ other.down, rtol=1e-4, atol=1e-4)
    norms = [one.up.norm(dim=0), one.down.norm(dim=1)]
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-4)  # balanced, as low precision likes them


def test_nothing_stays_nothing():
    zero = merge([(random_lora(4, 5, 2, 1.0), 1.0), (random_lora(4, 5, 2, 1.0), -1.0)], energy=0.9)
    assert dense(zero).norm() < 1e-6
    flat = truncate(torch.zeros(3, 4), Keep(2))
    assert (flat.up @ flat.down).abs().max() == flat.error == 0


@pytest.fixture(scope="module")
def tuned():
    """A tiny model and a copy with a low-rank change in every linear layer and convolution but the first."""
    base = models.tiny_models("sd15")
    changed = copy.deepcopy(base)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for model in changed.values():
            for module in list(model.modules()):
                if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and module is not changed["unet"].conv_in:
                    flat = module.weight.flatten(1)
                    change = torch.randn(flat.shape[0], 2, generator=draw) @ torch.randn(
                        2, flat.shape[1], generator=draw
                    )
                    module.weight += 0.05 * change.reshape(module.weight.shape)
    return base, changed


def test_extracting_finds_what_was_added(tuned, tmp_path):
    base, changed = tuned
    lora = extract(base, changed, rank=2)
    assert max(lora.errors.values()) < 1e-5
    assert ModuleName("unet", "conv_in") not in lora.adapters
    assert lora.parts == ["text_encoder", "unet"]
    save_lora(lora, tmp_path / "a.safetensors", "kohya")
    made = copy.deepcopy(base)
    apply_lora(made, read_lora(tmp_path / "a.safetensors"))
    for part, expected in models.outputs(changed).items():
        torch.testing.assert_close(models.outputs(made)[part], expected, rtol=1e-3, atol=1e-3)


def test_extracting_less_costs_what_it_says(tuned):
    base, changed = tuned
    lora = extract({"unet": base["unet"]}, {"unet": changed["unet"]}, rank=1)
    for module in list(lora.adapters)[:20]:
        difference = changed["unet"].get_submodule(module.path).weight - base["unet"].get_submodule(module.path).weight
        lost = (lora.delta(module) - difference).norm() / difference.norm()
        assert lost == pytest.approx(lora.errors[module], abs=1e-5)


def test_progress_counts_every_module(tuned):
    seen = []
    merge([(random_lora(3, 3, 1, 1.0), 1.0)], on_module=lambda *step: seen.append(step))
    assert seen == [(1, 1, ONE)]


def test_what_cannot_be_made_is_said(tuned, sd15):
    base, _ = tuned
    small, large = random_lora(3, 3, 1, 1.0), random_lora(3, 4, 1, 1.0)
    with pytest.raises(InputError, match=r"unet.conv_in: the LoRAs are for different shapes: \(3, 3\), \(3, 4\)"):
        merge([(small, 1.0), (large, 1.0)])
    with pytest.raises(InputError, match="no LoRA"):
        merge([])
    with pytest.raises(InputError, match="different bases: sd15, sdxl"):
        merge([(sd15.lora, 1.0), (Lora(small.adapters, base="sdxl"), 1.0)])
    for wrong in ({}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {"energy": float("nan")}):
        with pytest.raises(InputError, match=r"rank|energy"):
            resize(small, **wrong)
    with pytest.raises(InputError, match="nothing to extract"):
        extract(base, base, rank=1)
    with pytest.raises(InputError, match=r"text_encoder|unet"):
        extract({"unet": base["unet"]}, {"unet": models.tiny_models("sdxl")["unet"]}, rank=1)
    kronecker = Lora({ONE: Adapter("lokr", {"w1": torch.ones(1, 1), "w2": torch.ones(3, 3)}, 1.0)})
    with pytest.raises(InputError, match="no exact sum; give a rank"):
        merge([(kronecker, 1.0), (small, 1.0)])
    both = merge([(kronecker, 1.0), (small, 1.0)], energy=1)
    torch.testing.assert_close(dense(both), 1 + dense(small), rtol=1e-5, atol=1e-5)

"""Errors against their formulas, their limits, and what a mask does."""

import pytest
import torch
from torch.nn import functional

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.objective.error import error, huber_delta
from sd_ext.training.objective.settings import ERRORS


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)


def test_against_torch(pair):
    for kind, theirs in (("l2", functional.mse_loss), ("l1", functional.l1_loss)):
        torch.testing.assert_close(error(kind, *pair).mean(), theirs(*pair))
    torch.testing.assert_close(error("smooth_l1", *pair, delta=0.7).mean(), functional.smooth_l1_loss(*pair, beta=0.7))


def test_pseudo_huber_as_its_formula_and_its_limits(pair):
    d, delta = (pair[0] - pair[1]).double(), 0.3
    expected = (2 * delta * ((d.square() + delta**2).sqrt() - delta)).mean((1, 2, 3)).float()
    torch.testing.assert_close(error("huber", *pair, delta=delta), expected)
    torch.testing.assert_close(error("huber", *pair, delta=1e6), error("l2", *pair))
    torch.testing.assert_close(error("huber", *pair, delta=1e-6) / 2e-6, error("l1", *pair), rtol=1e-4, atol=0)


def test_pseudo_huber_keeps_small_errors():
    """The formula as written is 0 in float32 where d is far below delta."""
    tiny = torch.full((1, 1, 1, 1), 1e-5)
    assert float(error("huber", tiny, 0 * tiny, delta=1.0)) == pytest.approx(1e-10, rel=1e-4)


@pytest.mark.parametrize("kind", ERRORS)
def test_gradients_are_finite_where_the_prediction_is_right(kind):
    prediction = torch.zeros(2, 1, 2, 2, requires_grad=True)
    error(kind, prediction, torch.zeros(2, 1, 2, 2), delta=0.1).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().max() == 0


def test_a_delta_for_each_sample(pair):
    deltas = torch.tensor([0.1, 0.5, 2.0])
    for kind in ("huber", "smooth_l1"):
        alone = [error(kind, a[None], b[None], float(d)) for a, b, d in zip(*pair, deltas, strict=True)]
        torch.testing.assert_close(error(kind, *pair, delta=deltas), torch.cat(alone))


def test_low_precision_is_measured_in_float32(pair):
    half = [x.bfloat16() for x in pair]
    torch.testing.assert_close(error("l2", *half), error("l2", *(x.float() for x in half)))
    assert error("l2", *half).dtype == torch.float32


@pytest.mark.parametrize("kind", ERRORS)
def test_a_mask_is_the_mean_over_what_it_shows(pair, kind):
    mask = torch.zeros(3, 1, 5, 6)
    mask[:, :, 1:3, 2:4] = 1
    cut = [x[:, :, 1:3, 2:4] for x in pair]
    torch.testing.assert_close(error(kind, *pair, mask=mask), error(kind, *cut))
    torch.testing.assert_close(error(kind, *pair, mask=0.1 * mask), error(kind, *cut))
    torch.testing.assert_close(error(kind, *pair, mask=torch.ones(3, 1, 5, 6)), error(kind, *pair))
    assert error(kind, *pair, mask=0 * mask).tolist() == [0, 0, 0]


def test_a_masked_error_is_linear_in_the_weights(pair):
    mask = torch.rand(3, 1, 5, 6)
    pixels = (pair[0] - pair[1]).square()
    expected = (mask * pixels).sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3)))
    torch.testing.assert_close(error("l2", *pair, mask=mask), expected)


def test_shapes_that_do_not_fit(pair):
    with pytest.raises(InputError, match=r"\(3, 4, 5, 6\) and its target \(3, 1, 5, 6\)"):
        error("l2", pair[0], pair[1][:, :1])
    with pytest.raises(InputError, match=r"must be \(3, 1, 5, 6\), not \(3, 4, 5, 6\)"):
        error("l2", *pair, mask=torch.ones(3, 4, 5, 6))
    with pytest.raises(UnknownNameError, match="huber"):
        error("hubert", *pair)


def test_delta_falls_from_1_to_the_one_given():
    t, snr = torch.tensor([0, 500, 1000]), torch.tensor([torch.inf, 1.0, 0.0])
    assert huber_delta("constant", 0.2, t, 1000, snr).tolist() == pytest.approx([0.2] * 3)
    assert huber_delta("exponential", 0.25, t, 1000, snr).tolist() == pytest.approx([1, 0.5, 0.25])
    assert huber_delta("snr", 0.2, t, 1000, snr).tolist() == pytest.approx([1, 0.4, 0.2])  # (1 - 0.2) / 2^2 + 0.2
    with pytest.raises(UnknownNameError, match="exponential"):
        huber_delta("exponental", 0.2, t, 1000, snr)
    with pytest.raises(InputError, match="more than 0"):
        huber_delta("snr", 0.0, t, 1000, snr)

"""Pictures unlike those of any data set: what they are, how often they come, and that a run asks for them."""

import pytest
import torch

from sd_ext.training.data.strangers import KINDS, cutting, estrange, halves, noise, plain


def draws(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def picture():
    return torch.rand(3, 24, 32, generator=draws(9)) * 2 - 1


@pytest.mark.parametrize("kind", sorted(set(KINDS), key=lambda kind: kind.__name__))
def test_every_kind_is_a_picture_and_depends_on_its_draw_only(kind, picture):
    before = picture.clone()
    made = [kind(picture, draws(seed)) for seed in (1, 1, 2)]
    assert all(each.shape == picture.shape and each.abs().max() <= 1 for each in made)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(picture, before)


def test_what_each_kind_is(picture):
    def colours(made):
        return len(made.flatten(1).T.unique(dim=0))

    for seed in range(30):
        assert colours(plain(picture, draws(seed))) == 1
        assert colours(halves(picture, draws(seed))) <= 2
        cut = cutting(picture, draws(seed))
        assert cut.min() >= picture.min() and cut.max() <= picture.max()
    assert max(colours(noise(picture, draws(seed))) for seed in range(30)) == 24 * 32
    assert any(colours(halves(picture, draws(seed))) == 2 for seed in range(30))


def test_they_come_as_often_as_the_share_says(picture):
    assert estrange(picture, 0.0, draws(0)) is picture
    strange = sum(estrange(picture, 0.25, draws(seed)) is not picture for seed in range(800))
    assert 150 < strange < 250  # 200 expected; 1 in 10,000 lies outside
    assert all(estrange(picture, 1.0, draws(seed)) is not picture for seed in range(20))

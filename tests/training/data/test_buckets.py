"""Aspect-ratio buckets: what is promised of every picture's size."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sd_ext.errors import InputError
from sd_ext.training.data.buckets import Buckets, centre, cover, room

SIDE = st.integers(1, 3000)
STEP = st.sampled_from([1, 8, 32, 64])
RESOLUTIONS = st.lists(st.integers(64, 300), min_size=1, max_size=3).map(tuple)


@st.composite
def all_buckets(draw):
    return Buckets(draw(RESOLUTIONS), draw(STEP), draw(st.floats(1, 4)), upscale=draw(st.booleans()))


@settings(deadline=None)
@given(all_buckets())
def test_every_bucket_keeps_to_area_step_and_ratio(buckets):
    for resolution, sizes in buckets.sizes.items():
        assert sizes
        for h, w in sizes:
            assert h % buckets.step == w % buckets.step == 0 < min(h, w)
            assert h * w <= resolution**2
            assert max(h, w) <= buckets.max_ratio * min(h, w)
        assert sorted((w, h) for h, w in sizes) == sorted(sizes)


@settings(deadline=None)
@given(SIDE, SIDE, all_buckets())
def test_every_picture_fits_its_buckets(height, width, buckets):
    sizes = buckets.assign(height, width)
    assert len(set(sizes)) == len(sizes)
    assert bool(sizes) or (not buckets.upscale and min(height, width) < buckets.step)
    for h, w in sizes:
        assert h % buckets.step == w % buckets.step == 0
        assert h * w <= buckets.resolutions[-1] ** 2
        assert max(h, w) <= buckets.max_ratio * min(h, w)
        scaled = cover((height, width), (h, w))
        assert scaled[0] >= h
        assert scaled[1] >= w
        assert scaled[0] == h or scaled[1] == w
        if not buckets.upscale:
            assert h <= height
            assert w <= width
    for h, w in sizes[1:]:  # only the least resolution is forced
        assert h <= height
        assert w <= width


@settings(deadline=None)
@given(SIDE, SIDE, SIDE, all_buckets())
def test_wider_pictures_get_wider_buckets(a, b, height, buckets):
    resolution = buckets.resolutions[0]
    narrow, wide = sorted((a, b))
    ratios = [w / h for h, w in (buckets.nearest(height, width, resolution) for width in (narrow, wide))]
    assert ratios[0] <= ratios[1]


@settings(deadline=None)
@given(SIDE, SIDE, all_buckets())
def test_the_nearest_ratio_is_nearest(height, width, buckets):
    resolution = buckets.resolutions[0]

    def distance(size):
        return abs(math.log(size[1] / size[0]) - math.log(width / height))

    best = buckets.nearest(height, width, resolution)
    assert distance(best) == min(distance(size) for size in buckets.sizes[resolution])


@settings(deadline=None)
@given(SIDE, SIDE, all_buckets())
def test_turning_a_picture_turns_its_own_bucket(height, width, buckets):
    assume(height != width)
    own = buckets._own(height, width, buckets.resolutions[0])
    turned = buckets._own(width, height, buckets.resolutions[0])
    assert turned == (own and own[::-1])


def test_sd15_buckets():
    """By hand: 384 x 682 rounds down to 384 x 640, 448 x 585 to 448 x 576; 320 x 819 is too long."""
    sizes = Buckets((512,)).sizes[512]
    assert sizes == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]


def test_several_resolutions():
    buckets = Buckets((256, 512, 1024))
    assert buckets.assign(2000, 2000) == [(256, 256), (512, 512), (1024, 1024)]
    assert buckets.assign(600, 800) == [(192, 320), (448, 576)]
    assert buckets.assign(300, 300) == [(256, 256)]
    assert buckets.assign(200, 100) == [(128, 64)]
    assert Buckets((256, 512), upscale=True).assign(100, 100) == [(256, 256)]
    assert buckets.assign(63, 1000) == []


@settings(deadline=None)
@given(SIDE, SIDE)
def test_squares(height, width):
    assert Buckets((128, 64), step=8, enabled=False).assign(height, width)[0] == (64, 64)
    both = Buckets((64, 128), step=8, enabled=False).assign(height, width)
    assert ((128, 128) in both) == (min(height, width) >= 128)


@settings(deadline=None)
@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE))
def test_the_centre_is_in_the_middle(original, size):
    for place, space in zip(centre(original, size), room(original, size), strict=True):
        assert 0 <= place <= space
        assert abs(2 * place - space) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolutions": ()}, "at least 1 pixel"),
        ({"resolutions": (0,)}, "at least 1 pixel"),
        ({"resolutions": (512,), "step": 0}, "at least 1 pixel"),
        ({"resolutions": (512,), "max_ratio": 0.5}, "max_ratio"),
        ({"resolutions": (512,), "max_ratio": math.nan}, "max_ratio"),
        ({"resolutions": (32,)}, "resolution 32 is below the buckets' step of 64"),
        ({"resolutions": (100,), "enabled": False}, "not a multiple of 64"),
    ],
)
def test_buckets_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        Buckets(**arguments)

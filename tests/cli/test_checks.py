from __future__ import annotations

import math

import pytest

from sd_ext.cli import checks
from sd_ext.errors import InputError


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**12])
def test_steps_that_cannot_work(steps):
    with pytest.raises(InputError, match=rf"--steps {steps} .* 1 to 1000"):
        checks.check_steps(steps)


@pytest.mark.parametrize("guidance", [-0.1, 101, math.inf, -math.inf, math.nan])
def test_guidance_that_cannot_work(guidance):
    with pytest.raises(InputError, match=r"--guidance .* 0 to 100"):
        checks.check_guidance(guidance)


@pytest.mark.parametrize(
    "size", ["64", "64x", "x64", "0x0", "-64x64", "65x64", "64x8", "64x8192", "6.4x64", "", "64x64x64"]
)
def test_sizes_that_cannot_work(size):
    with pytest.raises(InputError, match="--size"):
        checks.parse_size(size)


def test_sizes_are_width_first():
    assert checks.parse_size("64x96") == checks.parse_size("64X96") == (64, 96)
    assert checks.parse_size(None) is None


@pytest.mark.parametrize("prompts", [[], [""], ["red apple", "  "], ["red \udcff apple"]])
def test_prompts_that_cannot_work(prompts):
    with pytest.raises(InputError, match="prompt"):
        checks.check_prompts(prompts)


@pytest.mark.parametrize(("number", "prompts"), [(0, 1), (-1, 1), (1001, 1), (501, 2)])
def test_numbers_of_pictures_that_cannot_work(number, prompts):
    with pytest.raises(InputError, match="--num"):
        checks.check_number(number, prompts)


def test_seeds():
    assert checks.resolve_seed(7, 3) == 7
    assert checks.resolve_seed(-1, 1) != checks.resolve_seed(-1, 1)
    assert checks.resolve_seed(2**64 - 2, 2) == 2**64 - 2  # the last one is the most that torch takes
    for seed in (-2, 2**64 - 1, 2**64):
        with pytest.raises(InputError, match="--seed"):
            checks.resolve_seed(seed, 2)


def test_all_that_can_work_does():
    checks.check_prompts(["red apple", "リンゴ"])
    for steps in (1, 20, 1000):
        checks.check_steps(steps)
    for guidance in (None, 0.0, 1.0, 7.5, 100.0):
        checks.check_guidance(guidance)
    checks.check_number(1000, 1)

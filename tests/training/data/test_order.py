"""The order of samples: what a step holds depends on (seed, step), never on how the step is cut up and dealt out."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_ext.errors import InputError
from sd_ext.training.data.order import Pass, StepOrder

SIZES = st.lists(st.sampled_from([(8, 8), (8, 12), (12, 8)]), min_size=1, max_size=40)
GROUPS = {6: [(6, 1), (3, 2), (2, 3), (1, 6), (1, 1), (2, 1), (3, 1)], 4: [(4, 1), (2, 2), (1, 4), (1, 2), (1, 1)]}
"""group -> (batch size, processes); what is missing of the product is accumulation."""


def dealt(order: StepOrder, step: int, processes: int) -> list[list[Pass]]:
    return [order.passes(step, process, processes) for process in range(processes)]


def placed(order: StepOrder, step: int, processes: int) -> dict[int, int]:
    """position -> sample, of all processes."""
    passes = [each for work in dealt(order, step, processes) for each in work if not each.idle]
    pairs = [pair for each in passes for pair in zip(each.positions, each.samples, strict=True)]
    assert len(pairs) == len(dict(pairs))  # no position twice
    return dict(pairs)


@given(sizes=SIZES, group=st.sampled_from([1, 4, 6]), seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_holds_every_sample_once(sizes, group, seed, epoch):
    order = StepOrder(sizes, 2, group, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert Counter(s for step in steps for s in order.step(step)) == Counter(range(len(sizes)))


@given(sizes=SIZES, group=st.sampled_from([4, 6]), seed=st.integers(0, 99), step=st.integers(0, 60))
@settings(deadline=None)
def test_groups_and_positions_do_not_depend_on_how_a_step_is_cut(sizes, group, seed, step):
    seen = [placed(StepOrder(sizes, b, group, seed), step, processes) for b, processes in GROUPS[group]]
    assert all(each == seen[0] for each in seen)
    assert sorted(seen[0]) == list(range(len(seen[0])))


@given(sizes=SIZES, group=st.sampled_from([4, 6]), step=st.integers(0, 60), batch_size=st.integers(1, 6))
@settings(deadline=None)
def test_shares_add_up_and_every_process_has_as_many_passes(sizes, group, step, batch_size):
    order = StepOrder(sizes, batch_size, group, 0)
    for processes in (1, 2, 3):
        work = dealt(order, step, processes)
        assert len({len(passes) for passes in work}) == 1
        assert work[0]
        passes = [each for part in work for each in part]
        assert sum(each.share for each in passes) == pytest.approx(1)
        assert all(each.share == 0 for each in passes if each.idle)
        assert sum(each.idle for each in passes) < processes
        assert all(len({sizes[s] for s in each.samples}) == 1 for each in passes)
        assert all(1 <= len(each.samples) <= batch_size for each in passes)
        assert {each.group for each in passes} == {len(order.step(step))}


@given(sizes=SIZES, group=st.sampled_from([1, 4, 6]), picks=st.lists(st.integers(0, 200), max_size=6))
@settings(deadline=None)
def test_any_step_can_be_asked_for_first(sizes, group, picks):
    """As after a resume: nothing but the number of the step says what it holds."""
    order = StepOrder(sizes, 2, group, 3)
    sequence = [order.step(step) for step in range(max(picks, default=0) + 1)]
    for step in picks:
        assert StepOrder(sizes, 2, group, 3).step(step) == sequence[step] == order.step(step)


@given(sizes=SIZES, group=st.sampled_from([2, 4, 6]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_sizes_are_mixed_only_among_what_is_left_over(sizes, group, seed):
    order = StepOrder(sizes, 2, group, seed)
    count = Counter(sizes)
    steps = [order.step(step) for step in range(order.steps_per_epoch)]
    full = [samples for samples in steps if len(samples) == group and len({sizes[s] for s in samples}) == 1]
    pure = Counter(sizes[samples[0]] for samples in full)
    assert all(pure[size] >= count[size] // group for size in count)
    assert sum(len(samples) < group for samples in steps) <= 1
    mixed = [samples for samples in steps if len({sizes[s] for s in samples}) > 1]
    assert sum(map(len, mixed)) <= sum(n % group for n in count.values())


def test_the_order_differs_between_epochs_and_seeds():
    orders = [StepOrder([(8, 8)] * 30, 5, 5, seed) for seed in (0, 1)]
    epochs = [[order.step(6 * epoch + i) for i in range(6)] for order in orders for epoch in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 6


def test_nothing_to_order():
    with pytest.raises(InputError, match="no samples to train on"):
        StepOrder([], 2, 4, 0)

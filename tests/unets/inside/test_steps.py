"""Which step, branch and run a call is, from what pipelines and loops pass."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_ext.unets.inside.steps import States, StepTracker


def seen(tracker: StepTracker, timesteps) -> list[tuple[int, int]]:
    return [(call.step, call.branch) for call in map(tracker.observe, timesteps)]


def as_views(values, dtype=torch.int64):
    return list(torch.tensor(values, dtype=dtype))


def as_numbers(values):
    return list(values)


def as_batches(values):
    return [torch.full((4,), value) for value in values]


def as_expanded(values):
    return [t.expand(4) for t in torch.tensor(values)]


def as_fresh(values):
    return [torch.tensor(value) for value in values]


WAYS = [as_views, as_numbers, as_batches, as_expanded, as_fresh]
falling = st.lists(st.integers(0, 999), min_size=2, max_size=12, unique=True).map(lambda t: sorted(t, reverse=True))


@pytest.mark.parametrize("way", WAYS)
@given(values=falling, branches=st.integers(1, 3), runs=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_every_way_to_pass_timesteps_counts_alike(way, values, branches, runs):
    tracker = StepTracker()
    for _ in range(runs):
        calls = [t for t in way(values) for _ in range(branches)]
        assert seen(tracker, calls) == [(step, branch) for step in range(len(values)) for branch in range(branches)]


def test_the_number_of_steps_is_known_from_a_view():
    timesteps = torch.arange(9, -1, -1)
    assert StepTracker().observe(timesteps[0]).total == 10
    tracker = StepTracker()
    assert [tracker.observe(t).total for t in timesteps[4:]] == [6] * 6, "image to image begins later"
    assert tracker.observe(9).total is None


def test_a_value_that_repeats_at_another_place_is_another_step():
    heun = as_views([900, 700, 700, 400, 400, 100, 100])
    assert seen(StepTracker(), heun) == [(step, 0) for step in range(7)]
    assert seen(StepTracker(), [900, 700, 700, 400, 400]) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_batches_of_any_size_are_at_the_same_step():
    calls = [torch.full((size,), t) for t in (900, 500) for size in (4, 2)]
    assert seen(StepTracker(), calls) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    each = [torch.tensor([900, 800]), torch.tensor([900, 700])]
    assert seen(StepTracker(), each) == [(0, 0), (1, 0)]


def test_a_restart_within_a_run_is_no_new_run():
    tracker = StepTracker()
    calls = list(map(tracker.observe, as_views([900, 500, 100, 500, 100])))
    assert [call.step for call in calls] == [0, 1, 2, 3, 4]
    assert [call.rises for call in calls] == [False, False, False, True, False]
    assert seen(StepTracker(), [900, 500, 700, 600]) == [(0, 0), (1, 0), (0, 0), (1, 0)]


def test_another_tensor_is_a_new_run_even_with_the_same_values():
    tracker = StepTracker()
    assert seen(tracker, as_views([900, 500, 100])[:1]) == [(0, 0)], "a run that was broken off"
    assert seen(tracker, as_views([900, 500, 100])) == [(0, 0), (1, 0), (2, 0)]


def test_a_tensor_that_was_written_to_is_another():
    timesteps = torch.tensor([900, 500, 100])
    tracker = StepTracker()
    seen(tracker, timesteps)
    timesteps.sub_(50)
    calls = list(map(tracker.observe, timesteps))
    assert [(call.step, call.timestep) for call in calls] == [(0, 850), (1, 450), (2, 50)]


def test_inference_mode_and_meta_tensors():
    with torch.inference_mode():
        assert seen(StepTracker(), as_views([3, 2, 1])) == [(0, 0), (1, 0), (2, 0)]
    assert seen(StepTracker(), torch.arange(3, device="meta")) == [(0, 0), (1, 0), (2, 0)]


def test_a_view_is_read_once_a_run(monkeypatch):
    """On CUDA each read waits for the device."""
    reads = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self) or real(self))
    for name in ("item", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self: pytest.fail("read"))
    tracker = StepTracker()
    for _ in range(2):
        for t in torch.arange(9, -1, -1):
            tracker.observe(t)
    assert len(reads) == 2


def test_contexts_and_threads_are_counted_apart():
    states = States()
    assert states.observe(900).step == 0
    assert states.observe(800).step == 1
    with states.context("other"):
        assert states.observe(900).step == 0
        states.current().memory["kept"] = "other's"
        with states.context("inner"):
            assert states.observe(850).step == 0
        assert states.observe(800).step == 1
    assert states.observe(700).step == 2
    assert states.current().memory == {}
    found = []
    thread = threading.Thread(target=lambda: found.append(states.observe(600).step))
    thread.start()
    thread.join()
    assert found == [0]
    states.reset()
    assert states.observe(600).step == 0
    with states.context("other"):
        assert states.observe(600).step == 0
        assert states.current().memory == {}

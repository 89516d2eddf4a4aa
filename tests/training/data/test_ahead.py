"""Results read ahead: in order, no further ahead than asked, and errors in their place."""

import threading
from functools import partial
from itertools import count, islice

import pytest

from sd_ext.training.data.ahead import read_ahead

THREADS = [(0, 1), (1, 1), (3, 2), (3, 9)]


@pytest.mark.parametrize(("threads", "depth"), THREADS)
def test_in_order(threads, depth):
    barrier = threading.Event()

    def call(number):
        if number == 0 and threads > 1:
            barrier.wait(10)  # others finish first
        barrier.set()
        return number

    assert list(read_ahead((partial(call, n) for n in range(20)), threads, depth)) == list(range(20))


@pytest.mark.parametrize(("threads", "depth"), THREADS)
def test_an_error_comes_where_it_belongs(threads, depth):
    def call(number):
        if number == 5:
            raise ValueError("picture five")
        return number

    seen = []
    with pytest.raises(ValueError, match="picture five"):
        for result in read_ahead((partial(call, n) for n in range(20)), threads, depth):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("threads", "depth"), THREADS)
def test_no_further_ahead_than_asked_of_what_never_ends(threads, depth):
    asked = []

    def calls():
        for number in count():
            asked.append(number)
            yield partial(int, number)

    results = read_ahead(calls(), threads, depth)
    assert list(islice(results, 7)) == list(range(7))
    assert len(asked) <= 7 + (depth if threads else 0)
    before = len(asked)
    results.close()
    assert len(asked) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_inline_runs_in_the_caller():
    (result,) = read_ahead(iter([threading.current_thread]), 0, 4)
    assert result is threading.current_thread()

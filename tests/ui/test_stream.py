"""Work in a thread, as an iterator."""

from __future__ import annotations

import threading
import time

import pytest

from sd_ext.ui.stream import Progress, Report, Stopped, Stops, streamed


def test_what_is_made_arrives_in_order_and_old_progress_is_left_out():
    shown = threading.Event()

    def work(report: Report) -> None:
        report.show("first")
        for number in range(50):
            report.show(Progress(str(number)))
        report.show("second")
        shown.set()

    items = streamed(work, threading.Event())
    assert next(items) == "first"
    shown.wait(10)
    rest = list(items)
    assert [item for item in rest if isinstance(item, str)] == ["second"]
    assert [item.text for item in rest if isinstance(item, Progress)][-1] == "49"
    assert len(rest) < 51 and rest.index("second") == len(rest) - 1


def test_errors_come_out_where_they_are_waited_for():
    def work(report: Report) -> None:
        report.show(1)
        raise ZeroDivisionError("here")

    items = streamed(work, threading.Event())
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError, match="here"):
        next(items)


def endless(report: Report) -> None:
    for number in range(10**9):
        report.show(number)
        time.sleep(0.001)


def test_stopping_ends_the_work():
    stop = threading.Event()
    items = streamed(endless, stop)
    next(items)
    stop.set()
    with pytest.raises(Stopped):
        list(items)


def test_leaving_ends_the_work():
    stop = threading.Event()
    items = streamed(endless, stop)
    next(items)
    items.close()
    assert stop.is_set()


def test_one_visitor_does_not_stop_another():
    stops = Stops()
    mine, mine_too, theirs = stops.begin("me"), stops.begin("me"), stops.begin("them")
    assert stops.stop("me") == 2
    assert mine.is_set() and mine_too.is_set() and not theirs.is_set()
    assert stops.stop("me") == stops.stop("nobody") == 0
    assert stops.stop("them") == 1

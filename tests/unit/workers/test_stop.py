"""When a process is asked to stop, and how long what runs may take then."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from workers import stop as stop_module
from workers.stop import GRACE, Stop, stop_on_signals


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_request_gives_no_more_time(stop: Stop) -> None:
    """It may come for a long time: from a platform, from a parent, from an impatient person."""
    stop.request()
    assert stop.requested_at is not None
    began = stop.requested_at = stop.requested_at - GRACE
    stop.request()
    assert stop.requested_at == began
    assert stop.overdue


def test_it_is_overdue_when_the_grace_is_over_and_not_before(stop: Stop) -> None:
    assert not stop.overdue
    stop.request()
    assert not stop.overdue
    stop.requested_at = time.monotonic() - GRACE - 1
    assert stop.overdue


@pytest.mark.parametrize(("parent", "ends"), [("ours", False), ("another", True), (None, False)])
def test_it_stops_when_its_parent_is_gone_and_has_the_same_time(stop, parent, ends) -> None:
    stop.parent = {"ours": os.getppid(), "another": os.getpid(), None: None}[parent]
    assert stop.requested == stop.is_coming() == ends
    assert (stop.requested_at is not None) == ends
    assert not stop.overdue


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_asks_for_it(handlers_kept, number) -> None:
    stop = stop_on_signals()
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested


def test_what_runs_has_most_of_the_thirty_seconds_that_platforms_give(stop: Stop) -> None:
    stop.request()
    stop.requested_at = time.monotonic() - 20
    assert not stop.overdue


@pytest.mark.parametrize("how", ["it comes", "it never comes"])
def test_a_stop_that_comes_a_moment_later_is_waited_for(stop, how, monkeypatch) -> None:
    """A signal to all processes reaches this one last."""
    comes = how == "it comes"
    monkeypatch.setattr(stop_module, "ARRIVES_WITHIN", 60 if comes else 0.05)
    later = threading.Timer(0.02, stop.request)
    if comes:
        later.start()
    began = time.monotonic()
    assert stop.is_coming() == stop.requested == comes
    assert comes or time.monotonic() - began >= 0.05
    if comes:
        later.join()

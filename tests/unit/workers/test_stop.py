"""When a process is asked to stop, and how long what runs may take then."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from service.redis_errors import UnsafeRedis
from tests.logs import Said
from workers import stop as stop_module
from workers.stop import GRACE, Stop, stop_on_signals, wait_for_redis


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


Waiting = Callable[..., bool]


@pytest.fixture
def slept() -> list[float]:
    """How long it waited between two looks."""
    return []


@pytest.fixture
def beats() -> list[int]:
    return []


@pytest.fixture
def wait(stop: Stop, slept, beats, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """Wait for a Redis that fails with these errors, one after another, and then answers."""

    def wait(
        *errors: Exception, vouched: tuple[str, ...] = (), then: Callable[[], None] = int
    ) -> bool:
        left = list(errors)

        def connect(_: object) -> Any:
            if left:
                raise left.pop(0)
            return nullcontext()

        def look(*_: object, for_workers: bool) -> Any:
            assert for_workers, "they need more of Redis than a receiver"
            return SimpleNamespace(found=[])

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            then()

        monkeypatch.setattr(stop_module.connection, "connect", connect)
        monkeypatch.setattr(stop_module, "asking", lambda _: None)
        monkeypatch.setattr(stop_module.findings, "look", look)
        monkeypatch.setattr(stop_module.findings, "warnings", lambda *_: list(vouched))
        monkeypatch.setattr(stop_module.beat, "beat", lambda: beats.append(1))
        still = {**vars(time), "sleep": sleep}
        monkeypatch.setattr(stop_module, "time", SimpleNamespace(**still))
        settings: Any = None
        return wait_for_redis(settings, stop)

    return wait


def test_redis_is_waited_for_longer_each_time_up_to_five_seconds(
    wait: Waiting, slept, beats, said: Said
) -> None:
    """The process is well meanwhile, and says so."""
    assert wait(*[redis.ConnectionError("redis://:secret@host")] * 6)
    assert slept == [0.5, 1, 2, 4, 5, 5]
    assert len(beats) == 7
    lines = said()
    assert {(line["event"], line["level"]) for line in lines} == {("redis_unreachable", "warning")}
    assert [line["delay_s"] for line in lines] == slept
    assert "secret" not in str(lines)


def test_whoever_is_asked_to_stop_waits_for_redis_no_longer(
    wait: Waiting, stop: Stop, slept
) -> None:
    assert not wait(*[redis.ConnectionError()] * 6, then=stop.request)
    assert slept == [0.5]


def test_a_redis_that_is_not_fit_is_refused_at_once(wait: Waiting, slept) -> None:
    """It is an error of Redis, too, and would be waited for."""
    with pytest.raises(UnsafeRedis):
        wait(redis.ConnectionError(), UnsafeRedis("it evicts keys"))
    assert slept == [0.5]


@pytest.mark.parametrize("vouched", [(), ("persistence",)])
def test_what_an_operator_vouches_for_is_said_at_the_start(
    wait: Waiting, said: Said, vouched
) -> None:
    assert wait(vouched=vouched)
    lines = [{"event": "redis_vouched_for", "level": "warning", "faults": [*vouched]}]
    assert said() == (lines if vouched else [])

"""Who takes the next event, and what runs in a process beside the worker."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from redis import OutOfMemoryError, Redis, RedisError

from identity_webhooks import Verification, on
from identity_webhooks.event import Event
from service.inbox import Claim
from service.inbox.keys import QUEUE
from service.settings import Settings
from tests.conftest import wait_until
from workers import rq_worker
from workers.dispatch import BUSY
from workers.jobs import Processor
from workers.own_process import OwnProcess
from workers.pool import Threads
from workers.router import Failed
from workers.rq_worker import wait_for_wakeup
from workers.stop import Stop


class Seen:
    """A handler that notes which sessions it runs for at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self.threads: dict[str, str] = {}

    def handle(self, v: Verification) -> None:
        """Take a moment."""
        session = v.session.id
        with self._lock:
            self._running.add(session)
            self.threads[session] = threading.current_thread().name
        time.sleep(0.05)
        with self._lock:
            self._running.remove(session)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def processor(desk, seen) -> Processor:
    @on("verified")
    def handle(v: Verification) -> None:
        seen.handle(v)

    return desk.processor(handle)


@pytest.fixture
def threads(desk, processor) -> Iterator[Callable[..., Threads]]:
    """Make threads; all of them are through at the end."""
    made: list[Threads] = []

    def make(count: int, other: Processor | None = None) -> Threads:
        made.append(Threads(other or processor, count, desk.stop))
        return made[-1]

    yield make
    for each in made:
        each.drain()


@pytest.fixture
def accept(desk, redis: Redis) -> Callable[..., Event]:
    """Take in an event of a session of its own; its last worker died, if `suspect`."""

    def accept(*, suspect: bool = False) -> Event:
        event = desk.accept("verified", desk.sandbox.session("verified"))
        if suspect:
            redis.hset(f"iw:evt:{event.key}", mapping={"lapses": 1, "suspect": 1})
        return event

    return accept


def is_done(desk, event: Event) -> bool:
    return desk.record(event).state == "done"


def test_a_thread_that_is_through_takes_the_next_event_itself(desk, threads, accept, seen) -> None:
    events = [accept() for _ in range(3)]
    assert threads(1).run_next(1)
    wait_until(lambda: all(is_done(desk, event) for event in events))
    assert len(seen.threads) == 3
    assert all(name.startswith("event") for name in seen.threads.values())


def test_what_may_have_killed_a_worker_runs_in_a_process_beside_it(
    desk, threads, processor, accept, seen, monkeypatch
) -> None:
    beside: list[str] = []
    monkeypatch.setattr(
        OwnProcess, "run", lambda _self, _handler, v, _personal: beside.append(v.event.session)
    )
    suspects = [accept(suspect=True) for _ in range(3)]
    others = [accept() for _ in range(5)]
    running = threads(4)

    def all_are_done() -> bool:
        desk.inbox.sweep()
        running.run_next(0.1)
        return all(is_done(desk, each) for each in [*suspects, *others])

    wait_until(all_are_done)
    assert sorted(beside) == sorted(each.session for each in suspects)
    assert set(seen.threads) == {each.session for each in others}


@pytest.mark.parametrize("also", ["", "one with its own process"])
def test_a_suspect_waits_for_another_one_and_a_third_comes_again(
    also, desk, accept, monkeypatch
) -> None:
    """Also where only some of its handlers run in the process that all suspects share."""
    ran: list[str] = []

    @on("verified")
    def shared(_: Verification) -> None:
        """Run elsewhere."""

    @on("verified", own_process=True)
    def alone(_: Verification) -> None:
        """Run elsewhere."""

    processor = desk.processor(*([alone, shared] if also else [shared]))
    monkeypatch.setattr(OwnProcess, "run", lambda _self, handler, *_: ran.append(handler.name))
    events = [accept(suspect=True) for _ in range(2)]
    second, third = processor.claim(2)
    with processor._dispatcher._for_suspects.turn():
        waiting = threading.Thread(target=processor.process, args=(second,))
        waiting.start()
        wait_until(lambda: processor._dispatcher._for_suspects.is_busy or ran)
        processor.process(third)
        record = desk.record(third.event)
        assert (record.state, record.reason, record.handlers) == ("pending", BUSY, {})
        assert ran == []
    waiting.join()
    assert desk.record(second.event).state == "done"
    assert set(ran) == ({"p.alone", "p.shared"} if also else {"p.shared"})
    wait_until(lambda: desk.turn(processor) or all(is_done(desk, each) for each in events))


def test_a_handler_that_killed_its_process_has_one_again(
    desk, processor, accept, seen, monkeypatch
) -> None:
    """Its event stays a suspect until it is done."""
    ran: list[str] = []

    def run(_self: OwnProcess, _handler: object, v: Verification, _personal: object) -> None:
        ran.append(v.event.session)
        if len(ran) < 3:
            raise Failed("its process died (exit code -9)")

    monkeypatch.setattr(OwnProcess, "run", run)
    event = accept(suspect=True)
    record = desk.settle(processor, event)
    assert record.handlers["p.handle"].attempts == 3
    assert ran == [event.session] * 3
    assert seen.threads == {}


def test_a_slow_handler_with_its_own_process_holds_two_threads(
    desk, threads, accept, monkeypatch
) -> None:
    """One runs it, one waits; of the rest, the others' handlers go on."""
    go_on, ran = threading.Event(), list[str]()

    @on("verified", own_process=True)
    def alone(_: Verification) -> None:
        """Run elsewhere."""

    @on("verified", "created")
    def beside(v: Verification) -> None:
        ran.append(v.session.id)

    processor = desk.processor(alone, beside)
    monkeypatch.setattr(OwnProcess, "run", lambda *_: go_on.wait(120))
    running = threads(4, processor)
    slow = [accept() for _ in range(12)]

    def taken() -> bool:
        desk.inbox.sweep()
        running.run_next(0.1)
        waiting = [desk.record(each).handlers.get("p.alone") for each in slow]
        return sum(bool(each) and each.reason == BUSY for each in waiting) == 10

    wait_until(taken)
    quick = desk.accept("created", desk.sandbox.session())
    wait_until(lambda: running.run_next(0.1) is not None and is_done(desk, quick))
    assert not any(is_done(desk, each) for each in slow)
    go_on.set()

    def all_are_done() -> bool:
        desk.inbox.sweep()
        running.run_next(0.1)
        return all(is_done(desk, each) for each in slow)

    wait_until(all_are_done)
    assert all(desk.record(each).handlers["p.alone"].attempts == 1 for each in slow)
    # Once for the first look, and once for the last: who only waits asks Stripe nothing.
    assert desk.counts()["fetches|ok"] <= 2 * len(slow) + 1
    assert desk.counts()["handler_runs|p.alone|waiting"] >= 10


def test_a_handler_with_its_own_process_looks_again_when_it_is_its_turn(
    desk, threads, accept, monkeypatch
) -> None:
    ran: list[OwnProcess] = []
    go_on = threading.Event()

    @on("verified", own_process=True)
    def alone(_: Verification) -> None:
        """Run elsewhere."""

    processor = desk.processor(alone)

    def run(own: OwnProcess, *_: object) -> None:
        ran.append(own)
        assert go_on.wait(120)

    monkeypatch.setattr(OwnProcess, "run", run)
    first, second = accept(), accept()
    claims = processor.claim(2)
    both = [threading.Thread(target=partial(processor.process, claim)) for claim in claims]
    for each in both:
        each.start()
    wait_until(lambda: bool(ran) and ran[0].is_busy)
    desk.stop.request()
    go_on.set()
    for each in both:
        each.join()
    assert len(ran) == 1
    states = sorted(desk.record(event).state for event in (first, second))
    assert states == ["done", "pending"]


@pytest.mark.parametrize("outcome", ["Redis fails", "a record cannot be read", "no event waits"])
def test_threads_that_got_nothing_are_idle_again(
    desk, threads, processor, accept, monkeypatch, outcome
) -> None:
    """However often: else a worker would take no event any more, and beat all the same."""
    errors = {"Redis fails": RedisError(), "a record cannot be read": ValueError()}
    running = threads(2)

    def claim(_: int) -> list[Claim]:
        if error := errors.get(outcome):
            raise error
        return []

    with monkeypatch.context() as patch:
        patch.setattr(processor, "claim", claim)
        for _ in range(3):
            with pytest.raises(type(errors[outcome])) if outcome in errors else nullcontext():
                assert running.run_next(0.01) is False
    events = [accept() for _ in range(2)]
    assert running.run_next(1)
    wait_until(lambda: all(is_done(desk, event) for event in events))


def test_a_worker_that_stops_takes_no_event_for_its_idle_threads(desk, threads, accept) -> None:
    event, running = accept(), threads(2)
    desk.stop.request()
    assert running.run_next(0.01) is False
    assert desk.record(event).claims == 0, "nobody had it"
    desk.stop.requested_at = None
    assert running.run_next(1), "and its threads are idle still"
    wait_until(lambda: is_done(desk, event))


def test_looking_for_a_wake_up_takes_none_and_changes_no_order(redis: Redis) -> None:
    """The oldest stays the first, however often an idle worker looks."""
    queue = f"rq:queue:{QUEUE}"
    assert not wait_for_wakeup(redis, queue, 1)
    waiting = [f"evt_{number}-1".encode() for number in range(3)]
    redis.rpush(queue, *waiting)
    for _ in range(2):
        assert wait_for_wakeup(redis, queue, 1)
        assert redis.lrange(queue, 0, -1) == waiting


class Full:
    """A Redis that is full, with so many wake-ups."""

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting

    def blmove(self, *_: object) -> None:
        raise OutOfMemoryError

    def llen(self, _: str) -> int:
        return self._waiting


@pytest.mark.parametrize("waiting", [0, 2])
def test_on_a_full_redis_a_wake_up_is_looked_for_without_a_write(waiting, monkeypatch) -> None:
    """What is worked on frees its memory. Without one it waits as long as for any wake-up."""
    slept: list[float] = []
    monkeypatch.setattr(rq_worker, "time", SimpleNamespace(sleep=slept.append))
    full: Any = Full(waiting)
    assert wait_for_wakeup(full, QUEUE, 7) == bool(waiting)
    assert slept == ([] if waiting else [7])


@pytest.mark.parametrize("hindrance", ["", "suspended", "full"])
def test_nothing_in_redis_keeps_a_worker_from_its_events(hindrance, redis: Redis, server) -> None:
    """A worker heeds no `rq suspend`, starts on a full Redis, and listens for no command of RQ.
    Its signal handlers stay those of the service.
    """
    stop, heard = Stop(), []

    class Idle:
        """Threads that have nothing to do, and are asked to stop."""

        def run_next(self, _: float) -> bool:
            is_suspended = bool(redis.exists("rq:suspended"))
            heard.append((redis.pubsub_channels(), handlers(), is_suspended))
            stop.request()
            return True

    def handlers() -> list[object]:
        return [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    before, threads = handlers(), Idle()
    idle: Any = threads
    if hindrance == "suspended":
        redis.set("rq:suspended", 1, ex=60)  # a worker that heeds it waits for as long
    try:
        redis.config_set("maxmemory", 1 if hindrance == "full" else 0)
        worker = rq_worker.rq_worker(Settings(redis_url=server.url), idle, stop)
        worker.work(logging_level="WARNING")
    finally:
        redis.config_set("maxmemory", 0)
    assert heard == [([], before, hindrance == "suspended")]

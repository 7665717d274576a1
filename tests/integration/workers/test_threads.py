"""Who takes the next event, and what must not run beside another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from redis import Redis

from identity_webhooks import Verification, on
from identity_webhooks.event import Event
from tests.conftest import wait_until
from workers.jobs import Processor
from workers.runner import Threads


class Seen:
    """A handler that notes which sessions it runs for at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self.beside: dict[str, set[str]] = {}
        self.threads: dict[str, str] = {}

    def handle(self, v: Verification) -> None:
        """Take a moment."""
        session = v.session.id
        with self._lock:
            self._running.add(session)
            self.threads[session] = threading.current_thread().name
            for each in self._running:
                self.beside.setdefault(each, set()).update(self._running - {each})
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
def threads(desk, processor) -> Iterator[Callable[[int], Threads]]:
    """Make threads; all of them are through at the end."""
    made: list[Threads] = []

    def make(count: int) -> Threads:
        made.append(Threads(processor, count, desk.stop))
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
            redis.hset(f"iw:evt:{event.key}", "lapses", 1)
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


@pytest.mark.parametrize(
    "place", [0, 2, 5], ids=["first", "taken with others", "taken by a thread"]
)
def test_what_may_kill_a_worker_runs_with_nothing_beside_it(
    desk, threads, accept, seen, place
) -> None:
    events = [accept(suspect=number == place) for number in range(12)]
    running = threads(4)
    while not all(is_done(desk, event) for event in events):
        running.run_next(0.1)
    assert seen.beside[events[place].session] == set()
    others = [seen.beside[event.session] for event in events[:place] + events[place + 1 :]]
    assert max(map(len, others)) > 0, "others do run beside each other"


def test_at_a_stop_what_still_waits_to_run_alone_is_given_back(
    desk, redis, threads, accept, seen
) -> None:
    first, suspect = accept(), accept(suspect=True)
    running = threads(1)
    assert running.run_next(1)
    wait_until(lambda: b"lease" in desk.fields(suspect))  # by the thread that was through
    desk.stop.request()
    running.drain()
    assert is_done(desk, first)
    assert suspect.session not in seen.threads
    fields = desk.fields(suspect)
    assert fields[b"state"] == b"pending"
    assert b"lease" not in fields
    assert fields[b"lapses"] == b"1", "nobody died of it"
    assert redis.llen("rq:queue:identity") == 1, "and another worker is woken"


def test_a_handler_with_its_own_process_looks_again_when_it_is_its_turn(
    desk, threads, accept, monkeypatch
) -> None:
    ran: list[str] = []

    @on("verified", own_process=True)
    def alone(_: Verification) -> None:
        """Run elsewhere."""

    processor = desk.processor(alone)
    (own,) = processor._own_processes.values()

    def run(verification: Verification, _: object) -> None:
        ran.append(verification.session.id)
        time.sleep(0.3)

    monkeypatch.setattr(own, "run", run)
    first, second = accept(), accept()
    claims = processor.claim(2)
    both = [threading.Thread(target=partial(processor.process, claim)) for claim in claims]
    for each in both:
        each.start()
    wait_until(lambda: bool(ran))
    desk.stop.request()
    for each in both:
        each.join()
    assert len(ran) == 1
    states = sorted(desk.record(event).state for event in (first, second))
    assert states == ["done", "pending"]

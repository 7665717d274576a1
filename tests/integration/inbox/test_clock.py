"""The clock of Redis is set, back or forward: nothing waits longer than a lease for that.

The server runs on a clock that the test moves (clock.c). Times of the inbox are a tenth of what
they are, so that a lease is a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from identity_webhooks.event import Event
from service.inbox import Claim, Inbox, Refused, keys
from service.processes import Process
from service.survey import survey
from tests.conftest import Server, redis_binary, wait_until

HOUR = 3_600
SCALE = 0.1
SLACK = 30
"""Seconds that a loaded machine may take beyond what the inbox waits; a fault costs an hour."""


class Clock:
    """The clock of the server."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: float) -> None:
        """Set it to so many seconds ahead of the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(str(round(seconds * 1000)))
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    if shutil.which("cc") is None and not os.environ.get("CI"):
        pytest.skip("needs a C compiler, to move the server's clock")
    file, library, script = (tmp_path / name for name in ("clock", "clock.so", "server"))
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["cc", "-O", "-shared", "-fPIC", "-o", library, source], check=True, timeout=120)
    script.write_text(
        f'#!/bin/sh\nexec env CLOCK="{file}" LD_PRELOAD="{library}" "{redis_binary()}" "$@"\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("TEST_REDIS_SERVER", str(script))
    for name in ("LEASE", "HORIZON", "BUSY_DELAY", "STEP"):
        monkeypatch.setattr(keys, name, getattr(keys, name) * SCALE)
    return Clock(file)


@pytest.fixture
def client(clock: Clock, new_server: Callable[..., Server]) -> Iterator[Redis]:
    with new_server().client() as client:
        yield client


@contextmanager
def repeated(task: Callable[[], object], every: float) -> Iterator[list[object]]:
    """Do a task again and again meanwhile; yield what it returned so far."""
    end, returned = threading.Event(), list[object]()

    def run() -> None:
        while not end.wait(every):
            returned.append(task())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield returned
    finally:
        end.set()
        thread.join()


@contextmanager
def swept(client: Redis) -> Iterator[Inbox]:
    """Sweep as the periodic process does, for longer than the clock needs to be known."""
    inbox = Inbox(client)
    inbox.sweep()
    with repeated(inbox.sweep, 0.5 * SCALE) as sweeps:
        wait_until(lambda: len(sweeps) > 2)
        yield inbox


def accept(inbox: Inbox, name: str, session: str = "1") -> None:
    inbox.accept(Event(f"evt_{name}", "verified", "snapshot", f"vs_{session}", 1, livemode=False))


def next_claim(inbox: Inbox, within: float) -> Claim:
    found: list[Claim] = []

    def claimed() -> bool:
        found.extend(each for each in inbox.claim() if isinstance(each, Claim))
        return bool(found)

    wait_until(claimed, within=within)
    return found[0]


@pytest.mark.parametrize("step", [-HOUR, pytest.param(HOUR, marks=pytest.mark.walk), -6 * SCALE])
class TestNothingWaitsLongerThanALease:
    def test_for_a_holder_that_died(self, clock, client, step) -> None:
        with swept(client) as inbox:
            accept(inbox, "1")
            claim = next_claim(inbox, SLACK)
            clock.set(step)
            again = next_claim(inbox, 2 * keys.LEASE + SLACK)
            assert again.event == claim.event

    def test_for_the_session_of_a_holder_that_died(self, clock, client, step, monkeypatch) -> None:
        monkeypatch.setattr(keys, "LEASE", 3 * keys.LEASE)  # one is to be asked for within it
        with swept(client) as inbox:
            accept(inbox, "1")
            accept(inbox, "2")
            first = next_claim(inbox, SLACK)
            assert inbox.claim() == [Refused.BUSY]
            clock.set(step)
            last = next_claim(inbox, 2 * keys.LEASE + keys.BUSY_DELAY + SLACK)
            inbox.finish(last, "done", outcome="verified")
            other = next_claim(inbox, 2 * keys.LEASE + keys.BUSY_DELAY + SLACK)
            assert {last.event.id, other.event.id} == {"evt_1", "evt_2"}
            assert first.event.id == "evt_1"

    def test_for_a_retry(self, clock, client, step) -> None:
        with swept(client) as inbox:
            accept(inbox, "1")
            claim = next_claim(inbox, SLACK)
            inbox.release(claim, 0.5, "stripe: busy")
            clock.set(step)
            next_claim(inbox, 0.5 + keys.LEASE + SLACK)

    def test_for_a_wake_up_that_got_lost(self, clock, client, step) -> None:
        with swept(client) as inbox:
            accept(inbox, "1")
            client.delete(keys.QUEUE_KEY)
            clock.set(step)
            next_claim(inbox, keys.HORIZON + keys.LEASE + SLACK)

    def test_for_the_end_of_a_pause(self, clock, client, step) -> None:
        with swept(client) as inbox:
            accept(inbox, "1")
            inbox.pause(0.5, "Stripe refuses our key")
            clock.set(step)
            next_claim(inbox, 0.5 + keys.LEASE + SLACK)

    def test_for_a_turn(self, clock, client, step) -> None:
        with swept(client) as inbox:
            assert inbox.try_acquire("reconcile", 0.5)
            clock.set(step)
            wait_until(lambda: inbox.try_acquire("reconcile", 0.5), within=0.5 + keys.LEASE + SLACK)

    def test_for_the_rate_of_calls(self, clock, client, step) -> None:
        with swept(client):
            inbox = Inbox(client, api_rate=2)
            for number in range(9):
                accept(inbox, str(number), session=str(number))
            while inbox.claim()[0] is not Refused.THROTTLED:
                pass
            clock.set(step)
            next_claim(inbox, 1 + keys.LEASE + SLACK)

    def test_and_not_less_than_one_for_who_claimed_before_a_sweep_saw_it(
        self, clock, client, step, monkeypatch
    ) -> None:
        monkeypatch.setattr(keys, "LEASE", 3 * keys.LEASE)
        inbox = Inbox(client)
        inbox.sweep()
        accept(inbox, "1")
        clock.set(step)
        claim = next_claim(inbox, SLACK)
        inbox.sweep()
        assert not any(isinstance(each, Claim) for each in inbox.claim())
        with repeated(lambda: inbox.renew(claim), keys.LEASE / 20):
            wait_until(lambda: inbox.paused() is None, within=keys.LEASE + SLACK)
        assert inbox.renew(claim)
        inbox.sweep()
        assert not any(isinstance(each, Claim) for each in inbox.claim())
        assert inbox.finish(claim, "done", outcome="verified") is not None

    def test_and_no_living_worker_loses_its_claim(self, clock, client, step, monkeypatch) -> None:
        # A loaded machine may renew late by almost all of it.
        monkeypatch.setattr(keys, "LEASE", 6 * keys.LEASE)
        with swept(client) as inbox:
            accept(inbox, "1")
            claim = next_claim(inbox, SLACK)
            with repeated(lambda: inbox.renew(claim), keys.LEASE / 20):
                time.sleep(keys.LEASE / 4)
                clock.set(step)
                until = time.monotonic() + 1.3 * keys.LEASE
                while time.monotonic() < until:
                    answers = inbox.claim()
                    assert not any(isinstance(each, Claim) for each in answers)
                    time.sleep(0.02)
                assert not claim.lost
            assert inbox.finish(claim, "done", outcome="verified") is not None


def test_it_is_seen_also_by_a_process_that_starts_then(clock, client) -> None:
    with swept(client) as inbox:
        accept(inbox, "1")
        inbox.claim()
    clock.set(-HOUR)
    with swept(client) as inbox:
        next_claim(inbox, 2 * keys.LEASE + SLACK)


def test_a_clock_set_forward_ends_no_pause_of_a_person(clock, client) -> None:
    with swept(client) as inbox:
        inbox.pause(10 * HOUR, "by ann")
        clock.set(HOUR)
        wait_until(lambda: inbox.now() > time.time() + HOUR / 2, within=SLACK)
        time.sleep(2 * keys.LEASE)
        assert inbox.paused() is not None
        assert inbox.paused()[1] == "by ann"


def test_the_clocks_come_together_again(clock, client) -> None:
    with swept(client):
        clock.set(-HOUR)

        def ahead() -> float:
            return survey(client).clock_ahead

        wait_until(lambda: ahead() > 0, within=SLACK)
        first = ahead()
        assert HOUR - 60 < first < HOUR + keys.STEP
        wait_until(lambda: ahead() < first, within=SLACK)
        clock.set(0)
        wait_until(lambda: ahead() == 0, within=SLACK)


def test_ages_go_on_by_the_clock_of_the_inbox(clock, client) -> None:
    """A dead worker looks alive, and nothing late, where they are reckoned by another one."""
    with swept(client) as inbox:
        accept(inbox, "1")
        inbox.move_watermark(inbox.now())
        with inbox.pipeline() as pipe:
            pipe.report("id", Process(role="worker", pid=1, started=0).encoded(), ["settled"])
        inbox.pause(10 * HOUR, "by ann")
        time.sleep(1.1)  # before the clock is set
        clock.set(-HOUR)
        wait_until(lambda: survey(client).clock_ahead > 0, within=SLACK)
        seen = survey(client)

    ages = {
        "oldest": seen.oldest,
        "overdue": seen.overdue,
        "through": seen.through[""],
        "process": seen.running[0].age,
        "series": seen.seen["settled"],
        "since the pause": 10 * HOUR - seen.paused[1],
    }
    assert {name: age for name, age in ages.items() if not 1 < age < HOUR / 2} == {}
    assert abs(seen.now - time.time()) < HOUR / 2


@pytest.mark.parametrize("by", ["the same process", "one that has just started"])
def test_a_sweep_that_is_late_sets_no_clock(by, clock, client, monkeypatch) -> None:
    """Nor does one after a time in which no periodic process ran."""
    if by == "the same process":
        monkeypatch.setattr(keys, "STEP", keys.STEP / SCALE)
    inbox = Inbox(client)
    inbox.sweep()
    if by == "the same process":
        moment, process_clock = inbox._memory.last_sweep
        inbox._memory.last_sweep = moment - 100_000, process_clock - 100
    else:
        time.sleep(4 * keys.STEP)
    assert (inbox if by == "the same process" else Inbox(client)).sweep().clock_set == 0
    assert Inbox(client).sweep().clock_set == 0
    assert inbox.claim() == [], "there is no pause"

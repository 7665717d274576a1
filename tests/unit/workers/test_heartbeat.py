"""What the heartbeat does with claims, by an inbox that answers as the test says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from identity_webhooks import Verification, on
from identity_webhooks.event import Event
from service.inbox import Claim, Progress
from service.metrics import Metrics
from tests.conftest import wait_until
from tests.logs import Said
from workers import heartbeat, router
from workers.heartbeat import Heartbeat
from workers.in_hand import Held, InHand
from workers.router import Handler, Router
from workers.stop import GRACE, Stop

LEASE = 3.0


class Renewals:
    """An inbox that notes when it is asked to renew, and answers as it is set."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.answer: Callable[[], bool] = lambda: True
        self.claims: list[Claim] = []

    def renew(self, claim: Claim) -> bool:
        self.at.append(time.monotonic())
        self.claims.append(claim)
        return self.answer()


def away() -> bool:
    raise redis.ConnectionError


def claim(token: str) -> Claim:
    event = Event("evt_1", "verified", "snapshot", "vs_1", 1, livemode=False, account="acct_1")
    return Claim(event, token, {}, faults=0, lapses=0, now=0, since=0)


def one(mark: Callable[..., Any]) -> Handler:
    """Return a handler with this mark."""

    def handle(_: Verification) -> None:
        """Never run."""

    handlers = Router()
    handlers.add(type("Plugin", (), {"handle": staticmethod(mark(handle))})(), "p")
    return handlers.handlers[0]


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renewals]:
    monkeypatch.setattr(heartbeat, "TICK", 0.01)
    monkeypatch.setattr(heartbeat, "LEASE", LEASE)
    inbox: Any = Renewals()
    none: Any = None
    metrics: Metrics = none
    beating = Heartbeat(inbox, metrics, Stop(), InHand(1))
    beating.begin(claim("1"))
    yield inbox
    beating.stop()


def test_a_renewal_that_failed_is_tried_again_at_the_next_tick(inbox: Renewals, said: Said) -> None:
    inbox.answer = away
    wait_until(lambda: len(inbox.at) > 5)
    between = [later - sooner for sooner, later in zip(inbox.at, inbox.at[1:], strict=False)]
    assert min(between) < LEASE / 6, "not a third of a lease later"
    names = {"event_id": "evt_1", "session_id": "vs_1", "kind": "verified", "account": "acct_1"}
    line = {"event": "lease_not_renewed", "level": "warning", **names}
    assert said()[0] == line


def test_one_that_succeeded_is_followed_by_one_a_third_of_a_lease_later(inbox: Renewals) -> None:
    wait_until(lambda: len(inbox.at) > 1)
    assert inbox.at[1] - inbox.at[0] > LEASE / 3


@pytest.mark.parametrize("settled", [False, True])
def test_one_that_is_refused_is_lost_unless_it_was_settled_meanwhile(
    settled: bool, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    """That is said once, and it is renewed no more."""
    monkeypatch.setattr(heartbeat, "TICK", 0.001)
    monkeypatch.setattr(heartbeat, "LEASE", 0.003)
    inbox: Any = Renewals()
    none: Any = None
    beating, refused = Heartbeat(inbox, none, Stop(), InHand(1)), claim("1")

    def refuse() -> bool:
        refused.lost = True
        if settled:
            beating.end(refused)
        return False

    inbox.answer = refuse
    beating.begin(refused)
    wait_until(lambda: inbox.at)
    inbox.answer = lambda: True
    kept = claim("2")
    beating.begin(kept)
    wait_until(lambda: inbox.claims.count(kept) > 3)
    beating.stop()
    assert inbox.claims.count(refused) == 1
    line = {
        "event": "lease_lost",
        "level": "warning",
        "event_id": "evt_1",
        "session_id": "vs_1",
        "kind": "verified",
        "account": "acct_1",
    }
    assert said() == ([] if settled else [line])


def test_the_end_of_an_earlier_claim_ends_no_later_one_of_its_event() -> None:
    none: Any = None
    in_hand = InHand(2)
    beating = Heartbeat(none, none, Stop(), in_hand)
    first, second = claim("1"), claim("2")
    beating.begin(first)
    beating.begin(second)
    beating.end(first)
    assert beating.count() == 1
    assert in_hand.read() == [Held("acct_1-evt_1", "2")]
    beating.end(second)
    assert beating.count() == 0
    assert in_hand.read() == []
    beating.stop()


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_handler_is_watched_and_named_no_longer_than_it_runs(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows its run may take longer than it was allowed."""
    monkeypatch.setattr(heartbeat, "TICK", 0.001)
    monkeypatch.setattr(heartbeat, "LEASE", 0.003)
    left: list[int] = []
    monkeypatch.setattr(heartbeat.os, "_exit", left.append)
    inbox: Any = Renewals()
    none: Any = None
    in_hand = InHand(1)
    beating, held = Heartbeat(inbox, none, Stop(), in_hand), claim("1")
    handler: Any = SimpleNamespace(name="a.quick", timeout=60.0)
    beating.begin(held)
    with suppress(KeyError), beating.deadline(held, handler):
        assert in_hand.read() == [Held("acct_1-evt_1", "1", "a.quick")]
        if ends == "raises":
            raise KeyError
    beating._watched[held.event.key].deadline = 0  # it is over by now
    assert in_hand.read() == [Held("acct_1-evt_1", "1", "")]
    renewed = len(inbox.at)
    wait_until(lambda: len(inbox.at) > renewed + 3)
    beating.end(held)
    beating.stop()
    assert left == []


class Leaving:
    """An inbox that takes back what a process gives back, but for one event of which it fails."""

    def __init__(self) -> None:
        self.released: list[tuple[str, float, str]] = []
        self.saved: list[tuple[str, Progress, float | None]] = []
        self.is_away = False

    def renew(self, _: Claim) -> bool:
        return True

    def release(self, claim: Claim, delay: float, reason: str) -> None:
        if claim.event.id == "evt_1":
            raise redis.ConnectionError
        self.released.append((claim.event.id, delay, reason))

    def save_progress(
        self, _: Claim, handler: str, progress: Progress, delay: float | None = None
    ) -> None:
        if self.is_away:
            raise redis.ConnectionError
        self.saved.append((handler, progress, delay))


class Counts:
    """Takes what is counted, until its end."""

    def __init__(self) -> None:
        self.counted: list[tuple[object, ...]] = []
        self.ended = False

    def count(self, *what: object) -> None:
        assert not self.ended, "it would not be reported"
        self.counted.append(what)

    def observe(self, what: str, seconds: float, *labels: str) -> None:
        self.count(what, seconds, *labels)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("why", "retries"), [("grace_period_over", 0), ("handler_timeout", 0), ("handler_timeout", 5)]
)
@pytest.mark.parametrize("is_away", [False, True])
def test_a_process_that_leaves_gives_everything_back_whatever_fails(
    why: str, retries: int, is_away: bool, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    left: list[int] = []

    def leave(code: int) -> None:
        left.append(code)
        beating._stopped.set()  # here its thread goes on

    monkeypatch.setattr(heartbeat, "TICK", 0.001)
    monkeypatch.setattr(heartbeat.os, "_exit", leave)
    inbox, metrics, stop = Leaving(), Counts(), Stop()
    inbox.is_away = is_away
    given: Any = (inbox, metrics)
    beating = Heartbeat(*given, stop, InHand(3))
    claims = [claim("1"), claim("2"), claim("3")]
    for number, each in enumerate(claims, 1):
        each.event = replace(each.event, id=f"evt_{number}")
        beating.begin(each)
    monkeypatch.setattr(router, "backoff", lambda _: 7.0)
    handler = one(on("*", timeout=0.001, retries=retries))
    timed_out = why == "handler_timeout"
    if timed_out:
        with beating.deadline(claims[1], handler):
            wait_until(lambda: left)
    else:
        stop.requested_at = time.monotonic() - GRACE - 1
        wait_until(lambda: left)

    assert left == [os.EX_TEMPFAIL]
    assert metrics.ended
    assert inbox.released == [("evt_2", 0, "worker stopped"), ("evt_3", 0, "worker stopped")]
    names = {"session_id": "vs_1", "kind": "verified", "account": "acct_1"}
    *before, not_released, leaves = said()
    assert not_released == {
        "event": "claim_not_released",
        "level": "warning",
        "event_id": "evt_1",
        **names,
    }
    assert leaves == {"event": "worker_leaves", "level": "warning", "reason": why, "count": 3}
    if not timed_out:
        assert before == metrics.counted == inbox.saved == []
        return
    status, delay = ("retry", 7.0) if retries else ("dead", 0)
    assert before[0] == {
        "event": "handler_timeout",
        "level": "error",
        "event_id": "evt_2",
        "handler": "p.handle",
        "attempt": 1,
        "status": status,
        "limit": 0.001,
        **names,
    }
    lost = {"event": "timeout_not_recorded", "level": "warning", "event_id": "evt_2", **names}
    assert before[1:] == ([lost | {"handler": "p.handle"}] if is_away else [])
    failed = Progress(status, 1, reason="timeout")
    assert inbox.saved == ([] if is_away else [("p.handle", failed, delay)])
    assert metrics.counted == [
        ("handler_runs", "p.handle", status),
        ("handler_seconds", 0.001, "p.handle"),
    ]

"""How often a claim is renewed, by an inbox that answers as the test says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from identity_webhooks.event import Event
from service.inbox import Claim
from service.metrics import Metrics
from tests.conftest import wait_until
from workers import heartbeat
from workers.heartbeat import Heartbeat
from workers.in_hand import InHand
from workers.stop import Stop

LEASE = 3.0


class Renewals:
    """An inbox that notes when it is asked to renew, and answers as it is set."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.answer: Callable[[], bool] = lambda: True

    def renew(self, _: Claim) -> bool:
        self.at.append(time.monotonic())
        return self.answer()


def away() -> bool:
    raise redis.ConnectionError


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renewals]:
    monkeypatch.setattr(heartbeat, "TICK", 0.01)
    monkeypatch.setattr(heartbeat, "LEASE", LEASE)
    inbox: Any = Renewals()
    none: Any = None
    metrics: Metrics = none
    beating = Heartbeat(inbox, metrics, Stop(), InHand(1))
    event = Event("evt_1", "verified", "snapshot", "vs_1", 1, livemode=False)
    beating.begin(Claim(event, "1", {}, faults=0, lapses=0, now=0, since=0))
    yield inbox
    beating.stop()


def test_a_renewal_that_failed_is_tried_again_at_the_next_tick(inbox: Renewals) -> None:
    inbox.answer = away
    wait_until(lambda: len(inbox.at) > 5)
    between = [later - sooner for sooner, later in zip(inbox.at, inbox.at[1:], strict=False)]
    assert min(between) < LEASE / 6, "not a third of a lease later"


def test_one_that_succeeded_is_followed_by_one_a_third_of_a_lease_later(inbox: Renewals) -> None:
    wait_until(lambda: len(inbox.at) > 1)
    assert inbox.at[1] - inbox.at[0] > LEASE / 3

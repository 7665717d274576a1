"""`workers.doctor`: what it reads off Redis."""

from __future__ import annotations

import pytest

from identity_webhooks.event import Event
from service.inbox import Inbox, keys
from workers.doctor import accepted_in_a_day


@pytest.mark.usefixtures("within_an_hour")
def test_what_was_accepted_in_the_last_day_is_counted_and_nothing_before(redis) -> None:
    inbox = Inbox(redis)
    for number in range(3):
        inbox.accept(Event(f"evt_{number}", "verified", "snapshot", "vs_1", 1, False, None))
    now = inbox.now()
    redis.rpush(f"{keys.LOG}{now // keys.HOUR - 24}", "evt_yesterday")
    assert accepted_in_a_day(redis, now) == 3

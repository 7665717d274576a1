"""`workers.doctor`: what it reads off Redis."""

from __future__ import annotations

import pytest

from identity_webhooks.event import Event
from service.inbox import Inbox, keys
from service.settings import Settings
from workers.doctor import _of_redis, accepted_in_a_day


@pytest.mark.usefixtures("within_an_hour")
def test_what_was_accepted_in_the_last_day_is_counted_and_nothing_before(redis) -> None:
    inbox = Inbox(redis)
    for number in range(3):
        inbox.accept(Event(f"evt_{number}", "verified", "snapshot", "vs_1", 1, False, None))
    now = inbox.now()
    redis.rpush(f"{keys.LOG}{now // keys.HOUR - 24}", "evt_yesterday")
    assert accepted_in_a_day(redis, now) == 3


@pytest.mark.parametrize(("days", "state"), [("", "good"), ("5", "good"), ("400", "bad")])
def test_memory_is_reckoned_for_as_long_as_the_setting_says(
    new_server, monkeypatch, days, state
) -> None:
    """Thirty events a day: 35 days of them fit into 6 MB, and 400 do not."""
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        for number in range(30):
            event = Event(f"evt_{number}", "verified", "snapshot", f"vs_{number}", 1, False, None)
            Inbox(client).accept(event)
    monkeypatch.setenv("REDIS_URL", server.url)
    if days:
        monkeypatch.setenv("RETENTION_DAYS", days)
    found = {each.name: each for each in _of_redis(Settings.load("tool"))}
    assert found["memory for the rate"].state == state

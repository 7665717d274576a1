"""Whoever is told that nothing was done has left nothing behind, not even the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from service.inbox import Inbox, Progress, keys
from tests.integration.claims import claimed, event


def has_to_wait(inbox: Inbox) -> bool:
    """Ask for a call of Stripe's API, once."""
    with inbox.pipeline() as pipe:
        told = pipe.spend_call()
    return told.result() > 0


def is_noted(inbox: Inbox) -> bool:
    """Note that a worker died of an event that it did not hold."""
    with inbox.pipeline() as pipe:
        told = pipe.note_death("evt_done", "1", "a.one")
    return bool(told.result())


WAYS: dict[str, tuple[Callable[[Inbox], object], object]] = {
    "a turn that is another's": (lambda inbox: inbox.try_acquire("turn", 60), False),
    "to adopt one that is known": (lambda inbox: inbox.adopt(event("done"), "ann"), "done"),
    "to discard one that is done": (lambda inbox: inbox.discard("evt_done"), "done"),
    "to discard one that is leased": (lambda inbox: inbox.discard("evt_leased"), "leased"),
    "to discard one that is gone": (lambda inbox: inbox.discard("evt_gone"), "gone"),
    "to replay one that is leased": (lambda inbox: inbox.replay("evt_leased"), "leased"),
    "to replay what it has not": (lambda inbox: inbox.replay("evt_waits", "a.no"), "pending"),
    "to replay what was done": (lambda inbox: inbox.replay("evt_done", "a.no"), "nothing"),
    "to replay one that is gone": (lambda inbox: inbox.replay("evt_gone"), "gone"),
    "to hurry one that is leased": (lambda inbox: inbox.retry("evt_leased"), "leased"),
    "to hurry one that is done": (lambda inbox: inbox.retry("evt_done"), "done"),
    "the death of a worker that had it no more": (is_noted, False),
    "a shorter pause": (lambda inbox: inbox.pause(5, "why"), None),
    "a claim in a pause": (lambda inbox: [str(each) for each in inbox.claim()], ["paused"]),
    "a call beyond the rate": (has_to_wait, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_does_nothing_writes_nothing(way: str, redis: Redis) -> None:
    inbox, paced = Inbox(redis), Inbox(redis, api_rate=1)
    for name in ("done", "leased", "waits", "next"):
        inbox.accept(event(name, session=name))
    done = claimed(inbox, "evt_done")
    inbox.save_progress(done, "a.one", Progress("done"))
    inbox.finish(done, "done", outcome="verified")
    claimed(inbox, "evt_leased")
    inbox.release(claimed(inbox, "evt_waits"), 600, "stripe: busy")
    assert inbox.try_acquire("turn", 60)
    inbox.pause(60, "why")
    while not has_to_wait(paced):
        pass
    redis.set(keys.BUDGET, (redis.time()[0] + 3600) * 1000)  # used up for longer than a moment
    before = {key: redis.dump(key) for key in redis.keys("*")}
    act, expected = WAYS[way]
    assert act(paced) == expected
    assert {key: redis.dump(key) for key in redis.keys("*")} == before

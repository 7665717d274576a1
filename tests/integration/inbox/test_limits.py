"""What is taken in, and what is worked off, when the inbox or Redis is full."""

from __future__ import annotations

import math

import pytest
import redis as redis_py

from service.inbox import AcceptResult, Inbox, Progress, pending_limit
from service.inbox import inbox as module
from tests.integration.claims import claimed, event

REFUSED = {AcceptResult.FULL, AcceptResult.MEMORY_SHORT}


@pytest.fixture(autouse=True)
def _memory_is_looked_at_for_every_event(monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_PROBE", 0.0)


def fill(inbox: Inbox) -> int:
    """Accept events until no more are taken; how many were."""
    for number in range(100_000):
        if inbox.accept(event(str(number), session=str(number))) in REFUSED:
            return number
    return 100_000


@pytest.mark.sample(3)
@pytest.mark.parametrize("reopen_dead", [False, True])
@pytest.mark.parametrize("short_of", ["room", "memory", "all memory"])
def test_above_the_limit_a_known_event_is_told_its_state(
    new_server, monkeypatch, reopen_dead, short_of
) -> None:
    if short_of == "all memory":
        monkeypatch.setattr(module, "MEMORY_LIMIT", math.inf)
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        inbox = Inbox(client, limit=3, reopen_dead=reopen_dead)
        states = ("done", "dead", "pending")
        for name in states:
            inbox.accept(event(name, session=name))
            claim = claimed(inbox, f"evt_{name}")
            if name != "pending":
                inbox.finish(claim, name, outcome="")
        inbox.accept(event("thin", session="t"))
        inbox.link(claimed(inbox, "evt_thin"), "evt_snap")
        filler = Inbox(client, limit=2 if short_of == "room" else 10**9)
        if short_of == "all memory":
            with pytest.raises(redis_py.exceptions.ResponseError, match="maxmemory"):
                fill(filler)
        else:
            fill(filler)
        inbox = Inbox(client, limit=2 if short_of == "room" else 10**9, reopen_dead=reopen_dead)

        answers = [inbox.accept(event(name, session=name)) for name in states]
        assert answers == [AcceptResult.DONE, AcceptResult.DEAD, AcceptResult.PENDING]
        assert inbox.accept(event("snap", session="t")) is AcceptResult.PENDING
        if short_of != "all memory":
            why = AcceptResult.FULL if short_of == "room" else AcceptResult.MEMORY_SHORT
            assert inbox.accept(event("new")) is why


@pytest.mark.parametrize(
    ("maxmemory", "limit"), [("50mb", 20_971), ("512mb", 214_748), ("0", 100_000)]
)
def test_without_a_limit_redis_tells_how_many_fit(new_server, maxmemory, limit) -> None:
    with new_server("--maxmemory", maxmemory).client() as client:
        assert Inbox(client).room() == limit
        assert Inbox(client, limit=7).room() == 7


@pytest.mark.parametrize("info", [{}, {"maxmemory": ""}, {"maxmemory": 0}], ids=str)
def test_and_where_it_does_not_tell_there_is_room_for_as_many_as_without_a_limit(info) -> None:
    """Not every managed Redis shows `maxmemory`."""
    assert pending_limit(info) == 100_000


def test_nothing_new_is_taken_in_when_redis_is_four_fifths_full(new_server) -> None:
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        inbox = Inbox(client, limit=10**9)
        taken = fill(inbox)
        memory = client.info("memory")

        assert 100 < taken < 100_000
        assert 0.79 < memory["used_memory"] / memory["maxmemory"] < 0.85
        assert inbox.room() == 0
        client.config_set("maxmemory", "60mb")
        assert inbox.accept(event("new")) is AcceptResult.NEW


def test_a_full_redis_still_drains(new_server, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_LIMIT", math.inf)
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        inbox = Inbox(client, limit=10**9)
        with pytest.raises(redis_py.exceptions.ResponseError, match="maxmemory"):
            fill(inbox)
        for _ in range(50):
            (claim,) = inbox.claim()
            assert inbox.renew(claim)
            assert inbox.save_progress(claim, "a.b", Progress("done"))
            assert inbox.finish(claim, "done", outcome="verified") is not None
        (claim,) = inbox.claim()
        inbox.release(claim, 0, "")
        inbox.sweep()

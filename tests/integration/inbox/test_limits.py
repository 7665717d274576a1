"""What is taken in, and what is worked off, when the inbox or Redis is full."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_py

from service.inbox import AcceptResult, Claim, Inbox, Pipeline, Progress, Reply, pending_limit
from service.inbox import inbox as module
from service.inbox.scripts import sources
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


def stay_full(client: redis_py.Redis) -> None:
    """Lower its limit a little: Redis frees some kB of its clients' buffers as time passes."""
    client.config_set("maxmemory", int(0.97 * client.info("memory")["maxmemory"]))


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
        stay_full(client)
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
        stay_full(client)
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
        stay_full(client)
        for _ in range(50):
            (claim,) = inbox.claim()
            assert inbox.renew(claim)
            assert inbox.save_progress(claim, "a.b", Progress("done"))
            assert inbox.finish(claim, "done", outcome="verified") is not None
        (claim,) = inbox.claim()
        inbox.release(claim, 0, "")
        inbox.sweep()


WHEN_FULL: dict[str, tuple[bool, Callable[[Pipeline, Claim], Reply[Any]]]] = {
    "renew": (True, lambda pipe, claim: pipe.renew(claim)),
    "link": (True, lambda pipe, claim: pipe.link(claim, "evt_snapshot")),
    "save_progress": (True, lambda pipe, c: pipe.save_progress(c, "a.b", Progress("done"))),
    "release": (True, lambda pipe, c: pipe.release(c, 9, "stripe: busy", is_fault=True)),
    "finish": (True, lambda pipe, claim: pipe.finish(claim, "dead", outcome="", reason="no")),
    "note_death": (True, lambda pipe, c: pipe.note_death(c.event.key, c.token, "a.b")),
    "claim": (True, lambda pipe, _: pipe.claim()),
    "sweep": (True, lambda pipe, _: pipe.sweep()),
    "discard": (True, lambda pipe, _: pipe.discard("evt_dead", "ann")),
    "pause": (True, lambda pipe, _: pipe.pause(60, "Stripe refuses our key")),
    "acquire": (True, lambda pipe, _: pipe.try_acquire("reconcile", 60)),
    "spend": (True, lambda pipe, _: pipe.spend_call()),
    "report": (True, lambda pipe, _: pipe.report("id", "{}", ["settled"])),
    "accept": (False, lambda pipe, _: pipe.accept(event("new", session="new"))),
    "replay": (False, lambda pipe, _: pipe.replay("evt_dead", "all", "ann")),
    "retry": (False, lambda pipe, _: pipe.retry("evt_waits", "ann")),
    "adopt": (False, lambda pipe, _: pipe.adopt(event("new", session="new"), "ann")),
    "list": (False, lambda pipe, _: pipe.list_events(["evt_dead"])),
}
"""Each script, whether Redis runs it when all of its memory is used, and a call of it."""


def test_of_every_script_it_is_said_whether_a_full_redis_runs_it() -> None:
    assert WHEN_FULL.keys() == sources().keys()


@pytest.mark.parametrize("script", WHEN_FULL)
def test_what_works_events_off_runs_when_redis_is_full(new_server, script) -> None:
    """Of thin events, too, and to whatever end they come. What takes something in does not."""
    runs, call = WHEN_FULL[script]
    with new_server("--maxmemory", "6mb").client() as client:
        inbox = Inbox(client, limit=10**9)
        for name in ("dead", "waits", "held", "next"):
            inbox.accept(event(name, session=name, form="thin"))
        inbox.finish(claimed(inbox, "evt_dead"), "dead", outcome="", reason="no")
        inbox.release(claimed(inbox, "evt_waits"), 600, "handlers wait for their retry")
        held = claimed(inbox, "evt_held")
        client.config_set("maxmemory", 1)
        with inbox.pipeline() as pipe:
            reply = call(pipe, held)
        if runs:
            reply.result()
        else:
            with pytest.raises(redis_py.exceptions.ResponseError, match=r"maxmemory|OOM"):
                reply.result()

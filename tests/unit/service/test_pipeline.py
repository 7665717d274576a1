"""What a pipeline makes of replies that no script of ours gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis

from identity_webhooks.event import Event
from service.inbox import Claim, Limits, Pipeline, Progress, Reply
from service.inbox.pipeline import Memory
from service.inbox.scripts import Scripts, sources

EVENT = Event("evt_1", "verified", "thin", "vs_1", 1_700_000_000, livemode=False)
CLAIM = Claim(event=EVENT, token="1", progress={}, faults=0, lapses=0, now=0, since=0)
COMMANDS: dict[str, Callable[[Pipeline], Reply[Any]]] = {
    "accept": lambda pipe: pipe.accept(EVENT),
    "claim": lambda pipe: pipe.claim(),
    "renew": lambda pipe: pipe.renew(CLAIM),
    "link": lambda pipe: pipe.link(CLAIM, "evt_2"),
    "save_progress": lambda pipe: pipe.save_progress(CLAIM, "a.one", Progress("done", 1)),
    "release": lambda pipe: pipe.release(CLAIM, 1, "why", is_fault=False),
    "finish": lambda pipe: pipe.finish(CLAIM, "done", outcome="verified"),
    "sweep": lambda pipe: pipe.sweep(),
    "replay": lambda pipe: pipe.replay("evt_1"),
    "retry": lambda pipe: pipe.retry("evt_1"),
    "discard": lambda pipe: pipe.discard("evt_1"),
    "adopt": lambda pipe: pipe.adopt(EVENT, "somebody"),
    "list": lambda pipe: pipe.list_events(["evt_1"]),
    "note_death": lambda pipe: pipe.note_death("evt_1", "1", "a.one"),
    "pause": lambda pipe: pipe.pause(1, "why"),
    "acquire": lambda pipe: pipe.try_acquire("task", 1),
    "spend": lambda pipe: pipe.spend_call(),
    "report": lambda pipe: pipe.report("id", "{}", ["deliveries|new"]),
}
RAW = [None, 5, -1, b"OK", b"\xff\xfe", b"", [], [b"new"], [[b"claimed"]], [None] * 5, [[]], {1: 2}]


def test_every_script_is_here() -> None:
    assert set(COMMANDS) == set(sources())


@pytest.mark.parametrize("raw", RAW, ids=repr)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_an_error_of_redis_or_is_understood(command: str, raw: Any) -> None:
    """Whoever asks is prepared for errors of Redis, and for no others."""
    pipe = Pipeline(Scripts(sources()), Limits())
    reply = COMMANDS[command](pipe)
    pipe.set_replies([raw])
    with suppress(redis.InvalidResponse):
        reply.result()


@pytest.mark.parametrize(
    ("replies", "is_free"),
    [
        ([0, 0], True),
        ([0, redis.ResponseError("NO")], True),
        ([redis.ConnectionError(), redis.ConnectionError()], False),
        ([0, redis.TimeoutError()], False),
        ([redis.TimeoutError(), 0], False),
    ],
    ids=str,
)
def test_a_slot_is_used_again_only_when_every_reply_came(
    replies: list[object], is_free: bool
) -> None:
    """Who asks again does so in the slot of before, and the reply that is kept there is his."""
    memory = Memory()
    pipe = Pipeline(Scripts(sources()), Limits(), memory)
    for number in range(len(replies)):
        pipe.discard(f"evt_{number}")
    pipe.set_replies(replies)
    assert (Pipeline(Scripts(sources()), Limits(), memory)._slot is pipe._slot) == is_free


@pytest.mark.parametrize(
    ("reply", "is_repeated"),
    [
        (redis.ConnectionError(), True),
        (redis.TimeoutError(), True),
        (redis.ResponseError("OOM"), False),
        ([], False),
    ],
    ids=repr,
)
def test_a_claim_is_repeated_by_the_next_one_only_when_no_reply_came(
    reply: object, is_repeated: bool
) -> None:
    scripts, memory = Scripts(sources()), Memory()
    first, second, third = (Pipeline(scripts, Limits(), memory) for _ in range(3))
    first.claim(2)
    first.set_replies([reply])
    second.claim(2)
    assert (second.pack() == first.pack()) == is_repeated
    third.claim(2)
    assert third.pack() not in {first.pack(), second.pack()}, "and by one alone"

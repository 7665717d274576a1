"""An action on many events: chosen, counted, confirmed and done in steps of a request each.

How far it is stands in Redis, so that a reload, another tab or another web process goes on where it
was, and nothing goes on that nobody looks at. First the keys of what the filter matches are noted;
their number is what is confirmed, and they are what is done, whatever comes to match meanwhile.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import redis

from service.inbox import Filter, Inbox, Record, keys
from service.inbox.record import fields_of, text_of
from service.repair import SUCCESS, Repair, handlers_to_replay

Action = Literal["replay", "retry-now", "discard"]
Stage = Literal["counting", "ready", "running", "done", "stopped"]

MOST = 20_000
"""Events of one action. Their keys take about 1 MB of Redis, for a day."""

LOOK = 1_000
"""Records that one step reads at most, about: a tenth of a second."""

STEP = 50
"""Events that one step does something with."""

KEPT = 86_400
"""Seconds that an action is known."""

SHOWN = 5
"""Actions that are listed, the last ones."""

LOCK = 10_000
"""Milliseconds after which a step that did not end is repeated. A step takes less than a second."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """An action on many events.

    Attributes:
        id: its name.
        by: who began it.
        action: what is done.
        handlers: of a replay, which: `dead`, or one by name.
        on: how the events were chosen, in words of the filter.
        stage: how far it is.
        matched: how many events it is asked for.
        left: how many of them it is still to be done with.
        left_out: quarantined events, which are replayed only when asked for.
        answers: what was answered -> how many events.
        following: where choosing goes on.
    """

    id: str
    by: str
    action: Action
    handlers: str
    on: Mapping[str, str]
    stage: Stage
    matched: int = 0
    left: int = 0
    left_out: int = 0
    answers: Mapping[str, int] = field(default_factory=dict)
    following: str = ""

    @property
    def done(self) -> int:
        """How many events have a result."""
        return sum(self.answers.values())

    @property
    def failed(self) -> int:
        """How many events did not become what was asked for."""
        good = SUCCESS[self.action]
        return sum(count for answer, count in self.answers.items() if answer not in good)


class Bulks:
    """The actions that people have begun. Every method may raise `redis.RedisError`."""

    def __init__(self, client: redis.Redis, inbox: Inbox) -> None:
        self._redis, self._inbox = client, inbox

    def begin(
        self, by: str, action: Action, handlers: str, on: Mapping[str, str], names: Sequence[str]
    ) -> str:
        """Begin to choose what `on` matches, or take the events with these keys; its id."""
        id_ = secrets.token_hex(6)
        spec = json.dumps([by, action, handlers, dict(on)])
        with self._redis.pipeline(transaction=False) as pipe:
            _set(pipe, id_, spec=spec, stage="ready" if names else "counting", matched=len(names))
            pipe.rpush(keys.BULKS, id_)
            pipe.ltrim(keys.BULKS, -SHOWN, -1)
            pipe.expire(keys.BULKS, KEPT)
            if names:
                pipe.rpush(_keys(id_), *(f"{name} dead" for name in names))
            _keep(pipe, id_)
            pipe.execute()
        return id_

    def find(self, id_: str) -> Bulk | None:
        """Return how far an action is; None where it is not known, or no longer."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(_key(id_))
            pipe.llen(_keys(id_))
            answer, left = pipe.execute()
        return _read(id_, fields_of(answer), int(left)) if answer else None

    def last(self) -> list[Bulk]:
        """Return the last actions, the newest first."""
        ids = [text_of(each) for each in cast("list[bytes]", self._redis.lrange(keys.BULKS, 0, -1))]
        return [found for id_ in reversed(ids) if (found := self.find(id_))]

    def confirm(self, bulk: Bulk, by: str) -> None:
        """Record who confirmed it, and let it begin."""
        if bulk.stage == "ready":
            on = {**bulk.on, "handlers": bulk.handlers if bulk.action == "replay" else None}
            Repair(self._redis, self._inbox, by).note(bulk.action, bulk.matched, on)
            spec = json.dumps([by, bulk.action, bulk.handlers, dict(bulk.on)])
            _set(self._redis, bulk.id, spec=spec, stage="running")

    def stop(self, bulk: Bulk, by: str) -> None:
        """Do no more of it, where it has not ended, and record who stopped what was confirmed."""
        if bulk.stage == "running":
            on = {**bulk.on, "action": bulk.action}
            Repair(self._redis, self._inbox, by).note("stop", bulk.left, on)
        if bulk.stage != "done":
            _set(self._redis, bulk.id, stage="stopped")

    def step(self, bulk: Bulk, wanted: Filter) -> None:
        """Choose more events, or act on more. Of two calls at a time, one does nothing."""
        lock = f"{_key(bulk.id)}:step"
        if not self._redis.set(lock, 1, nx=True, px=LOCK):
            return
        try:
            fresh = self.find(bulk.id)
            if fresh and fresh.stage == "counting":
                self._choose(fresh, wanted)
            elif fresh and fresh.stage == "running":
                self._act(fresh)
        finally:
            self._redis.delete(lock)

    def _choose(self, bulk: Bulk, wanted: Filter) -> None:
        room = MOST - bulk.matched
        page = self._inbox.search.page(wanted, room, bulk.following or None, look=LOOK)
        found = page.records
        if bulk.action == "replay" and not (wanted.reason or "").startswith("quarantined"):
            found = [record for record in found if not record.is_quarantined]
        full = len(page.records) == room
        with self._redis.pipeline(transaction=False) as pipe:
            if found:
                pipe.rpush(_keys(bulk.id), *(_entry(bulk, record) for record in found))
            _set(
                pipe,
                bulk.id,
                following=page.following or "",
                matched=bulk.matched + len(found),
                left_out=bulk.left_out + len(page.records) - len(found),
                stage="ready" if full or page.following is None else "counting",
            )
            _keep(pipe, bulk.id)
            pipe.execute()

    def _act(self, bulk: Bulk) -> None:
        # Events are removed from the list after the action. A step that was cut off is repeated,
        # and the answers of events that it had changed say so.
        found = cast("list[bytes]", self._redis.lrange(_keys(bulk.id), 0, STEP - 1))
        names = dict(text_of(each).split(" ", 1) for each in found)
        answers = Repair(self._redis, self._inbox, bulk.by).act(bulk.action, names)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.ltrim(_keys(bulk.id), len(found), -1)
            for _, answer in answers:
                pipe.hincrby(_key(bulk.id), f"n:{answer}", 1)
            if len(found) == bulk.left:
                _set(pipe, bulk.id, stage="done")
            _keep(pipe, bulk.id)
            pipe.execute()


def _read(id_: str, fields: Mapping[str, str], left: int) -> Bulk:
    by, action, handlers, on = json.loads(fields["spec"])
    return Bulk(
        id=id_,
        by=by,
        action=action,
        handlers=handlers,
        on=on,
        stage=cast("Stage", fields["stage"]),
        matched=int(fields.get("matched", 0)),
        left=left,
        left_out=int(fields.get("left_out", 0)),
        answers={
            name.removeprefix("n:"): int(count)
            for name, count in fields.items()
            if name.startswith("n:")
        },
        following=fields.get("following", ""),
    )


def _entry(bulk: Bulk, record: Record) -> str:
    """Return what is noted of an event: its key, and which of its handlers a replay runs again."""
    return f"{record.key} {handlers_to_replay(record, bulk.handlers)}"


def _key(id_: str) -> str:
    return f"{keys.BULK}:{id_}"


def _keys(id_: str) -> str:
    return f"{keys.BULK}:{id_}:keys"


def _set(client: redis.Redis, id_: str, **fields: str | int) -> None:
    client.hset(_key(id_), items=[part for pair in fields.items() for part in pair])


def _keep(client: redis.Redis, id_: str) -> None:
    client.expire(_key(id_), KEPT)
    client.expire(_keys(id_), KEPT)

"""The inbox: every accepted event, until it is settled, and for 35 days after.

The inbox is the truth; an RQ job is only a wake-up for one event. Keys and fields stand in
service/inbox/keys.py, the changes of state in service/inbox/pipeline.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal, cast

import redis

from identity_webhooks.event import Event
from service.inbox import keys
from service.inbox.connections import Connections
from service.inbox.pipeline import (
    AcceptResult,
    Adopted,
    ClaimResult,
    Discarded,
    Limits,
    Linked,
    Memory,
    Pipeline,
    Replayed,
    Retried,
    Swept,
)
from service.inbox.record import Claim, Progress, Record, State, fields_of, kept_fields, text_of
from service.inbox.scripts import Scripts, sources
from service.inbox.search import Filter, Search

MEMORY_LIMIT, MEMORY_PROBE = 0.8, 5.0
"""Share of Redis' `maxmemory` above which no new event is accepted, and seconds between two looks.
The rest is needed to process pending events: at its limit Redis refuses all writes."""

EVENT_SIZE = 1000
"""Bytes of Redis that a pending event takes, about (docs/performance.md)."""

PENDING_LIMIT = 100_000
"""Pending events above which no new one is accepted, where Redis has no `maxmemory` to tell."""


class Inbox:
    """The state machine of events, on one Redis. Every method may raise `redis.RedisError`."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        limit: int | None = None,
        reopen_dead: bool = False,
        api_rate: int = 0,
        keep: int = keys.KEEP,
    ) -> None:
        """See `Limits` for the options; without `limit` it is `pending_limit`.

        `keep`: seconds a done record is kept.
        """
        self._redis, self._keep = client, keep
        self._limit_is_set = limit is not None
        self._limits = Limits(limit or PENDING_LIMIT, reopen_dead, api_rate)
        self._full = Limits(0, reopen_dead, api_rate)
        self._scripts = Scripts(sources(keep))
        self._connections = Connections(client, self._scripts)
        self._memory = Memory()
        self._next_probe, self._short_of_memory = 0.0, False

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Collect changes of state; they are sent in one piece at the end of the block.

        Replies are available after the block. An error is raised when its reply is read.
        """
        pipe = Pipeline(self._scripts, self._limits, self._memory)
        yield pipe
        self._connections.send(pipe)

    def accept(self, event: Event) -> AcceptResult:
        """Store the event once and wake a worker for it, in one round trip.

        A second call changes nothing. Every five seconds one call
        also asks how full Redis is; above `MEMORY_LIMIT` only events that are known are accepted.
        """
        limits = self._full if self._is_short_of_memory() else self._limits
        pipe = Pipeline(self._scripts, limits, self._memory)
        result = pipe.accept(event)
        self._connections.send(pipe)
        return result.result()

    def claim(self, count: int = 1) -> list[ClaimResult]:
        """`Pipeline.claim`, alone."""
        with self.pipeline() as pipe:
            claims = pipe.claim(count)
        return claims.result()

    def renew(self, claim: Claim) -> bool:
        """`Pipeline.renew`, alone."""
        with self.pipeline() as pipe:
            kept = pipe.renew(claim)
        return kept.result()

    def link(self, claim: Claim, twin: str) -> Linked:
        """`Pipeline.link`, alone."""
        with self.pipeline() as pipe:
            linked = pipe.link(claim, twin)
        return linked.result()

    def save_progress(
        self, claim: Claim, handler: str, progress: Progress, delay: float = 0
    ) -> bool:
        """`Pipeline.save_progress`, alone."""
        with self.pipeline() as pipe:
            saved = pipe.save_progress(claim, handler, progress, delay)
        return saved.result()

    def release(self, claim: Claim, delay: float, reason: str, *, is_fault: bool = False) -> bool:
        """`Pipeline.release`, alone."""
        with self.pipeline() as pipe:
            released = pipe.release(claim, delay, reason, is_fault=is_fault)
        return released.result()

    def finish(
        self, claim: Claim, state: Literal["done", "dead"], *, outcome: str, reason: str = ""
    ) -> float | None:
        """`Pipeline.finish`, alone."""
        with self.pipeline() as pipe:
            finished = pipe.finish(claim, state, outcome=outcome, reason=reason)
        return finished.result()

    def sweep(self, limit: int = 500) -> Swept:
        """`Pipeline.sweep`, alone."""
        with self.pipeline() as pipe:
            swept = pipe.sweep(limit)
        return swept.result()

    def adopt(self, event: Event, by: str) -> Adopted:
        """`Pipeline.adopt`, alone."""
        with self.pipeline() as pipe:
            adopted = pipe.adopt(event, by)
        return adopted.result()

    def replay(self, key: str, handlers: str = "dead", by: str = "") -> Replayed:
        """`Pipeline.replay`, alone."""
        with self.pipeline() as pipe:
            replayed = pipe.replay(key, handlers, by)
        return replayed.result()

    def retry(self, key: str, by: str = "") -> Retried:
        """`Pipeline.retry`, alone."""
        with self.pipeline() as pipe:
            retried = pipe.retry(key, by)
        return retried.result()

    def discard(self, key: str, by: str = "") -> Discarded:
        """`Pipeline.discard`, alone."""
        with self.pipeline() as pipe:
            discarded = pipe.discard(key, by)
        return discarded.result()

    def note_death(self, key: str, token: str, handler: str) -> bool:
        """`Pipeline.note_death`, alone."""
        with self.pipeline() as pipe:
            noted = pipe.note_death(key, token, handler)
        return noted.result()

    def pause(self, seconds: float, why: str, account: str = "") -> None:
        """`Pipeline.pause`, alone."""
        with self.pipeline() as pipe:
            paused = pipe.pause(seconds, why, account)
        paused.result()

    def paused(self, account: str = "") -> tuple[float, str] | None:
        """Until when (unix seconds) and why no event, or none of this account, is claimed."""
        value = self._redis.get(keys.pause_of(account))
        if value is None:
            return None
        until, _, why = text_of(value).partition(" ")
        return int(until) / 1000, why

    def resume(self, account: str = "") -> bool:
        """End a pause; False where there is none."""
        return bool(self._redis.delete(keys.pause_of(account)))

    def note_handlers(self, names: Iterable[str]) -> None:
        """Write down which handlers a worker starts with."""
        now = self.now()
        if pairs := [part for name in names for part in (name, now)]:
            self._redis.hset(keys.HANDLERS, items=pairs)

    def handlers(self) -> list[str]:
        """The handlers of the release that runs; none if no worker has noted any.

        Those of a worker that started more than an hour before the last one are of an older one.
        """
        found = fields_of(self._redis.hgetall(keys.HANDLERS))
        last = max(map(int, found.values()), default=0)
        return sorted(name for name, at in found.items() if int(at) >= last - keys.HOUR)

    def try_acquire(self, task: str, period: float) -> bool:
        """`Pipeline.try_acquire`, alone."""
        with self.pipeline() as pipe:
            acquired = pipe.try_acquire(task, period)
        return acquired.result()

    def spend_call(self) -> None:
        """Wait until the rate that all processes share allows one more call of Stripe's API."""
        while self._limits.api_rate:
            with self.pipeline() as pipe:
                told = pipe.spend_call()
            if not (wait := told.result()):
                return
            time.sleep(wait)

    def find(self, key: str) -> Record | None:
        """Look an event up, by either of its two ids if it came in both forms.

        The record is that of the event that is worked on, under its own key.
        """
        fields = self._fields_of(key)
        if fields.get("state") == "twin":
            key = fields["twin"]
            fields = self._fields_of(key)
        return Record.read(key, fields) if fields else None

    def _fields_of(self, key: str) -> dict[str, str]:
        """Return the fields of a record, from wherever it is; none when it is nowhere."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.RECORD + key)
            pipe.get(keys.DONE + key)
            hash_, line = pipe.execute()
        return kept_fields(text_of(line)) if line else fields_of(hash_)

    def records(self, state: State | Literal["all"], limit: int) -> Iterator[Record]:
        """Yield up to `limit` records: pending by what is due next, others newest first."""
        yield from self.search.page(Filter(state=state), limit).records

    @property
    def search(self) -> Search:
        """Finds records."""
        return Search(self._redis, self.pipeline, self._keep)

    def last_kind(self, event: Event) -> str | None:
        """What kind of event handlers last heard of the session of this event."""
        today = datetime.fromtimestamp(self.now(), UTC)
        months = [today.year * 12 + today.month - 1 - ago for ago in range(keys.MONTHS_KEPT)]
        with self._redis.pipeline(transaction=False) as pipe:
            for month in months:
                key = f"{keys.LAST}{month // 12:04}-{month % 12 + 1:02}:{event.session[-2:]}"
                pipe.hget(key, f"{event.account or ''}:{event.session}")
            kinds = pipe.execute()
        return next((text_of(kind) for kind in kinds if kind is not None), None)

    def accounts(self) -> list[str]:
        """The connected accounts that events came from since Redis was last empty, in order."""
        return sorted(map(text_of, cast("list[bytes]", self._redis.zrange(keys.ACCOUNTS, 0, -1))))

    def watermark(self, account: str | None = None) -> int | None:
        """Time up to which Stripe's events have been reconciled, in unix seconds.

        None: not yet. Each connected account has a watermark of its own.
        """
        if account:
            score = self._redis.zscore(keys.ACCOUNTS, account)
            return int(float(score)) or None if score else None
        value = self._redis.get(keys.WATERMARK)
        return None if value is None else int(text_of(value))

    def move_watermark(self, to: int, account: str | None = None) -> None:
        """Note that everything made before `to` (unix seconds) has been compared.

        An account that was not known is remembered.
        """
        if account:
            self._redis.zadd(keys.ACCOUNTS, {account: to})
        else:
            self._redis.set(keys.WATERMARK, to)

    def note_pass(self, account: str | None, ended: str) -> None:
        """Note how the last pass of reconciliation for an account ended (service/survey.py)."""
        self._redis.hset(keys.RECONCILED, account or "", ended)

    def now(self) -> int:
        """The time by the clock of Redis, unix seconds."""
        return int(self._redis.time()[0])

    def room(self) -> int:
        """How many more events would be accepted; 0 when Redis is short of memory."""
        if self._is_short_of_memory():
            return 0
        return self._limits.pending - int(self._redis.zcard(keys.DUE))

    def _is_short_of_memory(self) -> bool:
        if time.monotonic() >= self._next_probe:
            self._next_probe = time.monotonic() + MEMORY_PROBE
            info: Mapping[str, Any] = {}
            with suppress(redis.ResponseError):  # this user may not ask: see service/findings.py
                info = self._redis.info("memory")
            self._short_of_memory = memory_is_short(info)
            if not self._limit_is_set:
                self._limits = replace(self._limits, pending=pending_limit(info))
        return self._short_of_memory


def memory_is_short(info: Mapping[str, Any]) -> bool:
    """Whether INFO reports so little free memory that no new event is accepted; False if INFO does
    not report memory."""
    try:
        used, limit = int(info["used_memory"]), int(info["maxmemory"])
    except (KeyError, ValueError):
        return False
    return limit > 0 and used / limit >= MEMORY_LIMIT


def pending_limit(info: Mapping[str, Any]) -> int:
    """Return how many pending events Redis has room for, by its INFO.

    They may take half of what is used before Redis is short of memory; the other half is for events
    that are settled, which are kept for weeks. `PENDING_LIMIT` where there is no `maxmemory`.
    """
    try:
        limit = int(info["maxmemory"])
    except (KeyError, ValueError):
        limit = 0
    return max(1, int(limit * MEMORY_LIMIT / 2 / EVENT_SIZE)) if limit > 0 else PENDING_LIMIT

"""Changes of state that leave for Redis together, in one round trip. No I/O.

    with inbox.pipeline() as pipe:
        finished = pipe.finish(claim, "done", outcome="verified")
        claimed = pipe.claim(1)
    finished.result(), claimed.result()

Each change is one Lua script (service/inbox/lua), so it happens whole or not at all. Each has a
nonce, so that a pipeline whose reply was lost may be sent again: it happens once, and the answer is
that of the first time.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast

import redis

from identity_webhooks.event import Event
from service.inbox.record import (
    Claim,
    Progress,
    Quarantined,
    event_of,
    fields_of,
    progress_of,
    text_of,
)
from service.inbox.scripts import Scripts

T = TypeVar("T")

Replayed = Literal["replayed", "leased", "pending", "nothing", "gone"]
Retried = Literal["retried", "leased", "dead", "done", "gone"]
Discarded = Literal["discarded", "leased", "done", "gone"]
Adopted = Literal["adopted", "pending", "done", "dead"]
Linked = Literal["first", "second", "lost"]


class AcceptResult(StrEnum):
    """The result of accepting an event. FULL (the inbox is at its limit) and MEMORY_SHORT (Redis
    has too little memory): it was not accepted."""

    NEW = "new"
    PENDING = "pending"
    DONE = "done"
    DEAD = "dead"
    REOPENED = "reopened"
    FULL = "full"
    MEMORY_SHORT = "memory_short"


class Refused(StrEnum):
    """Why an event could not be claimed. None of these is an error: a wake-up may be surplus."""

    GONE = "gone"
    DONE = "done"
    DEAD = "dead"
    LEASED = "leased"
    EARLY = "early"
    BUSY = "busy"
    HELD = "held"
    PAUSED = "paused"
    THROTTLED = "throttled"


ClaimResult = Claim | Refused | Quarantined
"""Result of claiming an event."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did.

    Attributes:
        woken: events woken.
        postponed: events left, because their wake-up still waits.
        stale: entries without an event that were removed.
        clock_set: seconds by which the clock of Redis was found to have been set; 0.0 if not.
    """

    woken: int = 0
    postponed: int = 0
    stale: int = 0
    clock_set: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What scripts are told with each call.

    Attributes:
        pending: pending events above which no new one is accepted; 0 while Redis is short of
            memory.
        reopen_dead: whether accepting a dead event again makes it pending.
        api_rate: calls of Stripe's API a second that all workers share; 0 for no limit.
    """

    pending: int = 100_000
    reopen_dead: bool = False
    api_rate: int = 0


class Reply(Generic[T]):
    """The reply to one command of a pipeline, once that was sent."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read
        self._raw: Any = _UNSENT
        self.when_lost: Callable[[], None] | None = None
        """Note that the command was sent and no reply arrived."""

    def set(self, raw: Any) -> None:
        """Keep the raw reply of Redis, or the exception in its place."""
        self._raw = raw
        if self.when_lost and isinstance(raw, redis.ConnectionError | redis.TimeoutError):
            self.when_lost()

    def result(self) -> T:
        """Return what Redis answered.

        Raises:
            redis.RedisError: Redis refused this command, did not answer, or answered in a form
                that is none of the script's.
            RuntimeError: the pipeline was not sent.
        """
        if self._raw is _UNSENT:
            raise RuntimeError("the pipeline was not sent")
        if isinstance(self._raw, redis.RedisError):
            raise self._raw
        try:
            return self._read(self._raw)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise redis.InvalidResponse(
                f"a reply of another form: {type(error).__name__}"
            ) from None


_UNSENT = object()


@dataclass(slots=True)
class Slot:
    """What nonces are made of: the pipelines that have it in turn are numbered."""

    name: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    number: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A claim of up to `count` events, which was asked for by its nonce."""

    count: int
    nonce: str


class Memory:
    """What one pipeline leaves for the next ones of a process. For any thread."""

    def __init__(self) -> None:
        # Claims without a reply. They may have taken effect: the next claim repeats one of them
        # and gets its events, which would otherwise wait until the lease runs out.
        self.unanswered: deque[Ask] = deque()
        # Slots that are free. One whose reply was lost is not used again.
        self.slots: deque[Slot] = deque()
        self._pid = os.getpid()
        # When the last sweep was: by the clock of the inbox (ms), and by our own (s).
        self.last_sweep: tuple[int, float] | None = None

    def take_slot(self) -> Slot:
        """Return a slot for one pipeline."""
        if self._pid != os.getpid():  # those of before a fork are the parent's
            self.slots, self._pid = deque(), os.getpid()
        try:
            return self.slots.pop()
        except IndexError:
            return Slot()

    def unanswered_for(self, count: int) -> Ask | None:
        """Return and forget an unanswered claim of at most `count` events."""
        for _ in range(len(self.unanswered)):
            with suppress(IndexError):  # another thread was first
                ask = self.unanswered.popleft()
                if ask.count <= count:
                    return ask
                self.unanswered.append(ask)
        return None

    def since_last_sweep(self) -> tuple[int, int] | tuple[Literal[""], Literal[""]]:
        """Return the time at the last sweep and the ms since, or nothing before the first."""
        if self.last_sweep is None:
            return "", ""
        now, clock = self.last_sweep
        return now, to_ms(time.monotonic() - clock)


class Pipeline:
    """Commands in the order in which they were asked for."""

    def __init__(self, scripts: Scripts, limits: Limits, memory: Memory | None = None) -> None:
        self._scripts, self._limits, self._memory = scripts, limits, memory or Memory()
        self._slot = self._memory.take_slot()
        self._slot.number += 1
        self._commands: list[bytes] = []
        self._replies: list[Reply[Any]] = []
        self.names: list[str] = []
        """The names of the scripts, in order."""

    def __len__(self) -> int:
        return len(self._commands)

    def pack(self) -> bytes:
        """Return all commands as Redis reads them."""
        return b"".join(self._commands)

    def set_replies(self, raw: Sequence[Any]) -> None:
        """Set the reply to each command.

        `raw` holds a reply of Redis, or the exception in its place, for each command in order.
        """
        for reply, each in zip(self._replies, raw, strict=True):
            reply.set(each)
        if not any(isinstance(each, redis.ConnectionError | redis.TimeoutError) for each in raw):
            self._memory.slots.append(self._slot)

    def accept(self, event: Event, trace: str = "") -> Reply[AcceptResult]:
        """Store the event once and wake a worker for it.

        `trace`: the `traceparent` of its delivery, if there is one.
        """
        limits = self._limits.pending, int(self._limits.reopen_dead)
        args = event.key, *limits, event.account or "", event.session, *_fields_of(event)
        if trace:
            args = *args, "trace", trace
        return self._add(self._accept_result, "accept", *args)

    def adopt(self, event: Event, by: str) -> Reply[Adopted]:
        """Keep an event as done that is not known, and run nothing for it."""
        args = event.key, by, event.account or "", *_fields_of(event)
        return self._add(lambda raw: cast("Adopted", text_of(raw)), "adopt", *args)

    def claim(self, count: int = 1) -> Reply[list[ClaimResult]]:
        """Pop up to `count` wake-ups and claim their events, in one step; empty if there is none.

        A trailing PAUSED or THROTTLED means that no further event was claimed.
        """
        ask = self._memory.unanswered_for(count) or Ask(count, self._next_nonce())
        reply = self._add(_claims, "claim", count, self._limits.api_rate, nonce=ask.nonce)
        reply.when_lost = partial(self._memory.unanswered.append, ask)
        return reply

    def renew(self, claim: Claim) -> Reply[bool]:
        """Extend the lease; False when the claim was lost, which is also noted in it."""

        def read(raw: Any) -> bool:
            claim.lost = claim.lost or not raw
            return not claim.lost

        return self._add(read, "renew", claim.event.key, claim.token)

    def link(self, claim: Claim, twin: str) -> Reply[Linked]:
        """Say that the claimed event and `twin` are one change in two forms, or has no other form.

        `first`: this event is worked on. `second`: the other was accepted or claimed before, and
        this one is settled as its `twin`. After that, and when it is `lost`, the claim is over.
        """

        def read(raw: Any) -> Linked:
            answer = cast("Linked", text_of(raw))
            if answer == "first":
                claim.twin = twin
            else:
                claim.lost = True
            return answer

        return self._add(read, "link", claim.event.key, claim.token, twin)

    def save_progress(
        self, claim: Claim, handler: str, progress: Progress, delay: float = 0
    ) -> Reply[bool]:
        """Record a handler's result; for `retry`, due again after `delay` seconds.

        False when the claim was lost: nothing was written, and nothing more may be started.
        """

        def read(raw: Any) -> bool:
            if not raw:
                claim.lost = True
                return False
            claim.now = int(raw)
            due = claim.now + to_ms(delay) if progress.status == "retry" else 0
            claim.progress[handler] = replace(progress, due=due)
            return True

        fields = _progress_args(handler, progress, to_ms(delay))
        return self._add(read, "save_progress", claim.event.key, claim.token, *fields)

    def release(self, claim: Claim, delay: float, reason: str, *, is_fault: bool) -> Reply[bool]:
        """Give the event back, due again after `delay` seconds; 0 wakes a worker at once.

        This spends no attempt of any handler. A fault of ours is counted (`Claim.faults`). False
        when the claim was lost.
        """
        args = claim.event.key, claim.token, to_ms(delay), reason, int(is_fault)
        return self._add(bool, "release", *args, *claim.unwritten)

    def finish(
        self, claim: Claim, state: Literal["done", "dead"], *, outcome: str, reason: str = ""
    ) -> Reply[float | None]:
        """End the event; the seconds since it was accepted, or None when the claim was lost."""
        args = claim.event.key, claim.token, state, outcome, reason, *claim.unwritten
        return self._add(_seconds_or_lost, "finish", *args)

    def sweep(self, limit: int = 500) -> Reply[Swept]:
        """Wake up to `limit` events that are past due. Any number of processes may call it."""

        def read(raw: Any) -> Swept:
            woken, postponed, stale, now, clock_set = map(int, raw)
            self._memory.last_sweep = now, time.monotonic()
            return Swept(woken, postponed, stale, clock_set / 1000)

        return self._add(read, "sweep", limit, *self._memory.since_last_sweep())

    def replay(self, key: str, handlers: str = "dead", by: str = "") -> Reply[Replayed]:
        """Replay an unclaimed event: its dead and waiting handlers, `all`, or the one named.

        The record keeps who asked for it (`by`), if given.

        A pending event, of which a handler waits for its retry, runs at once, and the results of
        these handlers are deleted; so one that was removed is forgotten. Without such a handler
        the record stays as it is: `pending`, or `nothing` for a settled event.
        """
        return self._add(lambda raw: cast("Replayed", text_of(raw)), "replay", key, handlers, by)

    def retry(self, key: str, by: str = "") -> Reply[Retried]:
        """Run a waiting pending event at once; the results of its handlers are kept."""
        return self._add(lambda raw: cast("Retried", text_of(raw)), "retry", key, by)

    def discard(self, key: str, by: str = "") -> Reply[Discarded]:
        """End an event that nobody works on as done, whatever its handlers wait for."""
        return self._add(lambda raw: cast("Discarded", text_of(raw)), "discard", key, by)

    def list_events(self, keys: Sequence[str]) -> Reply[int]:
        """Add kept events to the lists that they are missing from; return how many were missing."""
        return self._add(int, "list", *keys)

    def note_death(self, key: str, token: str, handler: str) -> Reply[bool]:
        """Write down which handler ran when the process died that held this claim.

        False when somebody else has had the event since.
        """
        return self._add(bool, "note_death", key, token, handler)

    def pause(self, seconds: float, why: str, account: str = "") -> Reply[bool]:
        """Let no worker claim an event for a while: for a fault that every event would meet.

        With `account`, only those of this connected account. A pause that ends later stays.
        """
        return self._add(bool, "pause", max(1, to_ms(seconds)), why, account)

    def try_acquire(self, task: str, period: float) -> Reply[bool]:
        """Whether this process is the one to do a task in this period (seconds)."""
        return self._add(bool, "acquire", task, to_ms(period))

    def spend_call(self) -> Reply[float]:
        """Reserve one call of Stripe's API from the rate that all processes share.

        Returns 0 if reserved, else the seconds to wait before asking again.
        """
        return self._add(lambda raw: int(raw) / 1000, "spend", self._limits.api_rate)

    def report(self, process: str, said: str, seen: Sequence[str]) -> Reply[bool]:
        """Store the report of a process, and the time at which these series were counted."""
        return self._add(bool, "report", process, said, *seen)

    def _accept_result(self, raw: Any) -> AcceptResult:
        result = AcceptResult(text_of(raw))
        # Without room for a single one it is not the pending events that are too many.
        is_short = result is AcceptResult.FULL and self._limits.pending == 0
        return AcceptResult.MEMORY_SHORT if is_short else result

    def _next_nonce(self) -> str:
        """Return the nonce of the next command: its place makes a slot of its own."""
        return f"{self._slot.name}:{len(self)}.{self._slot.number}"

    def _add(
        self, read: Callable[[Any], T], name: str, *args: str | int, nonce: str = ""
    ) -> Reply[T]:
        reply = Reply(read)
        self.names.append(name)
        self._commands.append(self._scripts.command(name, nonce or self._next_nonce(), *args))
        self._replies.append(reply)
        return reply


def save_progress_at_end(claim: Claim, handler: str, progress: Progress) -> None:
    """Write a final result together with the end of the claim.

    For the last handler: nothing else is started between the two.
    """
    claim.progress[handler] = progress
    claim.unwritten = _progress_args(handler, progress, 0)


def to_ms(seconds: float) -> int:
    """Return whole milliseconds."""
    return round(seconds * 1000)


def _fields_of(event: Event) -> list[str | int]:
    """Return the fields of an event's record, name by name."""
    fields: dict[str, str | int] = {
        "kind": event.kind,
        "form": event.form,
        "session": event.session,
        "created": event.created,
        "livemode": int(event.livemode),
        **({"account": event.account} if event.account else {}),
    }
    return [part for item in fields.items() for part in item]


def _seconds_or_lost(raw: Any) -> float | None:
    ms = int(raw)
    return None if ms < 0 else ms / 1000


def _progress_args(handler: str, progress: Progress, delay: int) -> tuple[str | int, ...]:
    return (
        handler,
        progress.status,
        progress.attempts,
        delay,
        progress.reason,
        progress.since or "",
    )


def _claims(raw: Any) -> list[ClaimResult]:
    return [_claim(each) for each in raw]


def _claim(raw: Any) -> ClaimResult:
    verdict = text_of(raw[0])
    if verdict not in {"claimed", "quarantined"}:
        return Refused(verdict)
    _, key, token, now, flat = raw
    fields = fields_of(flat)
    if verdict == "quarantined":
        return Quarantined(
            event_of(text_of(key), fields), progress_of(fields), fields.get("ran", "")
        )
    since = int(fields.get("reopened", fields["accepted"]))
    return Claim(
        event=event_of(text_of(key), fields),
        token=text_of(token),
        progress=progress_of(fields),
        faults=int(fields.get("faults", 0)),
        lapses=int(fields.get("lapses", 0)),
        suspect="suspect" in fields,
        twin=fields.get("twin"),
        reason=fields.get("reason", ""),
        trace=fields.get("trace", ""),
        now=int(now),
        since=since,
        claimed_age=(int(now) - since) / 1000,
        replayed_after=(since - int(fields["accepted"])) / 1000,
    )

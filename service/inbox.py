"""The inbox: every accepted event, until it is settled, and for 35 days after.

The inbox is the truth; an RQ job is only a wake-up for one event. Each change of state is one
Lua script (service/lua/), so it happens whole or not at all, and is safe to ask for twice.

Keys (all spelled here, and handed to the scripts by these names):

=========================== ====== ======= ===================================================
key                         type   TTL     meaning
=========================== ====== ======= ===================================================
iw:evt:<event key>          hash   -       the record of an event until it is done
iw:done:<event key>         string 35 d    what is kept of it then, in one line
iw:due                      zset   -       pending events by the moment to look at them again
iw:dead                     zset   -       dead events by time of death
iw:session:<account>:<vs>   string lease   "<event key> <token>": who works on this session
iw:waiting:<account>:<vs>   list   -       events that found it busy, first come first
iw:last:<month>:<xx>        hash   400 d   <account>:<vs> -> kind of the last event of this session
                                           that handlers heard in that month; <vs> ends in <xx>
iw:pause                    string itself  why no event is taken for a while
iw:turn:<what>              string period  some process is on it in this period
iw:watermark                int    -       since when reconciliation has to look (unix seconds)
iw:budget                   int    5 s     until when the rate of API calls is used up (ms)
iw:seq                      int    -       number of the last wake-up
iw:metrics                  hash   -       counters (service/metrics.py)
rq:job:<event key>-<number> hash   -       RQ's job, one per wake-up
rq:queue:identity           list   -       RQ's queue
=========================== ====== ======= ===================================================

Fields of a record:

=========== ====================================================================================
state       pending | dead; `twin` where this is only another id of an event (TTL 35 d once done)
kind form session created livemode account    the event (service/event.py); its id ends the key
accepted    when it was accepted; `reopened` when it was last put back
twin        the key of the same change in its other form (the event worked on, for a `twin`)
wake        number of its last wake-up
lease       until when it is claimed; absent when nobody holds it
token       fencing token of the last claim
not_before  no claim before this moment
waits       releases since anything was done: what the delay of the next one grows with
lapses      leases that ran out unreleased since anything was done
outcome     what the handlers were told: verified, needs_input, ...
reason      why it waits, why it died, or the code of last_error the handlers were told
settled     when it was finished
h:<handler> status|attempts|ms since accepted|due again|reason
=========== ====================================================================================

Invariant: a pending event is in `due` exactly once, any other never.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from importlib import resources
from itertools import chain
from typing import Any, Literal, cast

import redis

from identity_webhooks.event import Event
from service.record import (
    KEPT,
    Claim,
    Progress,
    Record,
    State,
    event_of,
    fields_of,
    kept_fields,
    progress_of,
    text_of,
)
from service.scripts import Scripts

LEASE = 10.0
"""Seconds a claim lasts without a heartbeat: how long a killed worker's event waits."""

HORIZON = 60.0
"""Seconds until the sweep looks whether a wake-up got lost."""

BUSY_DELAY = 5.0
"""Seconds an event waits for another event of the same session, if nothing wakes it before."""

MAX_LAPSES = 3
"""Claims in a row that end with the worker's death before an event is quarantined
(the rule of Sidekiq's super_fetch)."""

KEEP = 35 * 86_400
"""Seconds a done record is kept. Stripe lists and re-sends events for up to 30 days
(https://docs.stripe.com/webhooks#behaviors)."""

MEMORY_LIMIT, MEMORY_PROBE = 0.8, 5.0
"""Share of Redis' `maxmemory` above which no new event is taken in, and seconds between two looks.
The rest is for working off what is there: at its limit Redis refuses all writes."""

KEEP_LAST = 400 * 86_400
"""Seconds it is remembered what handlers last heard of a session: past an outage of a year."""
_MONTHS = 15  # that many, begun, may be remembered

QUEUE = "identity"
_RECORD, _DONE, _DUE, _DEAD, _PAUSE = "iw:evt:", "iw:done:", "iw:due", "iw:dead", "iw:pause"
_LAST, _TURN, _WATERMARK = "iw:last:", "iw:turn:", "iw:watermark"
_QUEUE_KEY = f"rq:queue:{QUEUE}"

_NAMES: dict[str, str | int | tuple[str, ...]] = {
    "KEPT": KEPT,
    "RECORD": _RECORD,
    "DONE": _DONE,
    "SESSION": "iw:session:",
    "WAITING": "iw:waiting:",
    "LAST": _LAST,
    "DUE": _DUE,
    "DEAD": _DEAD,
    "PAUSE": _PAUSE,
    "BUDGET": "iw:budget",
    "SEQUENCE": "iw:seq",
    "QUEUE": _QUEUE_KEY,
    "LEASE": round(LEASE * 1000),
    "HORIZON": round(HORIZON * 1000),
    "BUSY": round(BUSY_DELAY * 1000),
    "KEEP": KEEP,
    "KEEP_LAST": KEEP_LAST,
    "MAX_LAPSES": MAX_LAPSES,
}
# All but taking in new events must go on when Redis is full, or it would never drain.
_TAKING_IN = ("accept", "replay")
_WORKING_OFF = ("take", "renew", "record", "release", "finish", "link", "sweep")


class Accepted(StrEnum):
    """What accepting an event found. FULL alone means that it was not taken."""

    NEW = "new"
    PENDING = "pending"
    DONE = "done"
    DEAD = "dead"
    REOPENED = "reopened"
    FULL = "full"


class Refused(StrEnum):
    """Why an event could not be claimed. None of these is an error: a wake-up may be surplus."""

    GONE = "gone"
    DONE = "done"
    DEAD = "dead"
    LEASED = "leased"
    EARLY = "early"
    BUSY = "busy"
    PAUSED = "paused"
    THROTTLED = "throttled"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: events woken, left because their wake-up still waits, stale entries."""

    woken: int = 0
    postponed: int = 0
    stale: int = 0


class Inbox:
    """The state machine of events, on one Redis. Every method may raise `redis.RedisError`."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        limit: int = 100_000,
        reopen_dead: bool = False,
        api_rate: int = 0,
    ) -> None:
        """`api_rate`: calls of Stripe's API a second that all workers share; 0 for no limit."""
        self._redis = client
        self._next_probe, self._short_of_memory = 0.0, False
        self._api_rate = api_rate
        self._limit = limit
        self._reopen_dead = int(reopen_dead)
        self._scripts = Scripts(
            client, {name: _source(name) for name in (*_TAKING_IN, *_WORKING_OFF)}
        )

    def accept(self, event: Event) -> Accepted:
        """Store the event once and wake a worker for it, in one round trip.

        Safe to repeat: a second call, or a retry after a lost reply, changes nothing. Every five
        seconds one call also asks how full Redis is.
        """
        return self.accept_soon(event)()

    def accept_soon(self, event: Event) -> Callable[[], Accepted]:
        """Accept an event together with others of this thread, all in one round trip.

        It leaves when the function returned is called, which waits for the answer.
        """
        if self._is_short_of_memory():
            return lambda: Accepted.FULL
        fields: dict[str, str | int] = {
            "kind": event.kind,
            "form": event.form,
            "session": event.session,
            "created": event.created,
            "livemode": int(event.livemode),
            **({"account": event.account} if event.account else {}),
        }
        flat: list[str | int] = [part for item in fields.items() for part in item]
        answer = self._scripts.soon("accept", event.key, self._limit, self._reopen_dead, *flat)
        return lambda: Accepted(text_of(answer()))

    def take(self, count: int = 1) -> list[Claim | Refused]:
        """Pop up to `count` wake-ups and claim their events, in one step; empty if there is none.

        The last one may be PAUSED or THROTTLED, which is said of what is not taken; a claim whose
        last holder died is the last one, too: what is taken with it might die with it.
        """
        return self.take_soon(count)()

    def take_soon(self, count: int = 1) -> Callable[[], list[Claim | Refused]]:
        """Take events, in one round trip with what else this thread asks for."""
        answers = self._scripts.soon("take", count, self._api_rate)
        return lambda: [_claim(answer) for answer in answers()]

    def renew(self, claim: Claim) -> bool:
        """Extend the lease; False when the claim was lost, which is also noted in it."""
        claim.lost = claim.lost or not self._run("renew", claim.event.key, claim.token)
        return not claim.lost

    def link(self, claim: Claim, twin: str) -> bool:
        """Say that the claimed event and `twin` are one change in two forms; is this the one?

        False: the other is known already and is the one; this event is settled as its `twin`, or
        the claim was lost.
        """
        first = text_of(self._run("link", claim.event.key, claim.token, twin)) == "first"
        if first:
            claim.twin = twin
        else:
            claim.lost = True
        return first

    def pause(self, seconds: float, why: str) -> None:
        """Have no worker take an event for a while: for what every event would run into."""
        self._redis.set(_PAUSE, why, px=max(1, _ms(seconds)))

    def record(self, claim: Claim, handler: str, progress: Progress, delay: float = 0) -> bool:
        """Write down how a handler fared; for `retry`, due again after `delay` seconds.

        False when the claim was lost: nothing was written, and nothing more may be started.
        """
        now = self._run(
            "record", claim.event.key, claim.token, *_result(handler, progress, _ms(delay))
        )
        if not now:
            claim.lost = True
            return False
        claim.now = int(now)
        due = claim.now + _ms(delay) if progress.status == "retry" else 0
        claim.progress[handler] = replace(progress, due=due)
        return True

    def record_at_end(self, claim: Claim, handler: str, progress: Progress) -> None:
        """Have a result that is `over` written together with the end of the claim.

        For the last handler: between its end and this one nothing else is started.
        """
        claim.progress[handler] = progress
        claim.unwritten = _result(handler, progress, 0)

    def release(self, claim: Claim, delay: float, reason: str) -> bool:
        """Give the event back, due again after `delay` seconds; 0 wakes a worker at once.

        This spends no attempt of any handler.
        """
        return self.release_soon(claim, delay, reason)()

    def release_soon(self, claim: Claim, delay: float, reason: str) -> Callable[[], bool]:
        """Give the event back, in one round trip with what else this thread asks for."""
        answer = self._scripts.soon(
            "release", claim.event.key, claim.token, _ms(delay), reason, *claim.unwritten
        )
        return lambda: bool(answer())

    def finish(
        self, claim: Claim, state: Literal["done", "dead"], *, outcome: str, reason: str = ""
    ) -> float | None:
        """End the event; the seconds since it was accepted, or None when the claim was lost."""
        return self.finish_soon(claim, state, outcome=outcome, reason=reason)()

    def finish_soon(
        self, claim: Claim, state: Literal["done", "dead"], *, outcome: str, reason: str = ""
    ) -> Callable[[], float | None]:
        """End the event, in one round trip with what else this thread asks for."""
        answer = self._scripts.soon(
            "finish", claim.event.key, claim.token, state, outcome, reason, *claim.unwritten
        )

        def took() -> float | None:
            ms = int(answer())
            return None if ms < 0 else ms / 1000

        return took

    def sweep(self, limit: int = 500) -> Swept:
        """Wake up to `limit` events that are past due. Any number of processes may call it."""
        return Swept(*map(int, self._run("sweep", limit)))

    def replay(self, key: str, handlers: str = "dead") -> Literal["replayed", "pending", "gone"]:
        """Run a settled event again: its dead handlers, `all` of them, or the one named."""
        answer = text_of(self._run("replay", key, handlers))
        return cast('Literal["replayed", "pending", "gone"]', answer)

    def find(self, key: str) -> Record | None:
        """Look an event up, by the id of either form."""
        fields = self._fields_of(key)
        if fields.get("state") == "twin":
            key = fields["twin"]
            fields = self._fields_of(key)
        return Record.read(key, fields) if fields else None

    def _fields_of(self, key: str) -> dict[str, str]:
        """Return the fields of a record, from wherever it is; none when it is nowhere."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(_RECORD + key)
            pipe.get(_DONE + key)
            hash_, line = pipe.execute()
        return kept_fields(text_of(line)) if line else fields_of(hash_)

    def records(self, state: State | Literal["all"], limit: int) -> Iterator[Record]:
        """Yield up to `limit` records: pending and dead by time, others in no order."""
        keys: Iterator[bytes]
        if state == "pending":
            keys = iter(self._redis.zrange(_DUE, 0, limit - 1))  # type: ignore[arg-type]
        elif state == "dead":
            keys = iter(self._redis.zrange(_DEAD, 0, limit - 1, desc=True))  # type: ignore[arg-type]
        else:
            patterns = [_DONE] if state == "done" else [_RECORD, _DONE]
            keys = chain.from_iterable(
                self._redis.scan_iter(match=f"{prefix}*", count=1000) for prefix in patterns
            )
        for key in keys:
            name = text_of(key).removeprefix(_RECORD).removeprefix(_DONE)
            record = self.find(name)
            if record and record.key == name and state in {"all", record.state}:
                yield record
                limit -= 1
            if limit <= 0:
                return

    def last_kind(self, event: Event) -> str | None:
        """What kind of event handlers last heard of the session of this event."""
        today = datetime.fromtimestamp(self.now(), UTC)
        months = [today.year * 12 + today.month - 1 - ago for ago in range(_MONTHS)]
        with self._redis.pipeline(transaction=False) as pipe:
            for month in months:
                key = f"{_LAST}{month // 12:04}-{month % 12 + 1:02}:{event.session[-2:]}"
                pipe.hget(key, f"{event.account or ''}:{event.session}")
            kinds = pipe.execute()
        return next((text_of(kind) for kind in kinds if kind is not None), None)

    def my_turn(self, what: str, period: float) -> bool:
        """Whether this process is the one to do a thing in this period (seconds)."""
        return bool(self._redis.set(_TURN + what, 1, nx=True, px=_ms(period)))

    def watermark(self) -> int | None:
        """Up to when Stripe's events have been compared with the inbox, unix seconds."""
        value = self._redis.get(_WATERMARK)
        return None if value is None else int(text_of(value))

    def move_watermark(self, to: int) -> None:
        """Note that everything made before `to` (unix seconds) has been compared."""
        self._redis.set(_WATERMARK, to)

    def now(self) -> int:
        """The time by the clock of Redis, unix seconds."""
        return int(self._redis.time()[0])

    def room(self) -> int:
        """How many more events would be taken in; 0 when Redis is short of memory."""
        return 0 if self._is_short_of_memory() else self._limit - int(self._redis.zcard(_DUE))

    def gauges(self) -> list[tuple[str, str, float]]:
        """Name, sentence and value of what can be read off the inbox now."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(_DUE)
            pipe.zcard(_DEAD)
            pipe.llen(_QUEUE_KEY)
            pipe.zrange(_DUE, 0, 0, withscores=True)
            pipe.time()
            pending, dead, queued, first, now = pipe.execute()
        clock = now[0] + now[1] / 1e6
        overdue = max(0.0, clock - first[0][1] / 1000) if first else 0.0
        return [
            ("pending_events", "Events accepted and not settled.", pending),
            ("dead_events", "Events that died and wait for a person.", dead),
            ("queued_jobs", "Wake-ups waiting in the queue.", queued),
            ("overdue_seconds", "How long the most overdue event has not been woken.", overdue),
        ]

    def _is_short_of_memory(self) -> bool:
        if time.monotonic() >= self._next_probe:
            self._next_probe = time.monotonic() + MEMORY_PROBE
            memory = self._redis.info("memory")
            room = memory.get("maxmemory") or math.inf
            self._short_of_memory = memory["used_memory"] / room >= MEMORY_LIMIT
        return self._short_of_memory

    def _run(self, script: str, *args: str | int) -> Any:
        return self._scripts.run(script, *args)


def _source(name: str) -> str:
    """Return a script with all that stands in front of it."""
    folder = resources.files("service") / "lua"
    flags = "#!lua flags=allow-oom\n" if name in _WORKING_OFF else "#!lua\n"
    names = "".join(f"local {key} = {_lua(value)}\n" for key, value in _NAMES.items())
    lib, script = ((folder / f"{file}.lua").read_text() for file in ("lib", name))
    return flags + names + lib + script


def _lua(value: str | int | tuple[str, ...]) -> str:
    return f"{{{str(value)[1:-1]}}}" if isinstance(value, tuple) else repr(value)


def _result(handler: str, progress: Progress, delay: int) -> tuple[str | int, ...]:
    return handler, progress.status, progress.attempts, delay, progress.reason


def _claim(answer: Any) -> Claim | Refused:
    verdict = text_of(answer[0])
    if verdict != "claimed":
        return Refused(verdict)
    _, key, token, now, flat = answer
    fields = fields_of(flat)
    return Claim(
        event=event_of(text_of(key), fields),
        token=text_of(token),
        progress=progress_of(fields),
        waits=int(fields.get("waits", 0)),
        lapses=int(fields.get("lapses", 0)),
        twin=fields.get("twin"),
        now=int(now),
        since=int(fields.get("reopened", fields["accepted"])),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)

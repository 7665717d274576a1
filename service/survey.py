"""The state in Redis at one moment: the backlog, what waits and why, the living processes.

One look costs two round trips and no search through all keys, so that metrics, `status` and a page
may look as often as they like. What a Redis user may not read stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import redis

from service import processes
from service.inbox import asking, keys, pending_limit
from service.inbox.record import fields_of, progress_of, text_of
from service.inbox.scripts import pack_command
from service.inbox.search import deaths_in
from service.processes import Seen

SAMPLE = 100
"""Records looked at: of those due next, and of those due last, which as a rule are the oldest, as
waits grow with age."""

TOGETHER = 600.0
"""Seconds that workers of two releases may run side by side, as in a rolling deploy."""

NOT_LISTED, BUSY = "not listed", "for their session"

KINDS = (
    *("failed", "timeout", "retry", "discarded", "stripe", "quarantined", "no such handler"),
    *("processing failed", "other", NOT_LISTED),
)
"""What an event may have died of, in few words (`kind_of`)."""


class Reconciled(msgspec.Struct, frozen=True):
    """How the last pass of reconciliation for an account ended.

    Attributes:
        at: when it ended, unix seconds by the clock of Redis.
        seen, missed: events that Stripe listed, and of them those that were not known.
        failed: why it could not be made; empty if it was.
        hint: what to do then.
    """

    at: int
    seen: int = 0
    missed: int = 0
    failed: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look found. Ages are seconds by the clock of the inbox.

    Attributes:
        now: the time by that clock, unix seconds.
        clock_ahead: seconds that Redis' clock was set back by, and that are not made up yet.
        pending, queued, dead: events, and wake-ups that wait in the queue.
        overdue: how long the event has waited for a worker that waits longest for one.
        oldest: how old the oldest unsettled event is (of those looked at).
        waits: why events wait, of those looked at: reason -> how many. A failed handler counts
            also while it is tried again.
        deaths: what dead events died of: handler and cause -> how many (`Search.deaths`), and
            `NOT_LISTED` of those that an older release left and that are in no list yet.
        running: processes, also those that ended lately, the latest report first.
        paused: why no event is claimed, and for how many seconds yet; None while events are.
        reconciled: how the last passes ended; '' is one's own account.
        through: when the last whole pass of each account began, as an age.
        memory, memory_limit: bytes that Redis uses and may use; 0 is no limit, None unknown.
        room: pending events that fit, where INBOX_LIMIT is not set.
        seen: ages of what was last counted when: series -> seconds (service/metrics.py).
    """

    now: float
    clock_ahead: float
    pending: int
    queued: int
    dead: int
    overdue: float
    oldest: float
    waits: Mapping[str, int]
    deaths: Counter[tuple[str, str]]
    running: list[Seen]
    paused: tuple[str, float] | None
    reconciled: Mapping[str, Reconciled]
    through: Mapping[str, float]
    memory: int | None
    memory_limit: int | None
    room: int
    seen: Mapping[str, float]

    def alive(self, role: processes.Role) -> list[Seen]:
        """Return the processes of a role that live."""
        return [each for each in self.running if each.process.role == role and each.alive]

    @property
    def lacking(self) -> list[tuple[Seen, list[str]]]:
        """Workers without a handler that another one runs, and which; not while it is a deploy.

        Such a worker settles events as done for which that handler never ran.
        """
        old = [
            each
            for each in self.alive("worker")
            if self.now - each.process.started / 1000 > TOGETHER
        ]
        every = {name for each in old for name in each.process.handlers}
        found = [(each, sorted(every.difference(each.process.handlers))) for each in old]
        return [(each, names) for each, names in found if names]

    @property
    def slots(self) -> int:
        """Events that the workers work on at once, at most."""
        return sum(each.process.slots for each in self.alive("worker"))

    @property
    def in_flight(self) -> int:
        """Events that workers have in hand, as they say."""
        return sum(each.process.busy for each in self.alive("worker"))

    @property
    def waiting(self) -> int:
        """Events that neither wait in the queue nor are in hand: for a retry, or their session."""
        return max(0, self.pending - self.queued - self.in_flight)


def survey(client: redis.Redis) -> Survey:
    """Look at the inbox.

    May raise `redis.RedisError`: Redis cannot be asked.
    """
    told = _ask(client)
    clock, time = told["clock"], told["time"]
    ahead = int(text_of(clock).split()[0]) / 1000 if clock else 0.0
    now = time[0] + time[1] / 1e6 + ahead
    first = told["due first"] or []
    looked_at = dict.fromkeys([*(key for key, _ in first), *(told["due last"] or ())])
    # Sent as one piece: the client's pipeline takes half as long again for so many commands.
    asked = [pack_command("HMGET", keys.JOB + text_of(told["head"]), "enqueued_at")]
    asked += [pack_command("HGETALL", keys.RECORD + text_of(key)) for key in looked_at]
    job, *records = asking(client)(b"".join(asked), len(asked))
    found = [fields_of(each) for each in records if not isinstance(each, redis.RedisError)]
    found = [each for each in found if each.get("state") == "pending"]
    return Survey(
        now=now,
        clock_ahead=ahead,
        pending=told["pending"] or 0,
        queued=told["queued"] or 0,
        dead=told["dead"] or 0,
        overdue=_overdue(now, job, first),
        oldest=max((now - int(each["accepted"]) / 1000 for each in found), default=0.0),
        waits=_waits(found, now),
        deaths=_deaths(told["deaths"] or {}, told["dead"] or 0),
        running=processes.read(told["processes"] or {}, now * 1000),
        paused=_pause(told["pause"], now),
        reconciled=_reconciled(told["reconciled"] or {}),
        through=_through(told["watermark"], told["accounts"] or (), now),
        memory=_number(told["memory"], "used_memory"),
        memory_limit=_number(told["memory"], "maxmemory"),
        room=pending_limit(told["memory"] or {}),
        seen={
            text_of(name): max(0.0, now - int(at) / 1000)
            for name, at in (told["seen"] or {}).items()
        },
    )


def _ask(client: redis.Redis) -> dict[str, Any]:
    """Ask everything that needs no other answer; None for what this user may not ask."""
    with client.pipeline(transaction=False) as pipe:
        asked = {
            "time": pipe.time(),
            "clock": pipe.get(keys.CLOCK),
            "pending": pipe.zcard(keys.DUE),
            "dead": pipe.zcard(keys.DEAD),
            "queued": pipe.llen(keys.QUEUE_KEY),
            "head": pipe.lindex(keys.QUEUE_KEY, 0),
            "due first": pipe.zrange(keys.DUE, 0, SAMPLE - 1, withscores=True),
            "due last": pipe.zrange(keys.DUE, -SAMPLE, -1),
            "deaths": pipe.hgetall(keys.DEATHS),
            "pause": pipe.get(keys.PAUSE),
            "processes": pipe.hgetall(keys.PROCESSES),
            "seen": pipe.hgetall(keys.SEEN),
            "reconciled": pipe.hgetall(keys.RECONCILED),
            "watermark": pipe.get(keys.WATERMARK),
            "accounts": pipe.zrange(keys.ACCOUNTS, 0, -1, withscores=True),
            "memory": pipe.info("memory"),
        }
        answers = pipe.execute(raise_on_error=False)
    if isinstance(answers[0], redis.RedisError):
        raise answers[0]
    refused = redis.ResponseError
    return {
        name: None if isinstance(answer, refused) else answer
        for name, answer in zip(asked, answers, strict=True)
    }


def kind_of(cause: str) -> str:
    """Return a cause of death (service/inbox/search.py) as one of `KINDS`."""
    if "no such handler" in cause:
        return "no such handler"
    return next((kind for kind in KINDS if cause.startswith(kind)), "other")


def _overdue(now: float, job: Any, first: Iterable[tuple[bytes, float]]) -> float:
    """Return how long the first in the queue has waited, or what is due and was not woken."""
    waits = [now - due / 1000 for _, due in list(first)[:1]]
    if isinstance(job, list) and job[0]:
        # As lua/lib.lua writes it (`stamp`): by the clock of the inbox.
        waits.append(now - datetime.fromisoformat(text_of(job[0])).timestamp())
    return max(0.0, *waits) if waits else 0.0


def _waits(records: Iterable[Mapping[str, str]], now: float) -> Counter[str]:
    """Count what they wait for: handlers for their retry, or why the event was given back."""
    reasons: Counter[str] = Counter()
    for fields in records:
        failed = [
            f"{name}: {each.reason}"
            for name, each in progress_of(fields).items()
            if each.status == "retry" and each.reason
        ]
        if failed:  # also while it is tried again
            reasons.update(failed)
        elif reason := fields.get("reason"):  # also while it waits for a worker, or has one
            reasons[reason] += 1
        elif int(fields.get("lease", 0)) <= now * 1000 < int(fields.get("not_before", 0)):
            reasons[BUSY] += 1
    return reasons


def _deaths(listed: Any, dead: int) -> Counter[tuple[str, str]]:
    deaths = Counter(deaths_in(listed))
    if (missing := dead - deaths.total()) > 0:
        deaths["", NOT_LISTED] = missing
    return deaths


def _pause(pause: Any, now: float) -> tuple[str, float] | None:
    until, _, why = text_of(pause or b"").partition(" ")
    left = int(until) / 1000 - now if until.isdigit() else 0
    return (why, left) if left > 0 else None


def _reconciled(fields: Mapping[Any, Any]) -> dict[str, Reconciled]:
    found = {}
    for account, value in fields.items():
        try:
            found[text_of(account)] = msgspec.json.decode(value, type=Reconciled)
        except msgspec.DecodeError:
            continue  # another release's
    return found


def _through(
    watermark: Any, accounts: Iterable[tuple[bytes, float]], now: float
) -> dict[str, float]:
    marks = {text_of(name): float(score) for name, score in accounts if score}
    if watermark is not None:
        marks[""] = float(watermark)
    return {account: max(0.0, now - mark) for account, mark in marks.items()}


def _number(info: Any, name: str) -> int | None:
    value = info.get(name) if isinstance(info, dict) else None
    return int(value) if value is not None else None

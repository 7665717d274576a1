"""The state of the service in one look: is it accepting, is it processing, how far behind, and why.

`take` collects it as data, for the command and for pages; `command` prints it. Problems come first,
each with the name of its alert and with what to do, in words that docs/operations.md explains.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import click
import redis

from service import connection, findings
from service.inbox import asking
from service.inbox.inbox import MEMORY_LIMIT
from service.redis_errors import explain
from service.settings import Settings, SettingsError
from service.survey import BUSY, NOT_LISTED, Survey, survey

BEHIND = 60.0
"""Seconds that an event may wait for a worker before the service counts as behind."""

NOT_RECONCILED = 900.0
"""Seconds after which reconciliation counts as missing: three of its rounds."""

SECRET_UNUSED, SECRET_IN_USE = 7 * 86_400.0, 86_400.0
"""Seconds after which a signing secret counts as unused, and within which another one has to be in
use, as in the alert."""

MEMORY_NEAR, INBOX_NEAR = 0.75, 0.8
"""The shares of Redis' memory and of the inbox's limit above which a person has to look, as in the
alerts: before deliveries are refused."""

WAITS_LONG = 3600.0
"""Seconds after which an event that is not settled is a problem of its own, as in the alert."""

LATELY = 900.0
"""Seconds for which a refused delivery counts as news, as in the alerts. What anybody may
send does so only while nothing was accepted since."""

SHOWN = 3
"""Causes of death that are problems of their own, and reasons for waiting shown, at most."""

_SIGNED = ("refusals|signature_mismatch", "refusals|signature_expired")
_MALFORMED = "refusals|malformed_header"

# stripe: key 401; acme.grant: stripe: sensitive: forbidden 403
_FAILURE = re.compile(r"\bstripe: (?:[a-z ]+: )?([a-z]+)\b")

_NOT_SHOWN = frozenset({"missing", "account"})
"""The failures of Stripe that mean that it answers, and does not show us the session."""

_CURES_OF_WAITS = {
    "StripeRefusesKey": "python -m workers doctor says what each key may read",
    "StripeFails": "look its request_ids (`event_released` in the log) up in Stripe's Dashboard",
    "HandlerFails": "mend it there (`handler_failed` in the log); it is tried again by itself",
    "Paused": "python -m service events list --state pending --reason 'account paused' names the"
    " account; events resume --account ends the pause",
    "EventsWait": "look for `event_released` in the worker's log",
    "not shown": "is STRIPE_API_KEY of the account and of the mode that send the events?",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person has to look at.

    Attributes:
        alert: the name of the alert that tells of it (deploy/prometheus/alerts.yml).
        text: what is wrong.
        cure: what to do.
    """

    alert: str
    text: str
    cure: str


@dataclass(frozen=True, slots=True)
class Status:
    """What one look found. Ages and times are seconds; None where it is not known.

    Attributes:
        problems: what a person has to look at, what stops everything first.
        accepting: whether deliveries would be accepted now.
        last_delivery: how long ago one was accepted.
        processing: whether a worker lives and events may be claimed.
        processes: living processes by role.
        slots, in_flight: events that workers can and do work on.
        pending, queued, waiting, dead: events; `waiting` for a retry, Stripe or their session.
        overdue: how long the event has waited for a worker that waits longest for one.
        oldest: age of the oldest unsettled event.
        waits: why events wait, of those looked at: reason -> how many.
        died: what dead events died of: `<handler>: <cause>` -> how many, the most frequent first.
        reconciled: seconds since the last whole pass, by account (`own`: one's own).
        memory, memory_limit: bytes of Redis; a limit of 0 is none.
        secrets: seconds since a delivery was last signed with each signing secret of the settings,
            None for never; without any in the settings, of those that were used.
    """

    problems: list[Problem]
    accepting: bool
    last_delivery: float | None = None
    processing: bool = False
    processes: Mapping[str, int] = field(default_factory=dict)
    slots: int = 0
    in_flight: int = 0
    pending: int | None = None
    queued: int | None = None
    waiting: int | None = None
    dead: int | None = None
    overdue: float | None = None
    oldest: float | None = None
    waits: Mapping[str, int] = field(default_factory=dict)
    died: Mapping[str, int] = field(default_factory=dict)
    reconciled: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    memory_limit: int | None = None
    secrets: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        """Whether nobody has to look."""
        return not self.problems


def take(client: redis.Redis, settings: Settings) -> Status:
    """Look at Redis and the inbox. A Redis that cannot be asked is a problem, too."""
    try:
        found = findings.look(asking(client), settings).found
        seen = survey(client)
    except redis.RedisError as error:
        text, cure = f"Redis cannot be asked: {explain(error)}", "python -m service check"
        return Status([Problem("RedisRefuses", text, cure)], accepting=False)
    faults = [each for each in found if each.is_fault]
    problems = [*_of_redis(faults), *problems_of(seen, settings)]
    accepted = [seen.seen[each] for each in ("deliveries|new",) if each in seen.seen]
    prefix = "verified_with|"
    names = [each.name for each in settings.stripe_webhook_secret]
    used = {
        name.removeprefix(prefix): age for name, age in seen.seen.items() if name.startswith(prefix)
    }
    return Status(
        problems=problems,
        accepting=not faults and seen.pending < (settings.inbox_limit or seen.room),
        last_delivery=min(accepted, default=None),
        processing=bool(seen.alive("worker")) and seen.paused is None,
        processes={role: len(seen.alive(role)) for role in ("web", "worker", "periodic")},
        slots=seen.slots,
        in_flight=seen.in_flight,
        pending=seen.pending,
        queued=seen.queued,
        waiting=seen.waiting,
        dead=seen.dead,
        overdue=seen.overdue,
        oldest=seen.oldest,
        waits=dict(seen.waits),
        died={_in_words(*death): count for death, count in seen.deaths.most_common()},
        reconciled={account or "own": age for account, age in seen.through.items()},
        memory=seen.memory,
        memory_limit=seen.memory_limit,
        secrets={name: used.get(name) for name in names or used},
    )


def _of_redis(faults: list[findings.Finding]) -> Iterator[Problem]:
    for each in faults:
        alert = "RedisMemoryShort" if each.name == "memory" else "RedisRefuses"
        yield Problem(alert, each.text, "python -m service check")


def problems_of(seen: Survey, settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with deliveries and events, not with Redis itself."""
    yield from _of_room(seen, settings)
    yield from _of_processes(seen)
    if seen.paused:
        why, left = seen.paused
        text = f"no event is claimed for {in_time(left)}: {why}"
        alert = "StripeRefusesKey" if _failure_of(why) == "key" else "Paused"
        yield Problem(alert, text, _cure_of_pause(why))
    if seen.overdue > BEHIND and seen.alive("worker") and not seen.paused:
        busy = f"{seen.in_flight} of {seen.slots} slots are busy"
        text = f"{seen.queued} events wait, the first for {in_time(seen.overdue)}; {busy}"
        yield Problem("Behind", text, "start more workers, or look which handler is slow")
    yield from _of_deliveries(seen)
    yield from _of_secrets(seen, settings)
    yield from _of_events(seen)
    yield from _of_reconciliation(seen)
    if seen.clock_ahead:
        text = f"the clock of Redis was set back, {in_time(seen.clock_ahead)} are not made up yet"
        yield Problem("ClockSetBack", text, "see to the clock of its machine; nothing is lost")


def _of_room(seen: Survey, settings: Settings) -> Iterator[Problem]:
    limit = settings.inbox_limit or seen.room
    if seen.pending >= limit:
        text = f"{findings.INBOX_IS_FULL} {seen.pending} events are pending"
        yield Problem("InboxFull", text, "start workers; deliveries are answered 503 meanwhile")
    elif seen.pending > INBOX_NEAR * limit:
        text = f"{seen.pending} events are pending; from {limit} on deliveries are answered 503"
        yield Problem("InboxFull", text, "start workers, or look why events wait")
    used, most = seen.memory or 0, seen.memory_limit or 0
    if MEMORY_NEAR * most < used < MEMORY_LIMIT * most:  # above that the finding says so
        text = f"Redis uses {used / most:.0%} of its memory; from {MEMORY_LIMIT:.0%} on deliveries"
        text += " are answered 503. It does not drain by itself"
        yield Problem("RedisMemoryShort", text, "give Redis more memory (maxmemory)")


def _of_processes(seen: Survey) -> Iterator[Problem]:
    waits = f"{seen.pending} events wait, the oldest is {in_time(seen.oldest)} old"
    if not seen.alive("worker"):
        text = f"no worker lives: {waits if seen.pending else 'no event will be processed'}"
        yield Problem("NoWorker", text, "start one: python -m workers")
    for each, names in seen.lacking[:SHOWN]:
        where = f"the worker {each.process.pid} of {each.process.host}"
        text = f"{where} has no {', '.join(names)}, as others have: its events end without"
        cure = (
            "give all workers the same image and HANDLERS; then docs/operations.md#handlersdiffer"
        )
        yield Problem("HandlersDiffer", text, cure)
    if not seen.alive("periodic"):
        text = "no periodic process lives: retries are not woken, and nothing is reconciled"
        cure = "start one: python -m workers periodic (or workers without --no-periodic)"
        yield Problem("NoPeriodic", text, cure)


def _cure_of_pause(why: str) -> str:
    failure = _failure_of(why)
    if failure == "key":
        return "STRIPE_API_KEY is refused: put a valid one in its place, and restart the workers"
    if failure == "limited":
        return "Stripe limits our rate: lower STRIPE_API_RATE; it goes on by itself"
    if why.startswith("by "):
        return "python -m service events resume ends it at once; else it passes by itself"
    return "it goes on by itself"


def _of_deliveries(seen: Survey) -> Iterator[Problem]:
    signed = min((seen.seen.get(each, LATELY) for each in _SIGNED), default=LATELY)
    accepted = min(
        (age for name, age in seen.seen.items() if name.startswith("verified_with|")),
        default=float("inf"),
    )
    if signed < LATELY:
        text = f"deliveries are refused for their signature, the last one {in_time(signed)} ago"
        cure = "compare STRIPE_WEBHOOK_SECRET with the endpoint's secret in Stripe's Dashboard"
        yield Problem("SignatureRefused", text, f"{cure}, and look at the clock")
    elif (unsigned := seen.seen.get(_MALFORMED, LATELY)) < min(LATELY, accepted):
        text = f"requests without a usable signature, the last one {in_time(unsigned)} ago"
        yield Problem("SignatureRefused", text, "if Stripe sends them, look at the proxy between")
    if (wrong := seen.seen.get("deliveries|other_mode", LATELY)) < LATELY:
        text = f"deliveries of the other mode are not processed, the last one {in_time(wrong)} ago"
        cure = "python -m workers endpoint check; else change STRIPE_LIVEMODE and the keys"
        yield Problem("WrongMode", text, cure)
    if (ignored := seen.seen.get("deliveries|ignored", LATELY)) < LATELY:
        text = f"events of other types are delivered, the last one {in_time(ignored)} ago"
        yield Problem("WrongEvents", text, "python -m workers endpoint check")
    unknown = [age for name, age in seen.seen.items() if name.startswith("unknown_paths|POST")]
    if min(unknown, default=LATELY) < min(LATELY, accepted):
        text = f"something posts to a path that does not exist, {in_time(min(unknown))} ago"
        yield Problem("WrongPath", text, "the endpoint's URL has to end in /webhooks/stripe")


def _of_secrets(seen: Survey, settings: Settings) -> Iterator[Problem]:
    names = [each.name for each in settings.stripe_webhook_secret]
    ages = {name: seen.seen.get(f"verified_with|{name}", float("inf")) for name in names}
    if min(ages.values(), default=SECRET_IN_USE) >= SECRET_IN_USE:
        return
    for name, age in ages.items():
        if SECRET_UNUSED < age < float("inf"):  # one that was never used may be new
            text = (
                f"the signing secret {name} was last used {in_time(age)} ago, another one is in use"
            )
            cure = (
                "remove it from STRIPE_WEBHOOK_SECRET, or have the endpoint at Stripe sign with it"
            )
            yield Problem("SecretUnused", text, cure)


def _of_events(seen: Survey) -> Iterator[Problem]:
    deaths = seen.deaths.most_common()
    for (handler, cause), count in deaths[:SHOWN]:
        asked = f" --handler {handler}" if handler else ""
        if cause == NOT_LISTED:
            cure = "python -m service events causes; it lists what an older release left"
        else:
            asked += f" --reason {shlex.quote(cause)}" if cause else ""
            cure = (
                f"python -m service events list --state dead{asked}; mend it,"
                f" then: python -m service events replay --state dead{asked}"
            )
        yield Problem("DeadEvents", f"{count} dead: {_in_words(handler, cause)}", cure)
    if rest := deaths[SHOWN:]:
        count = sum(count for _, count in rest)
        text = f"{count} dead of {len(rest)} other causes"
        yield Problem("DeadEvents", text, "python -m service events causes")
    if seen.oldest > BEHIND:
        yield from _of_waits(seen)


def _in_words(handler: str, cause: str) -> str:
    return f"{handler}: {cause}" if handler else cause or "no reason is noted"


def _of_waits(seen: Survey) -> Iterator[Problem]:
    """Yield what events wait for, the most frequent of each kind."""
    kinds: dict[str, tuple[int, str]] = {}
    for why, count in seen.waits.items():
        if why != BUSY:
            alert = _alert_of_wait(why)
            kinds[alert] = max(kinds.get(alert, (0, "")), (count, why))
    if not kinds and seen.oldest > WAITS_LONG:
        why = f"{seen.waits[BUSY]}: {BUSY}" if seen.waits.get(BUSY) else "no reason is noted"
        text = f"the oldest of {seen.pending} events is {in_time(seen.oldest)} old; {why}"
        yield Problem("EventsWait", text, "python -m service events list --state pending")
    for alert, (count, why) in kinds.items():
        text = (
            f"{seen.waiting} events wait, the oldest is {in_time(seen.oldest)} old; {count}: {why}"
        )
        cause = "not shown" if _failure_of(why) in _NOT_SHOWN else alert
        yield Problem(alert, text, _CURES_OF_WAITS[cause])


def _failure_of(why: str) -> str:
    """Return the kind of Stripe's failure that a reason tells of (workers/failures.py), or ''."""
    found = _FAILURE.search(why)
    return found[1] if found else ""


def _alert_of_wait(why: str) -> str:
    failure = _failure_of(why)
    if failure in {"key", "forbidden"}:
        return "StripeRefusesKey"
    if failure and failure not in _NOT_SHOWN:
        return "StripeFails"
    if why.startswith("account paused"):
        return "Paused"
    return "HandlerFails" if ": " in why and not failure else "EventsWait"


def _of_reconciliation(seen: Survey) -> Iterator[Problem]:
    for account, last in seen.reconciled.items():
        if last.failed:
            name = account or "one's own account"
            ago = in_time(max(0.0, seen.now - last.at))
            text = f"reconciliation of {name} failed {ago} ago: {last.failed}"
            yield Problem("NotReconciled", text, last.hint or "python -m workers reconcile")
    age = seen.through.get("")
    failed = any(last.failed for last in seen.reconciled.values())
    if age is not None and age > NOT_RECONCILED and not failed:
        text = f"reconciliation last had a whole pass {in_time(age)} ago"
        yield Problem("NotReconciled", text, "python -m workers reconcile")
    if (missed := seen.seen.get("reconcile_missed", LATELY)) < LATELY:
        text = f"events that no delivery had brought were found {in_time(missed)} ago, and taken in"
        cure = (
            "python -m workers endpoint check; after a loss of Redis: python -m workers reconcile"
        )
        yield Problem("DeliveriesMissed", text, f"{cure} --deep")


def in_time(seconds: float) -> str:
    """Return a time in words: 40 s, 3 min."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def in_words(status: Status) -> str:
    """Return a status on one screen, what is wrong first."""
    lines = []
    if status.problems:
        count = len(status.problems)
        lines.append(f"NOT WELL: {count} problem{'s' if count > 1 else ''}")
        for problem in status.problems:
            lines += [f"  {problem.alert}: {problem.text}", f"      -> {problem.cure}"]
    else:
        lines.append("well")
    lines.append("")
    last = (
        "" if status.last_delivery is None else f", last event {in_time(status.last_delivery)} ago"
    )
    lines.append(f"accepting    {'yes' if status.accepting else 'NO'}{last}")
    if status.pending is None:
        return "\n".join(lines)
    living = ", ".join(f"{count} {role}" for role, count in status.processes.items())
    first, oldest = in_time(status.overdue or 0), in_time(status.oldest or 0)
    lines += [
        f"processing   {'yes' if status.processing else 'NO'}, {living};"
        f" {status.in_flight} of {status.slots} slots busy",
        f"behind       {status.pending} pending, oldest {oldest}: {status.queued} in the queue,"
        f" first for {first}; {status.waiting} wait",
    ]
    lines += [f"             {n} x {why}" for why, n in _first(status.waits)]
    lines.append(f"dead         {status.dead}")
    lines += [f"             {n} x {why}" for why, n in _first(status.died)]
    passes = ", ".join(f"{name} {in_time(age)} ago" for name, age in _first_ages(status.reconciled))
    lines.append(f"reconciled   {passes or 'not yet'}")
    if status.memory is not None:
        limit = f"{status.memory_limit >> 20} MB" if status.memory_limit else "no limit"
        lines.append(f"memory       {status.memory >> 20} MB of {limit}")
    ages = {name: age for name, age in status.secrets.items() if age is not None}
    used = [f"{name} {in_time(age)} ago" for name, age in _first_ages(ages)]
    used += [f"{name} never" for name, age in status.secrets.items() if age is None][:SHOWN]
    lines.append(f"secrets      {', '.join(used) or 'none was used yet'}")
    return "\n".join(lines)


def _first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda each: -each[1])[:SHOWN]


def _first_ages(ages: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(ages.items(), key=lambda each: -each[1])[:3]


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="An object instead of a screen.")
def command(as_json: bool) -> None:
    """Say in one screen whether events are accepted and processed, and if not, why.

    What is wrong comes first, under the name of its alert, with what to do: docs/operations.md has
    a section for each. Exit code: 0 all is well, 1 something is wrong, 69 Redis cannot be asked,
    78 the settings are not complete.
    """
    try:
        settings = Settings.load("tool")
    except SettingsError as error:
        click.echo(error, err=True)
        sys.exit(os.EX_CONFIG)
    with connection.connect(settings) as client:
        status = take(client, settings)
    click.echo(json.dumps(asdict(status), indent=2) if as_json else in_words(status))
    if status.pending is None:
        sys.exit(os.EX_UNAVAILABLE)
    sys.exit(0 if status.is_well else 1)

"""The page `/metrics`: what an instance counted itself, what all workers counted, what is now.

Counters begin at 0 with the instance and never go back, whatever is done to Redis: each look adds
what the counts of workers (service/processes.py) have grown by since the last one. So a Redis that
is emptied, or restored from a backup, makes nothing jump; and without Redis the page still has the
counts of this instance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from service.findings import Finding, faults
from service.ledger import Ledger
from service.metrics import HANDLER, SECRET, TABLE, Counted, Labels, Metrics, field_of
from service.processes import Seen
from service.settings import Settings
from service.survey import KINDS, Survey, kind_of, survey

if TYPE_CHECKING:
    from prometheus_client import Metric

_PREFIX = "identity_webhooks_"

NEWCOMER = 60.0
"""Seconds: if a process not seen before reported within them, all its counts are new. If its last
report is older, it came back with a backup of Redis, and its counts are old."""

KNOWN = 500
"""Processes whose counts are remembered, the last ones seen."""

GAUGES: dict[str, tuple[str, Labels]] = {
    "redis_up": ("Whether Redis answers this instance.", ()),
    "accepting": ("Whether this instance would accept a delivery, by a test event.", ()),
    "pending_events": ("Events accepted and not settled.", ()),
    "queued_jobs": ("Wake-ups that wait in the queue.", ()),
    "in_flight_events": ("Events that workers have in hand.", ()),
    "waiting_events": ("Events that wait for a retry, for Stripe or for their session.", ()),
    "dead_events": (
        "Events that died and wait for a person, by what they died of; once for each handler that"
        " died.",
        ("reason",),
    ),
    "overdue_seconds": (
        "How long the event has waited for a worker that waits longest for one.",
        (),
    ),
    "oldest_event_seconds": ("Age of the oldest event that is not settled.", ()),
    "processes": ("Processes that live, by their own sign of life.", ("role",)),
    "worker_slots": ("Events that the living workers work on at once, at most.", ()),
    "workers_lacking_handlers": (
        "Living workers without a handler that another one runs, once both are ten minutes old.",
        (),
    ),
    "paused": ("1 while no event is claimed, and why.", ("reason",)),
    "reconciled_seconds": (
        "Seconds since reconciliation last had a whole pass, by account (own: one's own).",
        ("account",),
    ),
    "reconcile_failed": (
        "1 while the last pass of reconciliation for an account failed.",
        ("account",),
    ),
    "reconcile_found": ("Events that the last pass found missing, by account.", ("account",)),
    "redis_memory_bytes": ("Memory that Redis uses.", ()),
    "redis_memory_limit_bytes": ("Memory that Redis may use; 0: no limit.", ()),
    "inbox_limit": ("Pending events above which none is accepted (INBOX_LIMIT).", ()),
    "secret_unused_seconds": (
        "Seconds since a delivery was last signed with this secret; +Inf: never yet.",
        (SECRET,),
    ),
    "clock_ahead_seconds": ("How far Redis' clock was set back, not made up yet.", ()),
}
"""What can be read off the inbox now: name, sentence, labels."""


class Page:
    """The page of one instance. Made before the fork, it is the same whichever process answers."""

    def __init__(
        self,
        client: redis.Redis,
        metrics: Metrics,
        own: Ledger,
        *,
        settings: Settings,
        look: Callable[[], list[Finding]],
    ) -> None:
        """Take the ledger in which the instance counts, and how to look at Redis."""
        self._redis, self._metrics = client, metrics
        self._own, self._followed = own, Ledger()
        self._secrets = tuple(each.name for each in settings.stripe_webhook_secret)
        self._limit, self._look = settings.inbox_limit, look

    def follow(self) -> Survey:
        """Look at Redis, and add up what workers have counted since the last look.

        The first look is the beginning: what they had counted before is not this instance's.

        May raise `redis.RedisError`.
        """
        found = survey(self._redis)
        with self._followed.change() as entries:
            is_first = not entries
            totals = entries.setdefault("totals", {})
            known = entries.setdefault("known", {})
            handlers = {name for each in found.running for name in each.process.handlers}
            entries["handlers"] = sorted(handlers.union(entries.get("handlers", ())))
            for each in found.running:
                if each.process.role != "web":
                    _add_up(totals, known, each, is_first=is_first)
            # Processes that are gone are remembered, too: after Redis was emptied or restored,
            # living ones report again, and dead ones come back with the backup.
            for id_ in list(known)[:-KNOWN]:
                del known[id_]
        return found

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        self._metrics.flush()
        found, accepting = None, False
        # Else it is told what the instance counted itself, and that Redis does not answer.
        with suppress(redis.RedisError):
            found = self.follow()
            accepting = found.pending < (self._limit or found.room) and not faults(self._look())
        followed = self._followed.read()
        values = {HANDLER: followed.get("handlers", []), SECRET: self._secrets}
        counts = {"web": self._own.read(), "all": followed.get("totals", {})}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            _Families([*_counted(counts, values), *self._gauges(found, accepting=accepting)])
        )
        return generate_latest(registry)

    def _gauges(self, found: Survey | None, *, accepting: bool) -> Iterator[Metric]:
        values = _values(found, self._secrets) if found else {}
        values["redis_up"] = {(): int(found is not None)}
        if limit := self._limit or (found and found.room):
            values["inbox_limit"] = {(): limit}
        values["accepting"] = {(): int(accepting)}
        for name, (sentence, labels) in GAUGES.items():
            family = GaugeMetricFamily(_PREFIX + name, sentence, labels=labels)
            for series, value in values.get(name, {}).items():
                family.add_metric(series, value)
            yield family


class _Families:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _add_up(totals: dict[str, float], known: dict[str, Any], each: Seen, *, is_first: bool) -> None:
    # The one seen last is the last to be forgotten.
    counts, before = each.process.counts, known.pop(each.id, None)
    if before is None:
        before = counts if is_first or each.age > NEWCOMER else {}
    for name, n in counts.items():
        # A count below the one before is an older one, from a backup of Redis.
        totals[name] = totals.get(name, 0) + max(0, n - before.get(name, 0))
    known[each.id] = {name: max(n, before.get(name, 0)) for name, n in counts.items()}


def _counted(
    counts: dict[str, dict[str, float]], values: dict[str, Iterable[str]]
) -> Iterator[Metric]:
    for name, counted in TABLE.items():
        full = _PREFIX + ("web_" if counted.of == "web" else "") + name
        here = {field: n for field, n in counts[counted.of].items() if field.split("|")[0] == name}
        if counted.buckets:
            yield _histogram(full, name, counted, here, values)
        else:
            family = CounterMetricFamily(full, _sentence(counted), labels=counted.labels)
            known = dict.fromkeys(counted.series(values))
            for field in sorted(here):
                known.setdefault(tuple(field.split("|")[1:]))
            for series in known:
                if len(series) == len(counted.labels):
                    family.add_metric(series, here.get(field_of(name, *series), 0))
            yield family


def _histogram(
    full: str,
    name: str,
    counted: Counted,
    counts: dict[str, float],
    values: dict[str, Iterable[str]],
) -> Metric:
    family = HistogramMetricFamily(full, _sentence(counted), labels=counted.labels)
    known = dict.fromkeys(counted.series(values))
    for field in sorted(counts):
        known.setdefault(tuple(field.split("|")[1:-1]))
    for series in known:
        if len(series) != len(counted.labels):
            continue
        at, total, buckets = field_of(name, *series), 0.0, []
        for bound in [*(f"{b:g}" for b in counted.buckets), "+Inf"]:
            total += counts.get(f"{at}|{bound}", 0)
            buckets.append((bound, total))
        family.add_metric(series, buckets, sum_value=counts.get(f"{at}|sum", 0))
    return family


def _sentence(counted: Counted) -> str:
    same = " The same from every web process: of several take the highest."
    return counted.sentence + (same if counted.of == "all" else "")


def _values(found: Survey, secrets: Labels) -> dict[str, dict[Labels, float]]:
    reason = found.paused[0] if found.paused else ""
    died = Counter[str]()
    for (_, cause), count in found.deaths.items():
        died[kind_of(cause)] += count
    return {
        "pending_events": {(): found.pending},
        "queued_jobs": {(): found.queued},
        "in_flight_events": {(): found.in_flight},
        "waiting_events": {(): found.waiting},
        "dead_events": {(kind,): died[kind] for kind in KINDS},
        "overdue_seconds": {(): found.overdue},
        "oldest_event_seconds": {(): found.oldest},
        "processes": {(role,): len(found.alive(role)) for role in ("web", "worker", "periodic")},
        "worker_slots": {(): found.slots},
        "workers_lacking_handlers": {(): len(found.lacking)},
        "paused": {(reason,): int(bool(found.paused))},
        "reconciled_seconds": {(name or "own",): age for name, age in found.through.items()},
        "reconcile_failed": {
            (name or "own",): int(bool(last.failed)) for name, last in found.reconciled.items()
        },
        "reconcile_found": {
            (name or "own",): last.missed for name, last in found.reconciled.items()
        },
        "redis_memory_bytes": {(): found.memory} if found.memory is not None else {},
        "redis_memory_limit_bytes": (
            {(): found.memory_limit} if found.memory_limit is not None else {}
        ),
        "secret_unused_seconds": {
            (name,): found.seen.get(field_of("verified_with", name), float("inf"))
            for name in secrets
        },
        "clock_ahead_seconds": {(): found.clock_ahead},
    }

"""The table of metrics, and the counts of one process.

A process counts in memory, from its start on. Once a second it writes all its counts to Redis, in
one field of one hash (service/processes.py): a repeated report changes nothing, a Redis that was
away or restored changes nothing, and an event costs no command. What a web process counts is
its instance's own and does not need Redis at all (service/ledger.py). The inbox, not the metrics,
is the record.
"""

from __future__ import annotations

import atexit
import os
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import redis

from service import logs
from service.inbox import Inbox
from service.ledger import Ledger
from service.processes import BEAT, Process, Role

PERIOD = 1.0
"""Seconds between two reports of a process that has counted something."""

Of = Literal["web", "all"]
Labels = tuple[str, ...]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
_DELIVERED = (
    *("new", "pending", "done", "dead", "reopened", "ignored", "other_mode"),
    *("full", "memory_short", "redis_failed"),
)
_REFUSED = (
    # the signature and what is signed
    *("malformed_header", "signature_expired", "signature_mismatch", "malformed_event"),
    # the message, before that
    *("body_not_handed_on", "body_too_large", "body_unreadable"),
    *("bad_target", "chunks_in_http_1_0", "data_after_close", "head_too_large"),
    *("host_missing_or_repeated", "http_version", "malformed_request", "request_incomplete"),
    *("request_too_large", "request_too_slow", "too_many_chunks", "too_many_headers"),
    *("too_many_pipelined", "unknown_expectation", "unknown_method", "unknown_transfer_coding"),
    "upgrade_with_body",
)
_FETCHED = (
    *("ok", "unreachable", "broken", "limited", "locked", "key", "forbidden", "account"),
    *("missing", "invalid", "stale"),
)
_STATUSES = ("done", "retry", "waiting", "dead", "superseded", "skipped", "stopped", "lost")
_OUTCOMES = (
    *("created", "processing", "needs_input", "verified", "canceled", "redacted"),
    *("superseded", "twin", "no_handler"),
)
_TELLING = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_LONG = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 86400)

HANDLER, SECRET = "handler", "secret"
"""Labels whose values are known to a process, not to this table."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter or, with buckets, a histogram.

    Attributes:
        of: `web`: of one instance of the web process, so instances are summed. `all`: of all
            workers together and the same at every instance, so take the highest.
        sentence: what is counted, for people.
        labels: the names of its labels.
        known: the values of each label that are known beforehand; their series begin at 0.
        buckets: the upper bounds of a histogram, in seconds.
    """

    of: Of
    sentence: str
    labels: Labels = ()
    known: tuple[tuple[str, ...], ...] = ()
    buckets: tuple[float, ...] = ()

    def series(self, values: dict[str, Iterable[str]]) -> Iterator[Labels]:
        """Yield the label values of all series known beforehand.

        Args:
            values: what is known of `HANDLER` and `SECRET`.
        """
        known = dict(zip(self.labels, self.known, strict=False))
        return product(*(known.get(each) or values.get(each, ()) for each in self.labels))


TABLE: dict[str, Counted] = {
    "deliveries": Counted(
        "web", "Deliveries by how they were answered.", ("answer",), (_DELIVERED,)
    ),
    "refusals": Counted("web", "Deliveries and requests refused.", ("reason",), (_REFUSED,)),
    "unknown_paths": Counted(
        "web", "Requests to paths that do not exist.", ("method",), (_METHODS,)
    ),
    "verified_with": Counted("web", "Deliveries by the signing secret that fitted.", (SECRET,)),
    "accept_seconds": Counted(
        "web", "Seconds from a whole delivery to its answer by Redis.", buckets=_TELLING
    ),
    "claims": Counted(
        "all",
        "Wake-ups by the result of claiming the event.",
        ("answer",),
        (("claimed", "quarantined", "gone", "done", "dead", "leased", "early", "busy", "held"),),
    ),
    "fetches": Counted(
        "all", "Requests to Stripe for an event, by result.", ("result",), (_FETCHED,)
    ),
    "handler_runs": Counted(
        "all",
        "Handler runs by result: done, retry (failed, or its own process did not start), waiting"
        " (not run: Stripe did not answer, or its own process is busy), dead, superseded, skipped,"
        " stopped (failed while the worker stopped, and run again), lost (run, and the claim passed"
        " to another worker).",
        (HANDLER, "status"),
        ((), _STATUSES),
    ),
    "settled": Counted(
        "all",
        "Events settled, by final state and outcome.",
        ("state", "outcome"),
        (("done", "dead"), (*_OUTCOMES, "quarantined", "")),
    ),
    "redriven": Counted("all", "Events woken again by the sweep."),
    "reconcile_missed": Counted("all", "Events that reconciliation found missing and accepted."),
    "wait_seconds": Counted(
        "all", "Seconds from accepted (or put back) to the first claim.", buckets=_LONG
    ),
    "start_seconds": Counted(
        "all", "Seconds from a claim to the start of its first handler.", buckets=_TELLING
    ),
    "stripe_seconds": Counted(
        "all",
        "Calls of Stripe's API, by operation and status (none: no answer).",
        ("operation", "status"),
        ((), ()),
        buckets=_TELLING,
    ),
    "handler_seconds": Counted(
        "all",
        "Seconds that runs of a handler took, however they ended.",
        (HANDLER,),
        buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
    ),
    "settle_seconds": Counted(
        "all", "Seconds from accepted (or put back) to settled, by the inbox' clock.", buckets=_LONG
    ),
}
"""Everything that is counted, by name without `identity_webhooks_` (and `web_`)."""

_REMEMBERED = ("deliveries", "refusals", "unknown_paths", "verified_with", "reconcile_missed")
"""Of these it is kept when each series was last counted."""

log = logs.get(__name__)


def field_of(name: str, *labels: str) -> str:
    """Return the name of a series among the counts: `name|label value|...`."""
    return "|".join([name, *(label.replace("|", "_") for label in labels)])


@dataclass
class Workload:
    """What a process reports beside its counts."""

    slots: int = 0
    handlers: tuple[str, ...] = ()
    busy: Callable[[], int] = field(default=lambda: 0)


class Metrics:
    """Counts what happens in this process, and says now and then that it lives."""

    def __init__(
        self, client: redis.Redis, role: Role = "worker", ledger: Ledger | None = None
    ) -> None:
        """With a `ledger`, the counts are added up there and not sent to Redis."""
        self._inbox, self._role, self._ledger = Inbox(client), role, ledger
        self.workload = Workload()
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        """Begin with a new id and no counts: at the start, and after a fork."""
        self._pid, self._id = os.getpid(), secrets.token_hex(6)
        self._started = round(time.time() * 1000)
        self._counts: dict[str, float] = {}
        self._in_ledger: dict[str, float] = {}
        self._remembered: set[str] = set()
        self._changed, self._reported = False, 0.0
        self._reports = self._beats = False
        self._ended = threading.Event()

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add to a counter of the table. Raises KeyError or ValueError when it is not in there."""
        counted = TABLE[name]
        if len(counted.labels) != len(labels) or counted.buckets:
            raise ValueError(f"{name} has the labels {counted.labels}")
        series = field_of(name, *labels)
        self._add({series: by}, series if by and name in _REMEMBERED else None)

    def observe(self, name: str, value: float, *labels: str, times: int = 1) -> None:
        """Add a value to a histogram of the table, as `count`, so many times."""
        counted = TABLE[name]
        if len(counted.labels) != len(labels) or not counted.buckets:
            raise ValueError(f"{name} has the labels {counted.labels}")
        place = bisect_left(counted.buckets, value)
        bound = f"{counted.buckets[place]:g}" if place < len(counted.buckets) else "+Inf"
        series = field_of(name, *labels)
        self._add({f"{series}|{bound}": times, f"{series}|sum": times * value}, None)

    def counts(self) -> dict[str, float]:
        """Return what this process has counted."""
        with self._lock:
            return dict(self._counts)

    def start(self) -> None:
        """Report from now on, also while nothing is counted: the process lives."""
        with self._lock:
            self._start(beats=True)

    def flush(self) -> None:
        """Report now; if that fails, the next report has the counts."""
        with self._reporting:
            self._report()

    def end(self) -> None:
        """Report that this process ends. No report comes after it, which would say it lives."""
        self._ended.set()
        with self._reporting:
            self._report()

    def _report(self) -> None:
        with self._lock:
            counts, remembered = dict(self._counts), self._remembered
            self._remembered, self._changed = set(), False
        self._enter(counts)
        process = Process(
            role=self._role,
            pid=self._pid,
            started=self._started,
            slots=self.workload.slots,
            busy=self.workload.busy(),
            handlers=self.workload.handlers,
            ended=self._ended.is_set(),
            counts={} if self._ledger else counts,
        )
        try:
            with self._inbox.pipeline() as pipe:
                reported = pipe.report(self._id, process.encoded(), sorted(remembered))
            reported.result()
            self._reported = time.monotonic()
        except redis.RedisError:
            with self._lock:
                self._remembered |= remembered
                self._changed = True

    def _enter(self, counts: dict[str, float]) -> None:
        """Add to the instance's ledger what was counted since the last time."""
        if self._ledger is None:
            return
        grown = {name: n - self._in_ledger.get(name, 0) for name, n in counts.items()}
        if any(grown.values()):
            with self._ledger.change() as entries:
                for name, by in grown.items():
                    entries[name] = entries.get(name, 0) + by
            self._in_ledger = counts

    def _add(self, counts: dict[str, float], remembered: str | None) -> None:
        with self._lock:
            self._start()
            self._changed = True
            for name, by in counts.items():
                self._counts[name] = self._counts.get(name, 0) + by
            if remembered:
                self._remembered.add(remembered)

    def _start(self, *, beats: bool = False) -> None:
        # Threads do not survive a fork, and counts of before it are the parent's.
        if self._pid != os.getpid():
            self._begin()
        self._beats = self._beats or beats
        if not self._reports:
            self._reports = True
            threading.Thread(target=self._report_for_ever, name="metrics", daemon=True).start()
            atexit.register(self._say_goodbye, self._pid)

    def _say_goodbye(self, pid: int) -> None:
        if pid == os.getpid():
            self.end()

    def _report_for_ever(self) -> None:
        logs.is_ours()
        ended = self._ended
        while not ended.is_set():
            # The first report is sent at once, so that the process is soon seen to be alive.
            if self._changed or (self._beats and time.monotonic() >= self._reported + BEAT):
                self.flush()
            ended.wait(PERIOD)

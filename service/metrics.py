"""The table of metrics. Counters live in Redis, so that every process reports the same.

A process counts in memory and adds its counts to one Redis hash every second, off the request's
path: Redis being away delays the counts and loses nothing else. A kill -9 loses up to a second of
them; the inbox, not the metrics, is the record.
"""

from __future__ import annotations

import atexit
import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from service import logs
from service.inbox import keys

if TYPE_CHECKING:
    from prometheus_client import Metric

    from service.inbox import Inbox

PERIOD = 1.0
"""Seconds between two additions to Redis."""

# In the hash: `name|label value|...` -> count, or `name|le` and `name|sum` for histograms.
COUNTERS: dict[str, tuple[tuple[str, ...], str]] = {
    "deliveries": (("answer",), "Deliveries by answer: new, pending, done, dead, reopened, ..."),
    "refusals": (("reason",), "Deliveries refused: signature, header, body, size."),
    "unknown_paths": (("method",), "Requests to paths that do not exist, by method."),
    "verified_with": (("secret",), "Deliveries by the signing secret that fitted."),
    "claims": (("answer",), "Wake-ups by what claiming the event answered."),
    "fetches": (("result",), "Fetches from Stripe by result: ok, or the kind of failure."),
    "handler_runs": (
        ("handler", "status"),
        "Handlers by how they fared: done, retry (failed), waiting (for Stripe: not run), dead,"
        " superseded, skipped, lost (run, and the claim passed to another worker).",
    ),
    "settled": (("state", "outcome"), "Events settled, by final state and outcome."),
    "redriven": ((), "Events woken again by the sweep."),
}
HISTOGRAMS: dict[str, tuple[tuple[float, ...], str]] = {
    "settle_seconds": (
        (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 86400),
        "Seconds from accepted to settled, by the clock of Redis.",
    ),
}
_PREFIX = "identity_webhooks_"
log = logs.get(__name__)


class Metrics:
    """Counts what happens in this process and adds it up in Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._flusher_pid = 0

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add to a counter of the table. Raises KeyError or ValueError when it is not in there."""
        if len(COUNTERS[name][0]) != len(labels):
            raise ValueError(f"{name} has the labels {COUNTERS[name][0]}")
        self._add("|".join([name, *(label.replace("|", "_") for label in labels)]), by)

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram of the table."""
        buckets = HISTOGRAMS[name][0]
        place = bisect_left(buckets, value)
        bound = f"{buckets[place]:g}" if place < len(buckets) else "+Inf"
        self._add(f"{name}|{bound}", 1)
        self._add(f"{name}|sum", round(value * 1000))

    def flush(self) -> None:
        """Add everything counted so far to Redis now; on failure it is kept for the next time."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for field, by in counts.items():
                    pipe.hincrby(keys.METRICS, field, by)
                pipe.execute()
        except redis.RedisError:
            with self._lock:
                self._counts.update(counts)

    def _add(self, field: str, by: int) -> None:
        with self._lock:
            self._counts[field] += by
            # Threads do not survive a fork: each process starts its own at its first count.
            start = self._flusher_pid != os.getpid()
            self._flusher_pid = os.getpid()
        if start:
            threading.Thread(target=self._flush_for_ever, name="metrics", daemon=True).start()
            atexit.register(self.flush)

    def _flush_for_ever(self) -> None:
        logs.is_ours()
        pause = threading.Event()
        while True:
            pause.wait(PERIOD)
            self.flush()


def render(client: redis.Redis, inbox: Inbox) -> bytes:
    """Return all metrics in the Prometheus text format.

    Raises:
        redis.RedisError: when Redis cannot be asked.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(client, inbox))
    return generate_latest(registry)


class _Collector:
    def __init__(self, client: redis.Redis, inbox: Inbox) -> None:
        self._redis = client
        self._inbox = inbox

    def collect(self) -> Iterator[Metric]:
        raw = {k.decode(): int(v) for k, v in self._redis.hgetall(keys.METRICS).items()}  # type: ignore[union-attr]
        for name, (labels, sentence) in COUNTERS.items():
            family = CounterMetricFamily(_PREFIX + name, sentence, labels=labels)
            for field, value in sorted(raw.items()):
                counter, *values = field.split("|")
                if counter == name and len(values) == len(labels):
                    family.add_metric(values, value)
            yield family
        for name, (bounds, sentence) in HISTOGRAMS.items():
            total, buckets = 0, []
            for bound in [*(f"{b:g}" for b in bounds), "+Inf"]:
                total += raw.get(f"{name}|{bound}", 0)
                buckets.append((bound, total))
            histogram = HistogramMetricFamily(_PREFIX + name, sentence)
            histogram.add_metric([], buckets, sum_value=raw.get(f"{name}|sum", 0) / 1000)
            yield histogram
        for name, sentence, gauge in self._inbox.gauges():
            yield GaugeMetricFamily(_PREFIX + name, sentence, value=gauge)

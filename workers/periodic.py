"""The periodic process: wake what is past due, ask Stripe what was missed.

Any number of them may run: each event is moved by one of them, each pass made by one.
"""

from __future__ import annotations

import os
import threading
import time

import redis

from service import connection, extras, logs, process, processes
from service.metrics import Metrics
from service.settings import Settings
from workers import beat
from workers.reconcile import Reconciler, reconcile_for_ever
from workers.stop import Stop, stop_on_signals, wait_for_redis

SWEEP_PERIOD = 0.5
"""Seconds between two sweeps. Sweeping an inbox with nothing due costs Redis about 20 us."""

log = logs.get(__name__)


def run(settings: Settings) -> int:
    """Run the periodic process until SIGTERM or SIGINT; the exit code of the process."""
    process.keep_memory_private()
    stop = stop_on_signals()
    if wait_for_redis(settings, stop):
        sweep_until(stop, settings)
    beat.end()
    return 0


def sweep_until(stop: Stop, settings: Settings) -> None:
    """Sweep and reconcile until asked to stop."""
    client = connection.connect(settings, connection.PERIODIC)
    inbox = connection.inbox(settings, client)
    metrics = Metrics(client, "periodic")
    metrics.start()
    metrics.flush()
    extras.start(settings)
    # A pass takes minutes when much was missed; the sweep must not wait for it.
    threading.Thread(
        target=reconcile_for_ever,
        args=(Reconciler.from_settings(settings, inbox, metrics), inbox, stop, metrics),
        name="reconcile",
        daemon=True,
    ).start()
    log.info("periodic_started", pid=os.getpid())
    if settings.given_up:
        log.warning("retention_short", hint=settings.given_up)
    forget_at = 0.0
    while not stop.requested:
        if stop.parent is None:  # else a supervisor beats
            beat.beat()
        try:
            swept = inbox.sweep()
            if time.monotonic() >= forget_at:
                processes.forget(client, inbox.now() * 1000)
                forget_at = time.monotonic() + processes.FORGOTTEN / 10
        except redis.RedisError:
            log.exception("sweep_failed")
            time.sleep(1)
            continue
        if swept.woken or swept.stale:
            metrics.count("redriven", by=swept.woken)
            log.info("swept", woken=swept.woken, postponed=swept.postponed, stale=swept.stale)
        time.sleep(SWEEP_PERIOD)
    metrics.end()
    log.info("periodic_stopped", pid=os.getpid())

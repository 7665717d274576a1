"""How a process of the workers is asked to stop, and what it waits for before it starts."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import redis

from service import connection, findings, logs
from service.inbox import asking
from service.redis_errors import UnsafeRedis, explain
from service.settings import Settings
from workers import beat

GRACE = 25.0
"""Seconds in-flight work has after SIGTERM. Heroku and `docker stop`'s usual setting kill after 30
(https://devcenter.heroku.com/articles/dyno-shutdown)."""

ARRIVES_WITHIN = 0.1
"""Seconds until a signal that is sent to all processes has reached the last of them."""

log = logs.get(__name__)


class Stop:
    """Whether, and since when, this process is asked to stop.

    A plain attribute: a signal handler may set it at any instruction, and must not take a lock.
    """

    parent: int | None = None
    """Process id of the parent. The process stops when this is no longer its parent."""

    def __init__(self) -> None:
        self.requested_at: float | None = None

    def request(self) -> None:
        """Ask the process to stop: it claims nothing more, and what runs may finish."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether `request` was called, or the parent is gone."""
        if self.parent is not None and os.getppid() != self.parent:
            self.request()
        return self.requested_at is not None

    def is_coming(self) -> bool:
        """Whether a stop is requested now or within 0.1 s: a signal may reach this process last."""
        until = time.monotonic() + ARRIVES_WITHIN
        while not self.requested and time.monotonic() < until:
            time.sleep(0.01)
        return self.requested

    @property
    def overdue(self) -> bool:
        """Whether the grace period is over."""
        since = self.requested_at if self.requested else None
        return since is not None and time.monotonic() > since + GRACE


def stop_on_signals() -> Stop:
    """Return a `Stop` that SIGTERM and SIGINT request."""
    stop = Stop()

    def request(_signal: int, _frame: FrameType | None) -> None:
        stop.request()

    signal.signal(signal.SIGTERM, request)
    signal.signal(signal.SIGINT, request)
    return stop


def wait_for_redis(settings: Settings, stop: Stop) -> bool:
    """Wait until Redis answers, and refuse one that is not fit; False when asked to stop meanwhile.

    Raises:
        UnsafeRedis: it may lose events, or lacks what workers need.
    """
    delay = 0.5
    while not stop.requested:
        beat.beat()
        try:
            with connection.connect(settings) as client:
                ask = asking(client)
                found = findings.look(ask, settings, for_workers=True).found
                findings.require(found)
        except UnsafeRedis:
            raise
        except redis.RedisError as error:
            log.warning("redis_unreachable", **explain(error).fields(), delay_s=delay)
            time.sleep(delay)
            delay = min(5.0, delay * 2)
        else:
            if said := findings.warnings(found, settings):
                log.warning("redis_vouched_for", faults=said)
            return True
    return False

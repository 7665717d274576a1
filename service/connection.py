"""The connections to Redis.

docs/reliability.md states the number per process, which is a limit: small plans allow 20 to 40.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection
from redis.exceptions import MaxConnectionsError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from service import redis_url
from service.inbox import Inbox
from service.inbox.keys import LEASE
from service.settings import Settings

TIMEOUT = 0.9
"""Seconds to wait for a connection or a reply. With the one retry below, a Redis that is frozen
costs the receiver less than 2 s; redis-py's own defaults cost 59.6 s (measured)."""


WAIT = 0.9
"""Seconds to wait for a free connection of the pool. A round trip takes a millisecond, so a longer
wait means that Redis is in trouble."""

WORKER_WAIT = LEASE / 2
"""The same in a worker, half of a lease. On a busy machine its many threads wait longer for each
other, and a handler whose result is not written runs again."""

KEPT_IDLE = 20.0
"""Seconds after which a connection that nobody used is closed, when another comes back."""

WEB, PERIODIC, TOOL = 3, 2, 2
"""Connections of a web process for its pages and counters, of a periodic one (the sweep and
reconciliation), and of a command."""

LINK = 1
"""Connections of a web process for deliveries (service/server/redis_link.py)."""

RQ = 1
"""Connections of RQ's loop in a worker, on which it waits for wake-ups."""


def worker_connections(concurrency: int) -> int:
    """Return the connections of a worker that works on so many events at once, beside RQ's.

    A thread has one for about a millisecond of an event, and the heartbeat now and then.
    """
    return 1 + math.ceil(concurrency / 10)


def workers_that_fit(limit: int, web_processes: int, concurrency: int) -> int:
    """Return how many workers may run on a Redis that takes so many connections, beside one web
    service, a periodic process (`--no-periodic` for the workers) and two commands."""
    others = web_processes * (WEB + LINK) + PERIODIC + 2 * TOOL
    return max(0, (limit - others) // (RQ + worker_connections(concurrency)))


class Pool(redis.ConnectionPool):
    """Connections of a process, up to `max_connections`, for any number of threads.

    redis-py's own pools cost more than a round trip (measured on 8.1): they look whether a
    connection is still good, which one retry makes needless, and record unused metrics.

    Attributes:
        wait: seconds to wait for one that gets free.
    """

    wait = WAIT

    def reset(self) -> None:
        """Drop all connections: at the start, and after a fork."""
        super().reset()
        self._turns = threading.Semaphore(self.max_connections)
        # When it came back, and the connection. The last one used is the next, so that those there
        # are too many of stay at the front. `pop` and `append` of a list need no lock.
        self._idle: list[tuple[float, AbstractConnection]] = []

    def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:  # type: ignore[override]
        """Return a connection, which may have to connect first.

        Raises:
            redis.exceptions.MaxConnectionsError: none got free within `wait` seconds.
        """
        self._checkpid()
        if not self._turns.acquire(timeout=self.wait):
            raise MaxConnectionsError(
                f"none of this process's {self.max_connections} connections to Redis got free"
                f" within {self.wait:g} s: is Redis slow, or far away?"
            )
        with suppress(IndexError):
            return self._idle.pop()[1]
        try:
            connection: AbstractConnection = self.connection_class(**self.connection_kwargs)
        except BaseException:
            self._turns.release()
            raise
        return connection

    def release(self, connection: AbstractConnection) -> None:  # type: ignore[override]
        """Give a connection back, and close those that nobody used for long."""
        self._checkpid()
        if connection.pid != self.pid:
            return  # of before a fork
        now = time.monotonic()
        self._idle.append((now, connection))
        self._turns.release()
        with suppress(IndexError):
            while self._idle[0][0] < now - KEPT_IDLE:
                self._idle.pop(0)[1].disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close those that nobody uses."""
        self._checkpid()
        with suppress(IndexError):
            while True:
                self._idle.pop()[1].disconnect()


def connect(
    settings: Settings, connections: int = TOOL, *, wait: float = WAIT, **options: Any
) -> redis.Redis:
    """Return a client with explicit timeouts and one retry, for the Redis of the settings.

    It has so many `connections` at most. Whoever needs one more waits for `wait` seconds, and gets
    a `MaxConnectionsError`, which is a `redis.RedisError`, when none gets free.
    One retry, since a pooled connection may be stale; every script of the inbox may be asked twice.
    """
    there = redis_url.parse(settings.redis_url.get_secret_value())
    if there["connection_class"] is SSLConnection and not settings.redis_tls_verify:
        there |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    pool = Pool(
        max_connections=connections,
        **{
            **there,
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            "retry": Retry(NoBackoff(), 1),
            # No longer the primary. Reconnect: the name may resolve to another machine now.
            "retry_on_error": [redis.ReadOnlyError],
            "health_check_interval": 0,
            "driver_info": None,  # CLIENT SETINFO, which Redis 7.0 and its users do not know
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            **options,
        },
    )
    pool.wait = wait
    return redis.Redis.from_pool(pool)


def inbox(settings: Settings, client: redis.Redis, *, reopen_dead: bool = False) -> Inbox:
    """Return the inbox as the settings have it, for any process: its limit, rate and retention.

    `reopen_dead`: whether an event that is accepted again comes back to life; for deliveries alone,
    as reconciliation accepts all that Stripe lists.
    """
    return Inbox(
        client,
        limit=settings.inbox_limit,
        reopen_dead=reopen_dead,
        api_rate=settings.api_rate,
        keep=settings.keep,
    )

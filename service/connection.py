"""The connection to Redis, and whether that Redis keeps what it is given."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.settings import Settings

TIMEOUT = 0.9
"""Seconds to wait for a connection or a reply. With the one retry below, a Redis that is frozen
costs the receiver less than 2 s; redis-py's own defaults cost 59.6 s (measured)."""


class UnsafeRedis(Exception):
    """This Redis may lose accepted events. The text says what to change."""


def connect(settings: Settings, **options: Any) -> redis.Redis:
    """Return a client with explicit timeouts and one retry, for the Redis of the settings.

    One retry, since a pooled connection may be stale; every script of the inbox may be asked twice.
    """
    url = settings.redis_url.get_secret_value()
    if url.startswith("rediss://") and not settings.redis_tls_verify:
        options = {"ssl_cert_reqs": "none", "ssl_check_hostname": False, **options}
    return redis.Redis.from_url(
        url,
        **{
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            "retry": Retry(NoBackoff(), 1),
            # A primary no longer: connect anew, its name may lead to another machine now.
            "retry_on_error": [redis.ReadOnlyError],
            "health_check_interval": 0,
            "driver_info": None,  # CLIENT SETINFO, which Redis 7.0 and its users do not know
            **options,
        },
    )


def loss_faults(client: redis.Redis) -> list[str]:
    """Return every way in which this server may lose an accepted event; empty when it keeps them.

    Reads INFO, since managed servers often refuse CONFIG.

    Raises:
        redis.RedisError: when the server cannot be asked.
    """
    info: dict[str, Any] = client.info()
    faults = []
    if not info.get("aof_enabled"):
        faults.append(
            "Redis writes no append-only file, so a restart loses accepted events:"
            " set `appendonly yes` (deploy/redis.conf), or choose a plan that persists"
        )
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        faults.append(
            f"Redis evicts keys when it is full (maxmemory-policy {info['maxmemory_policy']}),"
            " accepted events among them: set `maxmemory-policy noeviction`"
        )
    if info.get("role") not in {None, "master"}:
        faults.append("this Redis is a read-only replica: give REDIS_URL the primary's address")
    return faults


def require_safe(client: redis.Redis, settings: Settings) -> None:
    """Refuse a Redis that may lose accepted events, unless the operator took the loss by name.

    Raises:
        UnsafeRedis: with every fault.
        redis.RedisError: when the server cannot be asked.
    """
    if settings.accept_redis_loss:
        return
    if faults := loss_faults(client):
        raise UnsafeRedis(
            "\n".join([*faults, "(or set ACCEPT_REDIS_LOSS=1 to accept that events get lost)"])
        )

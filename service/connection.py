"""The connection to Redis, and whether that Redis keeps what it is given."""

from __future__ import annotations

from collections.abc import Mapping
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

    One retry, since a pooled connection may be stale; every script of the inbox is idempotent.
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


def faults(info: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return every way in which a server may lose an accepted event; empty when it keeps them.

    Empty, too, where the operator accepts that (`ACCEPT_REDIS_LOSS`).

    Args:
        info: what the server answers to INFO, since managed servers often refuse CONFIG.
        settings: the settings of this process.
    """
    if settings.accept_redis_loss:
        return []
    found = []
    if not int(info.get("aof_enabled", 0)):
        found.append(
            "Redis writes no append-only file, so a restart loses accepted events:"
            " set `appendonly yes` (deploy/redis.conf), or choose a plan that persists"
        )
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        found.append(
            f"Redis evicts keys when it is full (maxmemory-policy {info['maxmemory_policy']}),"
            " accepted events among them: set `maxmemory-policy noeviction`"
        )
    if info.get("role") not in {None, "master"}:
        found.append("this Redis is a read-only replica: give REDIS_URL the primary's address")
    return found


def require_safe(info: Mapping[str, Any], settings: Settings) -> None:
    """Refuse a Redis that may lose accepted events, unless the operator accepts that by name.

    Raises:
        UnsafeRedis: with every fault.
    """
    if found := faults(info, settings):
        raise UnsafeRedis(
            "\n".join([*found, "(or set ACCEPT_REDIS_LOSS=1 to accept that events get lost)"])
        )


def parse_info(answer: Any) -> dict[str, str]:
    """Read the answer to INFO as it comes from a connection without a client."""
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}

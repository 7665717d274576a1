from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis


def shift(redis: Redis, seconds: float) -> None:
    """Let time pass for the inbox: every stored moment moves into the past."""
    ms = int(seconds * 1000)
    for key in redis.scan_iter("iw:evt:*"):
        for name, value in redis.hgetall(key).items():
            if name in {b"lease", b"not_before", b"accepted"}:
                redis.hset(key, name, int(value) - ms)
            elif name.startswith(b"h:"):
                parts = value.split(b"|")
                parts[3] = str(int(parts[3]) - ms).encode() if parts[3] else b""
                redis.hset(key, name, b"|".join(parts))
    for member, score in redis.zrange("iw:due", 0, -1, withscores=True):
        redis.zadd("iw:due", {member: score - ms})
    for lock in redis.scan_iter("iw:session:*"):
        left = redis.pttl(lock) - ms
        redis.pexpire(lock, left) if left > 0 else redis.delete(lock)


@pytest.fixture
def pass_time(redis: Redis) -> Callable[[float], None]:
    return lambda seconds: shift(redis, seconds)


@pytest.fixture
def shifted() -> Callable[[Redis, float], None]:
    return staticmethod(shift)

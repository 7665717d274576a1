from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from service.inbox import Inbox
from service.inbox.record import KEPT

MOMENTS = {b"lease", b"not_before", b"accepted", b"reopened", b"settled"}
ACCEPTED = KEPT.index("accepted")


def shift(redis: Redis, seconds: float) -> None:
    """Let time pass for the inbox: every stored moment moves into the past."""
    ms = int(seconds * 1000)

    def earlier(moment: bytes) -> bytes:
        return b"%d" % (int(moment) - ms) if moment else b""

    def with_due_earlier(progress: bytes, place: int) -> bytes:
        # Of a line, and of what was reopened from one, empty parts at the end are cut.
        parts = progress.split(b"|")
        if len(parts) > place:
            parts[place] = earlier(parts[place])
        return b"|".join(parts)

    for key in redis.scan_iter("iw:evt:*"):
        for name, value in redis.hgetall(key).items():
            if name in MOMENTS:
                redis.hset(key, name, earlier(value))
            elif name.startswith(b"h:"):
                redis.hset(key, name, with_due_earlier(value, 3))
    for key in redis.scan_iter("iw:done:*"):
        parts = redis.get(key).split(b"\t")
        parts[ACCEPTED] = earlier(parts[ACCEPTED])
        for place, part in enumerate(parts[len(KEPT) :], len(KEPT)):
            parts[place] = with_due_earlier(part, 4)
        redis.set(key, b"\t".join(parts), keepttl=True)
    for zset in ("iw:due", "iw:dead"):
        for member, score in redis.zrange(zset, 0, -1, withscores=True):
            redis.zadd(zset, {member: score - ms})
    for key in ("iw:pause", "iw:clock"):
        if value := redis.get(key):
            # Of the pause the first number is a moment, of the clock the second.
            first, second = value.split(b" ", 1)
            moved = (earlier(first), second) if key == "iw:pause" else (first, earlier(second))
            redis.set(key, b" ".join(moved), keepttl=True)
    for lock in (*redis.scan_iter("iw:session:*"), b"iw:pause"):
        left = redis.pttl(lock) - ms
        if redis.exists(lock):
            redis.pexpire(lock, left) if left > 0 else redis.delete(lock)


@pytest.fixture
def pass_time(redis: Redis) -> Callable[[float], None]:
    return lambda seconds: shift(redis, seconds)


@pytest.fixture
def shifted() -> Callable[[Redis, float], None]:
    return staticmethod(shift)


@pytest.fixture
def inbox(redis: Redis) -> Inbox:
    return Inbox(redis)

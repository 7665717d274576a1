from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from service.inbox import Inbox
from service.inbox.keys import HOUR, HOURS_OF, KEEP
from service.inbox.record import KEPT

MOMENTS = {b"lease", b"not_before", b"accepted", b"reopened", b"settled"}
ACCEPTED = KEPT.index("accepted")


def _list_by_hour(redis: Redis) -> None:
    """Put events into the lists of the hours, and of the months, in which they were accepted."""
    listed: dict[str, list[bytes]] = {}
    for old, hour_of in (("iw:log:*", "iw:log:{0}"), ("iw:of:*", "iw:of:{1}:{2}")):
        for name in sorted(redis.scan_iter(old)):
            for entry in redis.lrange(name, 0, -1):
                key = entry.rpartition(b" ")[2].decode()
                line = redis.get(f"iw:done:{key}")
                accepted = (
                    line.split(b"\t")[ACCEPTED] if line else redis.hget(f"iw:evt:{key}", "accepted")
                )
                hour = int(accepted or 0) // (HOUR * 1000)
                xx = name.decode()[-2:]
                listed.setdefault(hour_of.format(hour, hour // HOURS_OF, xx), []).append(entry)
            redis.delete(name)
    redis.delete("iw:hours")
    for name, entries in listed.items():
        redis.rpush(name, *entries)
        redis.expire(name, KEEP)
        if name.startswith("iw:log:"):
            redis.zadd("iw:hours", {name[7:]: int(name[7:])})


def _earlier(moment: bytes, ms: int) -> bytes:
    return b"%d" % (int(moment) - ms) if moment else b""


def _with_due_earlier(progress: bytes, place: int, ms: int) -> bytes:
    # Of a line, and of what was reopened from one, empty parts at the end are cut.
    parts = progress.split(b"|")
    if len(parts) > place:
        parts[place] = _earlier(parts[place], ms)
    return b"|".join(parts)


def _shift_records(redis: Redis, ms: int) -> None:
    for key in redis.scan_iter("iw:evt:*"):
        for name, value in redis.hgetall(key).items():
            if name in MOMENTS:
                redis.hset(key, name, _earlier(value, ms))
            elif name.startswith(b"h:"):
                redis.hset(key, name, _with_due_earlier(value, 3, ms))
    for key in redis.scan_iter("iw:done:*"):
        parts = redis.get(key).split(b"\t")
        parts[ACCEPTED] = _earlier(parts[ACCEPTED], ms)
        for place, part in enumerate(parts[len(KEPT) :], len(KEPT)):
            if not part.startswith(b"|"):  # what is no handler's
                parts[place] = _with_due_earlier(part, 4, ms)
        redis.set(key, b"\t".join(parts), keepttl=True)


def shift(redis: Redis, seconds: float) -> None:
    """Let time pass for the inbox: every stored moment moves into the past."""
    ms = int(seconds * 1000)

    _shift_records(redis, ms)
    _list_by_hour(redis)
    for zset in ("iw:due", *redis.scan_iter("iw:dead*", _type="zset")):
        for member, score in redis.zrange(zset, 0, -1, withscores=True):
            redis.zadd(zset, {member: score - ms})
    for key in ("iw:pause", "iw:clock"):
        if value := redis.get(key):
            # Of the pause the first number is a moment, of the clock the second.
            first, second = value.split(b" ", 1)
            moved = (
                (_earlier(first, ms), second)
                if key == "iw:pause"
                else (first, _earlier(second, ms))
            )
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

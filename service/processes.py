"""The reports of the processes of this service, in one hash (`iw:processes`).

Each writes its own field every `BEAT` seconds, or a second after it has counted something: its
role, what it has in hand, and all that it has counted since it started. Who has not written for
`ALIVE` seconds is gone, or cannot reach Redis.
"""

from __future__ import annotations

import socket
from typing import Any, Literal

import msgspec
import redis

from service.inbox import keys
from service.inbox.record import text_of

BEAT, ALIVE = 5.0, 16.0
"""Seconds between two signs of life, and after which a process without one counts as gone: three of
them may get lost."""

FORGOTTEN = 600.0
"""Seconds after which a process's report is deleted: web processes have read its last counts."""

Role = Literal["web", "worker", "periodic"]


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What one process says of itself.

    Attributes:
        role: what it does.
        pid, host: where it runs.
        started: when it started, ms of its own clock.
        slots: events that it works on at once, at most.
        busy: events that it has in hand.
        handlers: the names of the handlers that it runs.
        ended: whether it said that it ends.
        counts: what it has counted since it started (service/metrics.py).
    """

    role: Role
    pid: int
    started: int
    host: str = msgspec.field(default_factory=socket.gethostname)
    slots: int = 0
    busy: int = 0
    handlers: tuple[str, ...] = ()
    ended: bool = False
    counts: dict[str, float] = {}

    def encoded(self) -> str:
        """Return it as it is written to Redis."""
        return msgspec.json.encode(self).decode()


class Seen(msgspec.Struct, frozen=True):
    """A process, its id, and the seconds since it last said something."""

    id: str
    age: float
    process: Process

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.age <= ALIVE and not self.process.ended


def forget(client: redis.Redis, now: float) -> None:
    """Delete the reports of processes that ended long ago. `now`: as in `read`.

    May raise `redis.RedisError`.
    """
    fields: dict[Any, Any] = client.hgetall(keys.PROCESSES)
    old = [each.id for each in read(fields, now) if each.age > FORGOTTEN]
    if old:
        client.hdel(keys.PROCESSES, *old)


def read(fields: dict[Any, Any], now: float) -> list[Seen]:
    """Read the hash, the latest report first.

    Args:
        fields: the hash as Redis gives it; a field of another release that cannot be read is left
            out.
        now: the time by the clock of the inbox, ms.
    """
    found = []
    for id_, value in fields.items():
        at, _, text = text_of(value).partition(" ")
        try:
            age = max(0.0, (now - int(at)) / 1000)
            process = msgspec.json.decode(text, type=Process)
        except (ValueError, msgspec.DecodeError):
            continue
        found.append(Seen(text_of(id_), age, process))
    return sorted(found, key=lambda each: each.age)

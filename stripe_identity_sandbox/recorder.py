"""The last requests of the API and what was answered, for tests to assert on."""

import json
import re
import time
from collections import deque

import msgspec

from stripe_identity_sandbox.objects import Json, Session

#: So many of the newest are kept, in memory only.
KEPT = 1000


class Exchange(msgspec.Struct):
    """One request as it was read, and its answer as it left. ``time`` is the machine's.

    ``params`` and ``answer`` are None where there is nothing to read, and once a session that they
    show was redacted.
    """

    id: str
    method: str
    path: str
    params: Json | None
    account: str | None
    version: str | None
    idempotency_key: str | None
    status: int
    answer: str | None
    fault: str | None
    #: The sessions that it shows.
    sessions: list[str]
    time: float = msgspec.field(default_factory=time.time)


class Recorder:
    """The exchanges, oldest first. Callers hold the world's lock."""

    def __init__(self) -> None:
        self._kept: deque[Exchange] = deque(maxlen=KEPT)
        #: The sessions that were redacted, in order: an answer may be on its way meanwhile.
        self._erased: list[str] = []

    @property
    def erased(self) -> int:
        """How many sessions were redacted, for ``note``."""
        return len(self._erased)

    def note(self, exchange: Exchange, *, erased: int) -> None:
        """Keep an exchange; ``erased`` is how many sessions were redacted when it began."""
        if not set(self._erased[erased:]).isdisjoint(exchange.sessions):
            _empty(exchange)
        self._kept.append(exchange)

    def erase(self, session: Session) -> None:
        """Forget what the exchanges that show a session hold."""
        self._erased.append(session.id)
        for exchange in self.of(session.id):
            _empty(exchange)

    def all(self, *, method: str | None = None, path: str | None = None) -> list[Exchange]:
        """Return what was kept, oldest first; ``path`` may be the beginning of one."""
        return [
            one
            for one in self._kept
            if method in {None, one.method} and one.path.startswith(path or "")
        ]

    def of(self, session: str) -> list[Exchange]:
        """Return the exchanges that show a session, oldest first."""
        return [one for one in self._kept if session in one.sessions]

    def clear(self) -> int:
        """Forget all; return how many there were."""
        count = len(self._kept)
        self._kept.clear()
        return count


def sessions_in(*texts: str) -> list[str]:
    """Return the ids of the sessions that a path and an answer name."""
    return sorted({id_ for text in texts for id_ in re.findall(r"vs_1[0-9a-f]{24}", text)})


def view(one: Exchange) -> Json:
    """Return an exchange as JSON, its answer taken apart."""
    shown: Json = msgspec.to_builtins(one)
    return shown | {"answer": json.loads(one.answer) if one.answer else None}


def _empty(exchange: Exchange) -> None:
    exchange.params = exchange.answer = None

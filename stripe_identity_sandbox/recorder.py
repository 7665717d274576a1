"""The last requests of the API and what was answered, for tests to assert on."""

import json
import re
import time
from collections import deque
from collections.abc import Mapping

import msgspec

from stripe_identity_sandbox.objects import Json, Session

#: So many of the newest are kept, in memory only, and fewer when they are long (in bytes).
KEPT, KEPT_BYTES = 1000, 8_388_608


class Exchange(msgspec.Struct):
    """One request as it was read, and its answer as it left. ``time`` is the machine's.

    ``params`` and ``answer`` are None where there is nothing to read, and where they show a session
    that was redacted, before or since.
    """

    id: str
    method: str
    path: str
    #: As JSON, like the answer.
    params: str | None
    account: str | None
    version: str | None
    idempotency_key: str | None
    status: int
    answer: str | None
    fault: str | None
    #: The sessions that it shows, and the one that its idempotency key stands for.
    sessions: list[str]
    time: float = msgspec.field(default_factory=time.time)


class Recorder:
    """The exchanges, oldest first. Callers hold the world's lock."""

    def __init__(self) -> None:
        self._kept: deque[Exchange] = deque()
        #: Their lengths when they came.
        self._lengths: deque[int] = deque()
        self._bytes = 0

    def note(self, exchange: Exchange, sessions: Mapping[str, Session]) -> None:
        """Keep an exchange; ``sessions`` are all there are, and say which were redacted."""
        shown = [sessions[id_] for id_ in exchange.sessions if id_ in sessions]
        if any(session.redaction == "redacted" for session in shown):
            _empty(exchange)
        length = len(exchange.params or "") + len(exchange.answer or "")
        self._kept.append(exchange)
        self._lengths.append(length)
        self._bytes += length
        while len(self._kept) > KEPT or (self._bytes > KEPT_BYTES and len(self._kept) > 1):
            self._kept.popleft()
            self._bytes -= self._lengths.popleft()

    def erase(self, session: Session) -> None:
        """Forget what the exchanges that show a session hold.

        One that was refused because another with its idempotency key was under way names no
        session, and has the parameters of the other.
        """
        keys = {_key(one) for one in self.of(session.id)} - {None}
        for exchange in self._kept:
            if session.id in exchange.sessions or _key(exchange) in keys:
                _empty(exchange)

    def all(self, *, method: str | None = None, path: str | None = None) -> list[Exchange]:
        """Return what was kept, oldest first; ``path`` may be the beginning of one.

        ``method`` is in any case.
        """
        return [
            one
            for one in self._kept
            if (method is None or method.upper() == one.method) and one.path.startswith(path or "")
        ]

    def of(self, session: str) -> list[Exchange]:
        """Return the exchanges that show a session, oldest first."""
        return [one for one in self._kept if session in one.sessions]

    def clear(self) -> int:
        """Forget all; return how many there were."""
        count = len(self._kept)
        self._kept.clear()
        self._lengths.clear()
        self._bytes = 0
        return count


def sessions_in(*texts: str) -> list[str]:
    """Return the ids of the sessions that a path and an answer name."""
    return sorted({id_ for text in texts for id_ in re.findall(r"vs_1[0-9a-f]{24}", text)})


def view(one: Exchange) -> Json:
    """Return an exchange as JSON, its parameters and its answer taken apart."""
    shown: Json = msgspec.to_builtins(one)
    texts = {"params": one.params, "answer": one.answer}
    return shown | {name: json.loads(text) if text else None for name, text in texts.items()}


def as_json(exchanges: list[Exchange]) -> bytes:
    """Return exchanges as ``view`` shows them; what is JSON already is not read again."""
    return msgspec.json.encode(
        [
            msgspec.structs.asdict(one) | {"params": _raw(one.params), "answer": _raw(one.answer)}
            for one in exchanges
        ]
    )


def _raw(text: str | None) -> msgspec.Raw | None:
    return msgspec.Raw(text.encode()) if text else None


def _key(exchange: Exchange) -> tuple[str | None, str] | None:
    """Return the account and the idempotency key of a request that has one that counts."""
    key = exchange.idempotency_key
    return (exchange.account, key) if key and exchange.method == "POST" else None


def _empty(exchange: Exchange) -> None:
    exchange.params = exchange.answer = None

"""The last requests of the API and what was answered, for tests to assert on."""

import json
import time
from collections import deque
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from flask import Request

from stripe_identity_sandbox.objects import Json
from stripe_identity_sandbox.wire import nest

#: So many of the newest are kept, in memory only.
KEPT = 1000


class Exchange(msgspec.Struct):
    """One request as it came, and its answer as it left. ``time`` is the machine's."""

    id: str
    time: float
    method: str
    path: str
    query: str
    sent: str
    is_json: bool
    account: str | None
    version: str | None
    idempotency_key: str | None
    status: int
    answer: str
    fault: str | None


class Recorder:
    """The exchanges, oldest first. Callers hold the world's lock."""

    def __init__(self) -> None:
        self._kept: deque[Exchange] = deque(maxlen=KEPT)

    def note(self, request: Request, id_: str, status: int, answer: str, fault: str | None) -> None:
        """Keep one exchange."""
        headers = request.headers
        self._kept.append(
            Exchange(
                id=id_,
                time=time.time(),
                method=request.method,
                path=request.path,
                query=request.query_string.decode("latin-1"),
                sent=request.get_data(as_text=True),
                is_json=request.is_json,
                account=headers.get("Stripe-Account") or headers.get("Stripe-Context"),
                version=headers.get("Stripe-Version"),
                idempotency_key=headers.get("Idempotency-Key"),
                status=status,
                answer=answer,
                fault=fault,
            )
        )

    def all(self, *, method: str | None = None, path: str | None = None) -> list[Json]:
        """Return what was kept, oldest first; ``path`` may be the beginning of one."""
        return [
            view(one)
            for one in self._kept
            if method in {None, one.method} and one.path.startswith(path or "")
        ]

    def clear(self) -> int:
        """Forget all; return how many there were."""
        count = len(self._kept)
        self._kept.clear()
        return count


def view(one: Exchange) -> Json:
    """Return an exchange with parameters and answer taken apart."""
    shown: Json = msgspec.to_builtins(one)
    for name in ("query", "sent", "is_json"):
        del shown[name]
    sent: Any = parse_qsl(one.sent, keep_blank_values=True)
    if one.is_json:
        sent = _json(one.sent)
    query = parse_qsl(one.query, keep_blank_values=True)
    shown["params"] = nest(query) | (sent if isinstance(sent, dict) else nest(sent or ()))
    shown["answer"] = _json(one.answer)
    return shown


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None

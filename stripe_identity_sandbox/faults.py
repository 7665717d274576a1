"""Faults on request: what can go wrong on the way of an event, or of an answer of the API.

A fault strikes what it matches: every time, the ``next`` n times, or at a ``rate`` between 0 and 1.
"""

import fnmatch
import random
import secrets
import selectors
import socket
import threading
import time
from typing import Annotated, Any

import msgspec

from stripe_identity_sandbox.lifetimes import Seconds
from stripe_identity_sandbox.objects import EVENT_TYPES

#: Faults of deliveries, and what ``seconds``, ``times``, ``bytes`` mean to each.
DELIVERY = {
    "duplicate": "send it `times` more (1) after a try",
    "reorder": "hold it until a later one to the same endpoint was sent, or for `seconds` (5)",
    "delay": "send it `seconds` (60) of the sandbox's clock later",
    "drop": "never send it",
    "bad_signature": "sign with a secret the endpoint does not have",
    "stale_timestamp": "sign for `seconds` (600) ago",
    "future_timestamp": "sign for `seconds` (600) ahead",
    "oversized": "add `bytes` (1048576) to the body",
}
#: Faults of the API. ``after`` lets the operation happen first, so that only its answer is lost.
API = {
    "rate_limit": "429 rate_limit; `retry_after` adds that header",
    "lock_timeout": "429 lock_timeout",
    "error": "`status` (500), e.g. 502 or 503; `saved` keeps it for the idempotency key",
    "timeout": "no answer for `seconds` (30), then the connection ends",
    "slow": "the answer comes after `seconds` (2)",
    "cut": "half of the answer's body, then the connection ends",
}


#: Fields of every kind, of each of deliveries and of the API; then those of single kinds.
EVERY, OF_DELIVERIES, OF_THE_API = {"kind", "next", "rate"}, {"endpoint", "event_type"}, {"route"}
FIELDS = {
    "duplicate": {"times"},
    "reorder": {"seconds"},
    "delay": {"seconds"},
    "stale_timestamp": {"seconds"},
    "future_timestamp": {"seconds"},
    "oversized": {"bytes"},
    "rate_limit": {"after", "retry_after"},
    "lock_timeout": {"after"},
    "error": {"after", "saved", "status"},
    "timeout": {"after", "seconds"},
    "slow": {"seconds"},
}

#: Where ``seconds`` is not given. 0 is a number too.
SECONDS = {
    "reorder": 5.0,
    "delay": 60.0,
    "stale_timestamp": 600.0,
    "future_timestamp": 600.0,
    "timeout": 30.0,
    "slow": 2.0,
}
#: What keeps a delivery from being sent now. One does; the first of these that strikes.
DIVERTING = ("drop", "delay", "reorder")

#: The events of both forms.
NAMES = (*EVENT_TYPES, *(f"v1.{name}" for name in EVENT_TYPES))
#: Of the operations. A route without one matches all of them.
METHODS = ("", "GET", "POST", "DELETE")

#: Answers that may wait at the same time. The server has more threads (``connections.THREADS``), so
#: that the control routes and the pages still answer.
MOST_WAITING = 48


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """What to spoil. Fields that are not given match everything."""

    kind: str
    id: str = ""
    #: Deliveries: the endpoint's id or url; the type of event (``*`` and ``?`` are wild).
    endpoint: str | None = None
    event_type: str | None = None
    #: The API: ``GET /v1/identity/*``; a path alone matches any method.
    route: str | None = None
    next: Annotated[int, msgspec.Meta(ge=1)] | None = None
    rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seconds: Seconds | None = None
    times: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    bytes: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 1_048_576
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500
    #: Seconds.
    retry_after: Annotated[int, msgspec.Meta(ge=0, le=86_400)] | None = None
    after: bool = False
    saved: bool = False
    struck: int = 0

    def wait(self) -> float:
        """Return ``seconds``, or what the kind means without."""
        return SECONDS[self.kind] if self.seconds is None else self.seconds


class Faults:
    """The faults that are set. Callers hold the world's lock."""

    def __init__(self) -> None:
        self._set: dict[str, Fault] = {}
        self._places = threading.BoundedSemaphore(MOST_WAITING)

    def add(self, fields: dict[str, Any]) -> Fault:
        """Set a fault from a request's fields.

        Raises:
            ValueError: as for ``read``.
        """
        fault = read(fields)
        fault.id = f"fault_{secrets.token_hex(4)}"
        self._set[fault.id] = fault
        return fault

    def wait(self, seconds: float, connection: socket.socket | None) -> None:
        """Let an answer wait, without the world's lock.

        It does not wait when ``MOST_WAITING`` others do, and no longer than its client.
        """
        if not self._places.acquire(blocking=False):
            return
        try:
            _wait(seconds, connection)
        finally:
            self._places.release()

    def all(self) -> list[Fault]:
        """Return the faults that are set."""
        return list(self._set.values())

    def clear(self, fault_id: str | None = None) -> int:
        """Remove one fault or all of them; return how many."""
        chosen = [fault_id] if fault_id in self._set else [] if fault_id else list(self._set)
        for name in chosen:
            del self._set[name]
        return len(chosen)

    def for_delivery(
        self,
        endpoint_id: str,
        url: str,
        event_type: str,
        *,
        thin: bool,
        first: bool,
        sent: bool = False,
    ) -> list[Fault]:
        """Return the faults that strike this try, one of a kind.

        A delivery is diverted by its ``first`` try only, and by one fault: the others are for the
        try that is sent. It is duplicated once, so not when it was ``sent`` before. A thin delivery
        is matched by either name of its event.
        """
        names = (event_type, f"v1.{event_type}")[: 2 if thin else 1]
        matching = [
            fault
            for fault in self.all()
            if fault.endpoint in {None, endpoint_id, url}
            and fnmatch.filter(names, fault.event_type or "*")
        ]
        for kind in DIVERTING if first else ():
            for fault in matching:
                if fault.kind == kind and self._strikes(fault):
                    return [fault]
        struck: dict[str, Fault] = {}
        for fault in matching:
            sending = fault.kind in DELIVERY and fault.kind not in DIVERTING
            again = fault.kind in struck or (sent and fault.kind == "duplicate")
            if sending and not again and self._strikes(fault):
                struck[fault.kind] = fault
        return list(struck.values())

    def for_call(self, method: str, path: str) -> Fault | None:
        """Return the fault that strikes this call of the API, if one does."""
        for fault in self.all():
            pattern = fault.route or "*"
            called = f"{method} {path}" if " " in pattern else path
            if fault.kind in API and fnmatch.fnmatchcase(called, pattern) and self._strikes(fault):
                return fault
        return None

    def _strikes(self, fault: Fault) -> bool:
        if fault.rate is not None and random.random() >= fault.rate:  # noqa: S311 -- not a secret
            return False
        fault.struck += 1
        if fault.next is not None and fault.struck >= fault.next:
            self._set.pop(fault.id, None)
        return True


def read(fields: dict[str, Any]) -> Fault:
    """Return the fault that a request's fields describe.

    Raises:
        ValueError: an unknown kind, a field that means nothing to it, or a value that is wrong.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    fault = msgspec.convert(given, Fault, strict=False)
    if fault.kind not in {**DELIVERY, **API}:
        known = ", ".join([*DELIVERY, *API])
        raise ValueError(f"Unknown fault {fault.kind!r}; there are: {known}.")
    where = OF_DELIVERIES if fault.kind in DELIVERY else OF_THE_API
    allowed = EVERY | where | FIELDS.get(fault.kind, set())
    if foreign := ", ".join(sorted(given.keys() - allowed)):
        listed = ", ".join(sorted(allowed))
        raise ValueError(f"A fault of kind {fault.kind} has no {foreign}; it has: {listed}.")
    fault.event_type = None if fault.event_type is None else _event(fault.event_type)
    fault.route = None if fault.route is None else _route(fault.route)
    if fault.after and fault.saved:
        raise ValueError("after and saved exclude each other: saved is what did not happen.")
    return fault


def _event(pattern: str) -> str:
    """Return the pattern; one that matches nothing would be no fault, and nobody would notice."""
    if not fnmatch.filter(NAMES, pattern):
        raise ValueError(f"No event is called {pattern!r}; there are: {', '.join(NAMES)}.")
    return pattern


def _route(pattern: str) -> str:
    """Return the pattern as calls are matched with it."""
    method, _, path = pattern.strip().rpartition(" ")
    method = method.strip().upper()
    if method not in METHODS or not path.startswith(("/", "*")):
        raise ValueError(f"{pattern!r} is no route; try POST /v1/identity/* or /v1/*.")
    return f"{method} {path}".lstrip()


def _wait(seconds: float, connection: socket.socket | None) -> None:
    end = time.monotonic() + seconds
    if connection is not None:
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            if not selector.select(seconds):
                return
        try:
            if not connection.recv(1, socket.MSG_PEEK):
                return  # the client is gone
        except OSError:
            return
    # Without a connection (in tests), or with the next request in it already.
    time.sleep(max(end - time.monotonic(), 0.0))

"""The receiver as it is deployed: gunicorn in a process of its own, spoken to over sockets."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

GUNICORN = ("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "service.app:create_app()")
CANARY = "ZyxCanary7Q"  # of tests/conftest.py, where the fixture `canary` is
SESSION = "vs_1TaWmxLkdIwHu7ixUdtHg3rQ"
_HEAD = b"POST /webhooks/stripe HTTP/1.1\r\nHost: receiver\r\nConnection: close\r\n"


@dataclass(frozen=True)
class Answer:
    """What came back on a connection. `status` is None when it was closed without an answer.

    `seconds` are those in which the receiver could have run.
    """

    status: int | None
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Receiver:
    """A running receiver, and a sender that plays Stripe with Stripe's own SDK."""

    port: int
    secret: str
    process: subprocess.Popen[bytes]
    log: Path
    clock_of: Callable[[subprocess.Popen[bytes]], float]

    def clock(self) -> float:
        """Seconds of a clock that stands still while the receiver waits for a processor."""
        return self.clock_of(self.process)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def event(self, event_id: str = "evt_1", **changes: object) -> bytes:
        """Return the body of a snapshot event with the canary where personal data could be."""
        return json.dumps(
            {
                "id": event_id,
                "object": "event",
                "api_version": "2026-10-28.endive",
                "created": int(time.time()),
                "data": {
                    "object": {
                        "id": SESSION,
                        "object": "identity.verification_session",
                        "client_secret": f"{SESSION}_secret_{CANARY}",
                        "metadata": {"name": CANARY},
                        "provided_details": {"email": f"{CANARY}@example.com"},
                        "status": "verified",
                    }
                },
                "livemode": False,
                "pending_webhooks": 1,
                "request": {"id": None, "idempotency_key": None},
                "type": "identity.verification_session.verified",
                **changes,
            },
            indent=2,
        ).encode()

    def thin_event(self, event_id: str = "evt_2", **changes: object) -> bytes:
        """Return the body of a thin event."""
        return json.dumps(
            {
                "id": event_id,
                "object": "v2.core.event",
                "context": None,
                "created": "2026-11-22T10:00:00.000Z",
                "livemode": False,
                "related_object": {
                    "id": SESSION,
                    "type": "identity.verification_session",
                    "url": f"/v1/identity/verification_sessions/{SESSION}",
                },
                "type": "v1.identity.verification_session.verified",
                **changes,
            }
        ).encode()

    def sign(self, body: bytes, *, secret: str | None = None, at: float | None = None) -> str:
        """Return the Stripe-Signature header for `body`."""
        return stripe.WebhookSignature.generate_signature_header(
            body.decode(), secret or self.secret, int(at or time.time())
        )

    def deliver(self, body: bytes, header: str | None = None) -> Answer:
        """Post `body`, rightly signed unless a header is given."""
        header = self.sign(body) if header is None else header
        return self.post(body, f"Stripe-Signature: {header}")

    def post(self, body: bytes, *headers: str | bytes) -> Answer:
        """Post `body` with these header lines, a right Content-Length among them."""
        return self.send(self.request(body, f"Content-Length: {len(body)}", *headers))

    def request(self, body: bytes, *headers: str | bytes) -> bytes:
        """Return a request to the webhook route, byte for byte."""
        lines = [line.encode("latin-1") if isinstance(line, str) else line for line in headers]
        return _HEAD + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)

    def send(self, raw: bytes) -> Answer:
        """Send bytes on a connection of their own and read what comes back until it closes."""
        started = self.clock()
        answer = b""
        with self.connect() as connection:
            # It may answer and close before it has read everything; what it said stands.
            with suppress(OSError):
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return Answer(
            status=int(first.split()[1]) if answer else None,
            headers={name.lower(): value.strip() for name, _, value in fields},
            body=body,
            seconds=self.clock() - started,
        )

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers={"Connection": "close"}, timeout=120)


@pytest.fixture(scope="session")
def environment(canary: str) -> dict[str, str]:
    """The least a receiver needs. The secret holds the canary: no trace may show it either."""
    assert canary == CANARY
    return {
        "STRIPE_WEBHOOK_SECRET": f"whsec_{canary}q7H2kP9sXv4LbN8wRt3YcZ6m",
        "STRIPE_LIVEMODE": "0",
    }


@pytest.fixture(scope="session")
def gunicorn() -> tuple[str, ...]:
    """What `python -m service serve` becomes, behind `python`."""
    return GUNICORN


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "any_server: holds under other servers than ours, too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server_class" in metafunc.fixturenames:
        anywhere = metafunc.definition.get_closest_marker("any_server")
        classes = SERVER_CLASSES if anywhere else SERVER_CLASSES[:1]
        metafunc.parametrize("server_class", classes, scope="session")


SERVER_CLASSES = ("loop", "gthread")
"""Our worker class, and the stock one of gunicorn that `any_server` tests run under as well."""


def started(processes, port: int, secret: str, server_class: str, **env: str) -> Receiver:
    """Start gunicorn as `service serve` does, and wait until it answers."""
    other = () if server_class == "loop" else ("--worker-class", server_class)
    bind = ("--bind", f"127.0.0.1:{port}")
    return serving(processes, port, secret, *GUNICORN, *bind, *other, **env)


def serving(processes, port: int, secret: str, *command: str, **env: str) -> Receiver:
    """Start a server of the application, and wait until it answers."""
    process, log = processes.python(*command, env=env)
    receiver = Receiver(port, secret, process, log, processes.clock)
    deadline = time.monotonic() + 120
    while True:
        try:
            receiver.get("/healthz")
        except requests.ConnectionError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the receiver did not start: {log.read_text()}")
            time.sleep(0.02)
        else:
            return receiver


@pytest.fixture(scope="session")
def session_receivers(
    session_processes, server, environment, traces, free_port
) -> Callable[[str], Receiver]:
    """Return the receiver of the session under a server class, started when first asked for."""

    @functools.cache
    def session_receiver(server_class: str) -> Receiver:
        secret = environment["STRIPE_WEBHOOK_SECRET"]
        env = environment | {"REDIS_URL": server.url, "WEB_CONCURRENCY": "2"}
        receiver = started(session_processes, free_port(), secret, server_class, **env)
        traces.watch(lambda: metrics_page(receiver))
        return receiver

    return session_receiver


def metrics_page(receiver: Receiver) -> Iterator[tuple[str, bytes]]:
    try:
        yield "the metrics page", receiver.get("/metrics").content
    except requests.ConnectionError:
        return  # stopped; its counters are in Redis


@pytest.fixture
def receiver(session_receivers, server_class: str, redis) -> Receiver:  # empties the inbox
    """Two gunicorn workers on the session's server, with an empty inbox."""
    return session_receivers(server_class)


@pytest.fixture
def new_receiver(processes, environment, server_class, free_port) -> Callable[..., Receiver]:
    """Start a receiver of the test's own: `new_receiver(REDIS_URL=..., INBOX_LIMIT="3")`."""

    def new_receiver(**env: str | None) -> Receiver:
        env = environment | {"WEB_CONCURRENCY": "1"} | env
        given = {name: value for name, value in env.items() if value is not None}
        secret = environment["STRIPE_WEBHOOK_SECRET"]
        return started(processes, free_port(), secret, server_class, **given)

    return new_receiver


@pytest.fixture
def serve(processes, environment, free_port, server, redis) -> Callable[..., Receiver]:
    """Start any server: `serve("-m", "waitress", ...)`; `{port}` stands for the port."""

    def serve(*command: str) -> Receiver:
        port = free_port()
        env = environment | {"REDIS_URL": server.url}
        parts = [part.format(port=port) for part in command]
        return serving(processes, port, environment["STRIPE_WEBHOOK_SECRET"], *parts, **env)

    return serve


@pytest.fixture
def stored(redis) -> Callable[[], set[str]]:
    """Return the keys in Redis that hold anything of an event; none when nothing was taken in."""

    def stored() -> set[str]:
        names = {key.decode() for key in redis.keys("*")} - {
            "iw:processes",
            "iw:seen",
            "iw:seq",
            "rq:queues",
        }
        return {name for name in names if not name.startswith("iw:answer:")}  # of a check

    return stored

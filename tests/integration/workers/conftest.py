"""A sandbox as a process, and the workers' side of things wired to it and to a real Redis."""

from __future__ import annotations

import itertools
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis
from stripe.identity import VerificationSession

from identity_webhooks.event import Event, Kind
from service import logs
from service.inbox import AcceptResult, Inbox, Record, Refused
from service.metrics import Metrics
from tests.conftest import CANARY, Processes, Traces, wait_until
from tests.integration.workers.fake_stripe import FakeStripe, serving
from tests.logs import lines_of, logging_to
from tests.postgres import postgres
from workers import claiming, failures, jobs, router, stripe_api
from workers.jobs import Processor
from workers.router import Router
from workers.stop import Stop
from workers.stripe_api import StripeApi

__all__ = ["postgres"]

KEY, RESTRICTED_KEY = "sk_test_workers", "rk_test_workers"


@pytest.fixture(scope="session", autouse=True)
def no_certificates_of_this_machine() -> Iterator[None]:
    """Leave out the bundle that a machine may name: each client would read it, for 30 ms."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STRIPE_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            patch.delenv(name, raising=False)
        yield


class Sandbox:
    """A running sandbox, whose people's data all hold the canary."""

    def __init__(self, url: str) -> None:
        self.url = url

    def control(self, path: str, method: str = "POST", **body: Any) -> Any:
        answer = requests.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def api(self, key: str = KEY) -> StripeApi:
        return StripeApi(key, base=self.url)

    def session(
        self, outcome: str | None = None, *, account: str | None = None, **params: Any
    ) -> VerificationSession:
        """Create a session and, with an outcome, have it verified or refused."""
        session = self.api().create_session({"type": "document", **params}, account=account)
        if outcome:
            self.control(f"sessions/{session.id}/submit", outcome=outcome)
        return session

    def session_and_thin_event(self) -> tuple[VerificationSession, str]:
        """Create a session, and return the id of its `created` event in the thin form too."""
        destinations, auth = f"{self.url}/v2/core/event_destinations", (KEY, "")
        made = requests.post(
            destinations,
            json={
                "name": "tests",
                "type": "webhook_endpoint",
                "event_payload": "thin",
                "enabled_events": ["v1.identity.verification_session.created"],
                "webhook_endpoint": {"url": "http://127.0.0.1:9/"},
            },
            auth=auth,
            timeout=120,
        ).json()
        session = self.session()
        deliveries = self.control("deliveries", "GET")
        requests.delete(f"{destinations}/{made['id']}", auth=auth, timeout=120)
        return session, next(d["event"] for d in deliveries if d["session"] == session.id)

    def fault(self, kind: str, **fields: Any) -> None:
        """Spoil answers of the API; by default one."""
        self.control("faults", kind=kind, **{"next": 1, **fields})


@pytest.fixture(scope="session")
def _sandbox(session_processes: Processes) -> Sandbox:
    _, log = session_processes.python(
        *("-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json", "--marker", CANARY)
    )
    wait_until(lambda: "\n" in log.read_text())
    return Sandbox(json.loads(log.read_text().split("\n")[0])["url"])


@pytest.fixture
def sandbox(_sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox of the session, without faults."""
    yield _sandbox
    _sandbox.control("faults", "DELETE")


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with serving(FakeStripe(now=int(time.time()))) as fake:
        yield fake


@pytest.fixture
def drip() -> Iterator[Callable[..., int]]:
    """Start a server that answers a byte each twentieth of a second, for ever; its port.

    It sends `begin` at once and then the bytes of `drops`, again and again. With a context it talks
    TLS, or drips where the handshake would be.
    """
    ended = threading.Event()
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(server: socket.socket, begin: bytes, drops: bytes, context: Any) -> None:
        while not ended.is_set():
            with suppress(OSError):
                connection, _ = server.accept()
                connection.settimeout(5)
                if context:
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    connection.recv(65_536)
                    connection.sendall(begin)
                    for drop in itertools.cycle(drops):
                        if ended.wait(0.05):
                            return
                        connection.sendall(bytes([drop]))

    def start(begin: bytes, drops: bytes, context: ssl.SSLContext | None = None) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(0.2)
        servers.append(server)
        threads.append(threading.Thread(target=serve, args=(server, begin, drops, context)))
        threads[-1].start()
        return int(server.getsockname()[1])

    yield start
    ended.set()
    for thread in threads:
        thread.join(120)
    for server in servers:
        server.close()


STATUS = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "the status": (b"HTTP/1.1 2", b"0"),
    "the headers": (STATUS + b"X-Long: ", b"x"),
    "one header after another": (STATUS, b"A: b\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the body": (STATUS + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "chunks": (STATUS + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a body without an end": (STATUS + b"\r\n", b"x"),
}
"""What a server drips: what it sends at once, and what it sends byte by byte."""

PATIENCE = 15
"""Seconds that a call whose limit is set below one may take: without the limit each of these drips
lasts for half a minute or more, until there are too many headers, or for ever."""


class Desk:
    """Where the events of a test are worked on."""

    def __init__(self, redis: Redis, sandbox: Sandbox, log_path: Path) -> None:
        self.redis, self.sandbox, self._log_path = redis, sandbox, log_path
        self.inbox = Inbox(redis)
        self.metrics = Metrics(redis)
        self.stop = Stop()
        self._number = itertools.count(1)
        self._processors: list[Processor] = []
        self.expects_faults = False

    def processor(
        self,
        *functions: Callable[..., Any],
        key: str = KEY,
        restricted_key: str | None = None,
        **parts: Any,
    ) -> Processor:
        """Wire a processor whose plugin `p` holds these marked functions.

        `parts`: arguments of `Processor` that are not those of the desk.
        """
        handlers = Router()
        members = {function.__name__: staticmethod(function) for function in functions}
        handlers.add(type("Plugin", (), members)(), "p")
        given = {
            "inbox": self.inbox,
            "router": handlers,
            "api": self.sandbox.api(key),
            "metrics": self.metrics,
            "stop": self.stop,
            "restricted_api": self.sandbox.api(restricted_key) if restricted_key else None,
        }
        return self.add(Processor(**(given | parts)))

    def add(self, processor: Processor) -> Processor:
        """End this one, too, when the test is over."""
        self._processors.append(processor)
        return processor

    def end(self) -> None:
        """End the threads of all processors."""
        for processor in self._processors:
            processor.end()
        self.metrics.end()

    def accept(
        self,
        kind: Kind,
        session: VerificationSession | str,
        *,
        account: str | None = None,
        age: int = 0,
        **fields: Any,
    ) -> Event:
        """Take an event in, as the receiver does."""
        given = {"id": f"evt_{next(self._number)}", "form": "snapshot", **fields}
        event = Event(
            kind=kind,
            session=session if isinstance(session, str) else session.id,
            created=int(time.time()) - age,
            livemode=False,
            account=account,
            **given,
        )
        assert self.inbox.accept(event) is AcceptResult.NEW
        return event

    def record(self, event: Event) -> Record:
        record = self.inbox.find(event.key)
        assert record is not None
        return record

    def turn(self, processor: Processor) -> None:
        """Wake what is due and, if an event waits for a worker, work on it."""
        self.inbox.sweep()
        for claim in processor.claim():
            processor.process(claim)

    def wake(self, key: str) -> None:
        """Put a surplus wake-up into the queue."""
        self.redis.rpush("rq:queue:identity", f"{key}-999")

    def settle(self, processor: Processor, event: Event) -> Record:
        """Take turns until the event is settled."""

        def settled() -> bool:
            self.turn(processor)
            return self.record(event).state != "pending"

        wait_until(settled)
        return self.record(event)

    def now(self) -> int:
        """Redis' time, in milliseconds as the scripts have it."""
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def due(self, event: Event) -> int:
        """When the event is due, in milliseconds of Redis' time."""
        return int(self.redis.zscore("iw:due", event.key))

    def fields(self, event: Event) -> dict[bytes, bytes]:
        return self.redis.hgetall(f"iw:evt:{event.key}")

    def counts(self) -> dict[str, float]:
        return self.metrics.counts()

    def logged(self, name: str) -> list[dict[str, Any]]:
        """Return the lines with this event name."""
        return lines_of(self._log_path, name)


@pytest.fixture
def desk(
    redis: Redis,
    sandbox: Sandbox,
    tmp_path: Path,
    traces: Traces,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Desk]:
    """The desk: waits are short, the SDK does not retry, and the log is searched for the canary."""
    for module in (jobs, router, failures):
        monkeypatch.setattr(module, "backoff", lambda *_: 0.01)
    monkeypatch.setitem(claiming._WAITS, Refused.PAUSED, 0.01)
    monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 0)
    monkeypatch.setattr(logs, "RESTORE_PERIOD", math.inf)  # pytest's handlers are let be
    log_path = tmp_path / "desk.log"
    with logging_to(log_path):
        traces.watch_file(log_path)
        desk = Desk(redis, sandbox, log_path)
        yield desk
        # Or a thread would write into the next test's database.
        desk.end()
        # What a retry hides is a fault of ours all the same.
        assert desk.expects_faults or desk.logged("processing_failed") == []

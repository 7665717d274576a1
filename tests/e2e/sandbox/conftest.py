"""A sandbox as its users run it: a process of its own, talked to over HTTP."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
import stripe


@dataclass
class Received:
    """One delivery as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    time: float

    @property
    def signature(self) -> str:
        return self.headers["Stripe-Signature"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Listener:
    """An endpoint that remembers what it got and answers what it is told."""

    url: str
    received: "queue.Queue[Received]" = field(default_factory=queue.Queue)
    #: Statuses to answer next; then 200.
    answers: list[int] = field(default_factory=list)

    def next(self, timeout: float = 5.0) -> Received:
        return self.received.get(timeout=timeout)

    def silent(self, seconds: float = 0.3) -> bool:
        try:
            self.received.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def listener() -> Iterator[Listener]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got = Received(self.path, dict(self.headers), body, time.time())
            status = target.answers.pop(0) if target.answers else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{target.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            target.received.put(got)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    target = Listener(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield target
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Sandbox:
    """A running sandbox and the ways to talk to it."""

    url: str
    process: "subprocess.Popen[str]"

    def client(self, key: str = "sk_test_integration", **options: Any) -> stripe.StripeClient:
        return stripe.StripeClient(key, base_addresses={"api": self.url}, **options)

    def control(self, method: str, path: str, **body: Any) -> Any:
        answer = requests.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, session_id: str, outcome: str = "verified", **body: Any) -> Any:
        return self.control("POST", f"sessions/{session_id}/submit", outcome=outcome, **body)

    def stop(self) -> float:
        """Stop by SIGTERM; return how long that took."""
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(timeout=5) == 0
        assert self.process.stdout
        self.process.stdout.close()
        return time.monotonic() - began


def start_one(*options: str) -> Sandbox:
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "serve", "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    return Sandbox(json.loads(line)["url"], process)


@pytest.fixture(scope="session")
def start() -> Callable[..., Sandbox]:
    """Start a sandbox that the caller stops."""
    return start_one


@pytest.fixture
def run() -> Iterator[Callable[..., Sandbox]]:
    """Start sandboxes that stop when the test ends."""
    started: list[Sandbox] = []

    def run_one(*options: str) -> Sandbox:
        started.append(start_one(*options))
        return started[-1]

    yield run_one
    for one in started:
        if one.process.poll() is None:
            one.stop()


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox for all tests that do not change it as a whole."""
    shared = start_one("--marker", "CANARY7Q")
    yield shared
    shared.stop()

"""A sandbox as its users run it: a process of its own, talked to over HTTP."""

import base64
import json
import queue
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

ROOT = Path(__file__).parents[3]
NODE_SDK = "stripe@23"  # of the same months as the Python SDK the tests run with


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


class Listener:
    """An endpoint in a process of its own, that tells what it got and answers what it is told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        self._lines = process.stdout
        self.url = json.loads(self._lines.readline())["url"]
        self._received: queue.Queue[Received] = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def answer(self, *statuses: int) -> None:
        """Answer these statuses next; then 200."""
        requests.post(f"{self.url}/_answers", json=statuses, timeout=120).raise_for_status()

    def next(self, timeout: float = 120) -> Received:
        return self._received.get(timeout=timeout)

    def silent(self, seconds: float = 0.3) -> bool:
        try:
            self._received.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def _read(self) -> None:
        for line in self._lines:
            got = json.loads(line)
            self._received.put(Received(**got | {"body": base64.b64decode(got["body"])}))


@pytest.fixture
def listener() -> Iterator[Listener]:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("listener.py")], stdout=subprocess.PIPE, text=True
    )
    listener = Listener(process)
    yield listener
    process.kill()
    process.wait(120)
    listener.reader.join(120)
    assert process.stdout
    process.stdout.close()


@dataclass
class Sandbox:
    """A running sandbox and the ways to talk to it."""

    url: str
    process: "subprocess.Popen[str]"

    def client(self, key: str = "sk_test_integration", **options: Any) -> stripe.StripeClient:
        return stripe.StripeClient(key, base_addresses={"api": self.url}, **options)

    def control(self, method: str, path: str, **body: Any) -> Any:
        answer = requests.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, session_id: str, outcome: str = "verified", **body: Any) -> Any:
        return self.control("POST", f"sessions/{session_id}/submit", outcome=outcome, **body)

    def stop(self) -> float:
        """Stop by SIGTERM; return how long that took."""
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(120) == 0
        assert self.process.stdout
        self.process.stdout.close()
        return time.monotonic() - began


MODULE = ("-m", "stripe_identity_sandbox")


def start_one(*options: str, program: tuple[str, ...] = MODULE) -> Sandbox:
    process = subprocess.Popen(
        [sys.executable, *program, "serve", "--port", "0", "--json", *options],
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
    """Start sandboxes that stop when the test ends; `program` is what python runs instead."""
    started: list[Sandbox] = []

    def run_one(*options: str, program: tuple[str, ...] = MODULE) -> Sandbox:
        started.append(start_one(*options, program=program))
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


@pytest.fixture(scope="session")
def faults_of() -> Callable[[str], list[str]]:
    """The kinds of faults "deliveries" or "the API" can have, as docs/sandbox.md lists them."""
    page = (ROOT / "docs" / "sandbox.md").read_text()

    def kinds(what: str) -> list[str]:
        table = page.partition(f"| kind | of {what} ")[2].partition("\n\n")[0]
        rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
        return re.findall(r"`(\w+)`", " ".join(rows))

    return kinds


@pytest.fixture(scope="session")
def node_sdk(node_package: Callable[[str], Path]) -> Path:
    return node_package(NODE_SDK)


@pytest.fixture(scope="session")
def line_of_the_page(sandbox: Sandbox) -> Callable[..., str]:
    """How docs/sandbox.md points a client of a language at a sandbox: at the one of the tests."""
    page = (ROOT / "docs" / "sandbox.md").read_text()

    def line(language: str, number: int = 0) -> str:
        block = re.findall(rf" *```{language}\n(.*?) *```", page, re.DOTALL)[number]
        assert "12111" in block
        return textwrap.dedent(block).strip().replace("12111", sandbox.url.rpartition(":")[2])

    return line

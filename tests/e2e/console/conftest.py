"""The web process with a console, as processes, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

ROOT = Path(__file__).parents[3]
SECRET = "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4"
PASSWORD = "correct horse battery"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SESSION = "vs_1TaWmxLkdIwHu7ixUdtHg3rQ"


@dataclass
class Console:
    """A web process whose console ann and guest may log in to, and what stands beside it."""

    processes: Any
    redis: Any
    wait_until: Callable[..., None]
    port: int
    folder: Path
    environment: dict[str, str]
    sandbox: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        hashes = [self.hash("ann"), self.hash("guest", "--read-only")]
        self.environment["CONSOLE_PASSWORD_HASH"] = ",".join(hashes)
        self.web, _ = self.processes.python(
            *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "1"),
            *("--bind", f"127.0.0.1:{self.port}", *options, "service.app:create_app()"),
            env=self.environment,
        )
        self.wait_until(self._ready)

    def hash(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "service", "console", "hash", *arguments],
            cwd=ROOT,
            input=f"{PASSWORD}\n",
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return done.stdout.strip().removeprefix("CONSOLE_PASSWORD_HASH='").removesuffix("'")

    def _ready(self) -> bool:
        with suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/readyz", timeout=120).status_code == 200
        return False

    def start_worker(self) -> None:
        hook = f"{self.url}/webhooks/stripe"
        _, said = self.processes.python(
            *("-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json"),
            *("--deliver-to", hook, "--secret", SECRET),
        )
        self.wait_until(lambda: said.read_text().endswith("}\n"))
        self.sandbox = json.loads(said.read_text())["url"]
        self.environment |= {
            "STRIPE_API_BASE": self.sandbox,
            "HANDLERS": "mending",
            "PYTHONPATH": str(ROOT / "tests" / "data" / "handlers"),
            "MENDED": str(self.folder / "mended"),
        }
        _, log = self.processes.python("-m", "workers", env=self.environment)
        self.wait_until(lambda: "worker_ready" in log.read_text())

    def mend(self) -> None:
        (self.folder / "mended").touch()

    def verify(self, outcome: str = "verified") -> str:
        """Take a new session through a whole verification; its id."""
        session = requests.post(
            f"{self.sandbox}/v1/identity/verification_sessions",
            data={"type": "document"},
            auth=("sk_test_console", ""),
            timeout=120,
        ).json()["id"]
        submit = f"{self.sandbox}/_sandbox/sessions/{session}/submit"
        requests.post(submit, json={"outcome": outcome}, timeout=120).raise_for_status()
        return str(session)

    def dead(self) -> int:
        with self.redis.client() as client:
            return int(client.zcard("iw:dead"))

    def done(self) -> int:
        with self.redis.client() as client:
            return len(list(client.scan_iter("iw:done:*")))

    def take(self, number: int) -> int:
        """Deliver as Stripe does, again after a 503: Redis may be kept for its 1.5 s."""
        for _ in range(20):
            status = self.deliver(number).status_code
            if status != 503:
                break
            time.sleep(0.3)
        return status

    def deliver(self, number: int) -> requests.Response:
        """Deliver an event of a session that nobody made, as Stripe would."""
        body = json.dumps(
            {
                "id": f"evt_{number}",
                "object": "event",
                "api_version": "2026-10-28.endive",
                "created": int(time.time()),
                "data": {"object": {"id": SESSION, "object": "identity.verification_session"}},
                "livemode": False,
                "type": "identity.verification_session.verified",
            }
        )
        signed = stripe.WebhookSignature.generate_signature_header(body, SECRET, int(time.time()))
        return requests.post(
            f"{self.url}/webhooks/stripe",
            data=body,
            headers={"Stripe-Signature": signed},
            timeout=120,
        )


def make(
    processes: Any, redis: Any, wait_until: Callable[..., None], port: int, folder: Path
) -> Console:
    environment = {
        "REDIS_URL": redis.url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_API_KEY": "sk_test_console",
    }
    console = Console(processes, redis, wait_until, port, folder, environment)
    console.start()
    return console


@pytest.fixture
def alone(processes, new_server, wait_until, free_port, tmp_path) -> Console:
    """A console beside which nothing runs: what is accepted waits."""
    return make(processes, new_server(), wait_until, free_port(), tmp_path)


@pytest.fixture(scope="module")
def console(session_processes, server, traces, wait_until, free_port, tmp_path_factory) -> Console:
    """A console with a worker, for all tests of a module; two sessions went through it.

    The one's event is dead, and the other's needs input.
    """
    redis = type(server)(session_processes, traces, tmp_path_factory.mktemp("redis"))
    redis.start()
    folder = tmp_path_factory.mktemp("console")
    console = make(session_processes, redis, wait_until, free_port(), folder)
    console.start_worker()
    console.verify()
    console.verify("document_expired")
    wait_until(lambda: (console.dead(), console.done()) == (1, 5))  # three of each session
    return console


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page; what the browser refuses or a script fails with fails the test."""
    contexts, complaints = [], []

    def note(said: ConsoleMessage) -> None:
        # Chromium says of each answer that is no 200 that it could not load it. What it only
        # informs of is no complaint: a field was filled in, e.g., before the page set the focus.
        if said.type != "info" and "Failed to load resource" not in said.text:
            complaints.append(said.text)

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 844}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def log_in() -> Callable[..., None]:
    def log_in(page: Page, console: Console, name: str = "ann", password: str = PASSWORD) -> None:
        page.goto(f"{console.url}/console/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password)
        with page.expect_navigation():  # what the test opens next would cut it off
            page.get_by_role("button", name="Log in").click()

    return log_in

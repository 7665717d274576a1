"""The whole service as processes, each with the rights and secrets of its role."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[3]
ROLES = ("web", "worker", "tool", "probe")
CANARY = "ZyxCanary7Q"  # of tests/conftest.py: every secret holds it, no trace may show it
SIGNING_SECRET = f"whsec_{CANARY}q7H2kP9sXv4LbN8wRt3YcZ6m"
API_KEY = f"sk_test_{CANARY}"
PASSWORDS = {role: f"{CANARY}-password-of-{role}" for role in ROLES}


@dataclass
class System:
    """A running service on a Redis with the users of deploy/redis-acl.conf."""

    processes: Any
    server: Any
    wait_until: Callable[..., None]
    children: Callable[[int], list[int]]
    port: int
    started: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)
    sandbox: str = ""

    def url(self, role: str) -> str:
        return f"redis://{role}:{PASSWORDS[role]}@127.0.0.1:{self.server.port}/0"

    def environment(self, role: str) -> dict[str, str]:
        given = {"web": {"STRIPE_WEBHOOK_SECRET": SIGNING_SECRET, "STRIPE_LIVEMODE": "0"}}
        key = {"STRIPE_API_KEY": API_KEY, "STRIPE_API_BASE": self.sandbox}
        return {
            "REDIS_URL": self.url(role),
            "LOG_LEVEL": "debug",
            **given.get(role, key),
        }

    def start(self) -> None:
        # The sandbox is Stripe's part, not ours: that it shows its secrets is its own affair.
        secrets_file = self.server.folder / "signing-secret"
        secrets_file.write_text(SIGNING_SECRET)
        hook = f"http://127.0.0.1:{self.port}/webhooks/stripe"
        _, said = self.processes.start(
            *("/bin/sh", "-c", f'exec "$0" "$@" --secret "$(cat {secrets_file})"'),
            *(sys.executable, "-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json"),
            *("--marker", CANARY, "--deliver-to", hook),
        )
        self.wait_until(lambda: said.read_text().endswith("}\n"))
        self.sandbox = json.loads(said.read_text())["url"]
        self.start_web(self.port)
        self._start("worker", "-m", "workers", "--no-periodic")
        self._start("periodic", "-m", "workers", "periodic")
        self.wait_until(self._ready)

    def start_web(self, port: int, **extra: str) -> None:
        """Start the web process, or a second one at a port of its own."""
        self._start(
            *("web", "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "1"),
            *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
            **extra,
        )
        self.wait_until(lambda: self._accepts(port))

    def _start(self, name: str, *command: str, **extra: str) -> None:
        role = "web" if name == "web" else "worker"
        self.started[name] = self.processes.python(*command, env=self.environment(role) | extra)

    def _ready(self) -> bool:
        return self._accepts(self.port) and "worker_ready" in self.log("worker")

    def _accepts(self, port: int) -> bool:
        with suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=120).status_code == 200
        return False

    def log(self, name: str) -> str:
        return self.started[name][1].read_text()

    def pids(self) -> dict[int, str]:
        """Every process of ours, the forked ones too, and which it belongs to."""
        return {
            pid: name
            for name, (process, _) in self.started.items()
            for pid in [process.pid, *self._descendants(process.pid)]
        }

    def _descendants(self, pid: int) -> list[int]:
        found = []
        for child in self.children(pid):
            found += [child, *self._descendants(child)]
        return found

    def worker_child(self) -> int:
        (child,) = self._descendants(self.started["worker"][0].pid)
        return child

    def verify(self) -> str:
        """Take a new session through a whole verification; its id."""
        made = requests.post(
            f"{self.sandbox}/v1/identity/verification_sessions",
            data={"type": "document"},
            auth=(API_KEY, ""),
            timeout=120,
        )
        session = made.json()["id"]
        requests.post(
            f"{self.sandbox}/_sandbox/sessions/{session}/submit",
            json={"outcome": "verified"},
            timeout=120,
        ).raise_for_status()
        return session

    def settle(self, session: str) -> None:
        """Wait until the session's `verified` event is done."""
        with self.server.client() as client:

            def done() -> bool:
                lines = [client.get(key) or b"" for key in client.scan_iter("iw:done:*")]
                return any(
                    line.startswith(b"verified\t") and session.encode() in line.split(b"\t")
                    for line in lines
                )

            self.wait_until(done)

    def command(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin"} | self.environment("tool"),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout


class Monitor:
    """What MONITOR shows while it runs: every command of every client and every script."""

    def __init__(self, port: int) -> None:
        self.seen = b""
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(b"MONITOR\r\n")
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while part := self._socket.recv(65_536):
                self.seen += part


@pytest.fixture
def monitor(traces):
    """Return a function that listens to all a server is told; the canary is searched in it."""

    def listen(server) -> Monitor:
        monitor = Monitor(server.port)
        traces.watch(lambda: [("the output of MONITOR", monitor.seen)])
        return monitor

    return listen


@pytest.fixture
def acl_server(new_server, tmp_path):
    """A server with our users; the default user stays on, for the test alone."""
    rules = (ROOT / "deploy/redis-acl.conf").read_text()
    for role, password in PASSWORDS.items():
        hashed = hashlib.sha256(password.encode()).hexdigest()
        rules = rules.replace(f"SHA256_OF_THE_PASSWORD_OF_{role.upper()}", hashed)
    rules = rules.replace("user default off", "")
    file = tmp_path / "acl.conf"
    file.write_text(rules)
    return new_server("--include", str(file))


@pytest.fixture
def system(processes, acl_server, free_port, wait_until, children) -> System:
    system = System(processes, acl_server, wait_until, children, free_port())
    system.start()
    return system

"""The whole service as processes: receiver, worker (with its periodic child), sandbox, Redis."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

ROOT = Path(__file__).parents[3]
SECRET = "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4"


@dataclass
class System:
    """A running service, and what a test asks of it."""

    processes: Any
    environment: dict[str, str]
    port: int
    effects_file: Path
    redis: Any
    wait_until: Callable[..., None]
    sandbox: str = ""
    workers: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def start(self, canary: str, forms: int = 1, **extra: str) -> None:
        self.environment |= extra
        hook = f"http://127.0.0.1:{self.port}/webhooks/stripe"
        _, said = self.processes.python(
            *(
                "-m",
                "stripe_identity_sandbox",
                "serve",
                "--port",
                "0",
                "--json",
                "--marker",
                canary,
            ),
            *("--deliver-to", hook, "--secret", SECRET),
            *(("--deliver-thin-to", hook, "--thin-secret", SECRET) if forms == 2 else ()),
        )
        self.wait_until(lambda: said.read_text().endswith("}\n"))
        self.sandbox = json.loads(said.read_text())["url"]
        self.environment["STRIPE_API_BASE"] = self.sandbox
        self.processes.python(
            *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "1"),
            *("--bind", f"127.0.0.1:{self.port}", "service.app:create_app()"),
            env=self.environment,
        )
        self.start_worker()
        self.wait_until(self.ready)

    def start_worker(self, **extra: str) -> subprocess.Popen[bytes]:
        process, log = self.processes.python("-m", "workers", env=self.environment | extra)
        self.workers.append((process, log))
        self.wait_until(lambda: "worker_started" in log.read_text())
        return process

    def ready(self) -> bool:
        try:
            answer = requests.get(f"http://127.0.0.1:{self.port}/readyz", timeout=120)
        except requests.ConnectionError:
            return False
        return answer.status_code == 200

    def verify(
        self, outcome: str = "verified", key: str = "sk_test_workers", behave: str = ""
    ) -> str:
        """Take a new session through a whole verification; its id."""
        session = requests.post(
            f"{self.sandbox}/v1/identity/verification_sessions",
            data={"type": "document"} | ({"metadata[behave]": behave} if behave else {}),
            auth=(key, ""),
            timeout=120,
        ).json()["id"]
        self.control(f"sessions/{session}/submit", outcome=outcome)
        return session

    def deliver(self, event: dict[str, Any]) -> int:
        """Deliver the event once more, as Stripe would; the status of the answer."""
        body = requests.get(
            f"{self.sandbox}/v1/events/{event['id']}", auth=("sk_test_workers", ""), timeout=120
        ).text
        signature = stripe.WebhookSignature.generate_signature_header(body, SECRET)
        return requests.post(
            f"http://127.0.0.1:{self.port}/webhooks/stripe",
            data=body.encode(),
            headers={"Stripe-Signature": signature},
            timeout=120,
        ).status_code

    def control(self, path: str, **body: str) -> Any:
        answer = requests.post(f"{self.sandbox}/_sandbox/{path}", json=body, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def command(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout

    def event(self, session: str, kind: str = "verified") -> dict[str, Any] | None:
        """What the inbox holds of this session's event of this kind."""
        listed = json.loads(self.command("service", "events", "list", "--json"))
        found = [e for e in listed if e["session"] == session and e["kind"] == kind]
        return found[0] if found else None

    def listed(self, state: str) -> list[dict[str, Any]]:
        return json.loads(self.command("service", "events", "list", "--json", "--state", state))

    def stripe_events(self, session: str) -> list[dict[str, Any]]:
        """The snapshot events that Stripe lists for this session."""
        answer = requests.get(
            f"{self.sandbox}/v1/events?limit=100", auth=("sk_test_workers", ""), timeout=120
        ).json()
        return [e for e in answer["data"] if e["data"]["object"]["id"] == session]

    def settled(self, session: str, *, state: str = "done", within: float = 120) -> dict[str, Any]:
        """Wait until the event of this session stands there; what the inbox holds of it."""
        event: dict[str, Any] | None = None
        seen, again = -1, 0.0

        def over() -> bool:
            nonlocal event, seen, again
            # The command costs half a second of CPU: it is asked when a worker has settled one.
            ends = self.worker_log().count('"event_settled"')
            if ends != seen or time.monotonic() > again:
                event = self.event(session)
                seen, again = ends, time.monotonic() + 5
            return event is not None and event["state"] == state

        self.wait_until(over, within=within)
        assert event is not None
        return event

    def effects(self) -> list[list[str]]:
        """Lines of event id, handler, pid, attempt, word, idempotency key."""
        return [line.split() for line in whole_lines(self.effects_file)]

    def words(self, handler: str) -> list[str]:
        return [line[4] for line in self.effects() if line[1] == handler]

    def running(self, handler: str = "second") -> int:
        """The process id of the worker that runs this handler, once it does."""
        self.wait_until(lambda: "started" in self.words(handler))
        return int(next(line[2] for line in self.effects() if line[1] == handler))

    def let_go(self) -> None:
        """End the wait of handlers that misbehave by "wait"."""
        self.effects_file.with_suffix(".go").touch()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What the workers logged under this name."""
        lines = [json.loads(line) for _, log in self.workers for line in whole_lines(log)]
        return [line for line in lines if line["event"] == name]

    def worker_log(self) -> str:
        return "".join(log.read_text() for _, log in self.workers)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others write to; its last one may not be whole yet."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.fixture
def system(processes, new_server, free_port, wait_until, canary, tmp_path):
    """Return a function that starts the service; environment variables as arguments."""

    def start(forms: int = 1, **extra: str) -> System:
        redis = new_server()
        system = System(
            processes=processes,
            redis=redis,
            environment={
                "PATH": "/usr/bin:/bin",
                "REDIS_URL": redis.url,
                "STRIPE_WEBHOOK_SECRET": SECRET,
                "STRIPE_API_KEY": "sk_test_workers",
                "HANDLERS": "effects",
                "PYTHONPATH": str(ROOT / "tests" / "data" / "handlers"),
                "EFFECTS": str(tmp_path / "effects"),
            },
            port=free_port(),
            effects_file=tmp_path / "effects",
            wait_until=wait_until,
        )
        system.start(canary, forms, **extra)
        return system

    return start

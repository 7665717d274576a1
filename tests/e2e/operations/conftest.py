"""A real Prometheus with the rules that are shipped, promtool, and the service as processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
SECRET = "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4"


def installed(name: str) -> str:
    """Return where a program is; without it the test fails in CI, and is left out elsewhere."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI has to have {name} (Debian: apt install prometheus)")
        pytest.skip(f"no {name} on this machine (Debian: apt install prometheus)")
    return found


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run promtool with these arguments."""
    program = installed("promtool")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=500, check=False
        )

    return run


class Prometheus:
    """A Prometheus without a past, which scrapes one web process every second.

    Its rules are the shipped ones, without the time that a state has to last (`for:`), which
    promtool tests.
    """

    def __init__(self, processes: Any, folder: Path, port: int, target: int) -> None:
        folder.mkdir()
        rules = re.sub(r"^ *for: .*\n", "", RULES.read_text(), flags=re.MULTILINE)
        (folder / "alerts.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 500ms}\n"
            "rule_files: [alerts.yml]\n"
            "scrape_configs:\n"
            "  - job_name: identity-webhooks\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
        )
        self._url = f"http://127.0.0.1:{port}"
        self.process, self.log = processes.start(
            installed("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        )

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire; none while it starts."""
        try:
            answer = requests.get(f"{self._url}/api/v1/alerts", timeout=120).json()
        except (requests.RequestException, ValueError):
            return set()
        alerts = answer["data"]["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def value(self, query: str) -> list[float]:
        """Return the values that a query has now."""
        try:
            answer = requests.get(f"{self._url}/api/v1/query", {"query": query}, timeout=120).json()
        except (requests.RequestException, ValueError):
            return []
        return [float(each["value"][1]) for each in answer["data"]["result"]]


@pytest.fixture
def prometheus(
    processes: Any, tmp_path: Path, free_port: Callable[[], int]
) -> Callable[[int], Prometheus]:
    """Start a Prometheus for the web process at this port; the one before it is stopped."""
    started: list[Prometheus] = []

    def start(target: int) -> Prometheus:
        if started:
            started[-1].process.terminate()
            started[-1].process.wait(120)
        folder = tmp_path / f"prometheus-{len(started)}"
        started.append(Prometheus(processes, folder, free_port(), target))
        return started[-1]

    return start


class Service:
    """The service as processes, and what happens to it."""

    def __init__(self, processes: Any, redis: Any, port: int, wait_until: Any, canary: str) -> None:
        self._processes, self.redis, self.port, self._wait_until = (
            processes,
            redis,
            port,
            wait_until,
        )
        _, said = processes.python(
            *("-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json"),
            *("--marker", canary),
        )
        wait_until(lambda: said.read_text().endswith("}\n"))
        self.sandbox = json.loads(said.read_text())["url"]
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "REDIS_URL": redis.url,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_KEY": "sk_test_workers",
            "STRIPE_API_BASE": self.sandbox,
            "HANDLERS": "effects",
            "PYTHONPATH": str(ROOT / "tests" / "data" / "handlers"),
        }
        processes.python(
            *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "2"),
            *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
            env=self.environment,
        )
        wait_until(lambda: self.get("/healthz") == 200)
        self.worker: subprocess.Popen[bytes] | None = None
        self._http = requests.Session()  # its connections are kept

    def get(self, path: str) -> int:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=120).status_code
        except requests.ConnectionError:
            return 0

    def page(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.port}/metrics", timeout=120).text

    def start_worker(self, **environment: str) -> None:
        """Start a worker, and wait until it is ready."""
        self.worker, log = self._processes.python(
            *("-m", "workers"), env=self.environment | environment
        )
        self._wait_until(lambda: "worker_ready" in log.read_text())

    def keep_reconciliation_out(self) -> None:
        """Have nothing taken in but what is delivered."""
        with self.redis.client() as client:
            client.set("iw:turn:reconcile", 10**15)

    def stop_worker(self) -> None:
        assert self.worker
        self.worker.terminate()
        assert self.worker.wait(120) == 0

    def deliver(
        self,
        number: str = "1",
        secret: str = SECRET,
        path: str = "/webhooks/stripe",
        *,
        kind: str = "identity.verification_session.created",
        livemode: bool = False,
        session: str = "vs_1",
    ) -> int:
        body = json.dumps(
            {
                "id": f"evt_{number}",
                "object": "event",
                "type": kind,
                "created": int(time.time()),
                "livemode": livemode,
                "data": {"object": {"id": session, "object": "identity.verification_session"}},
            }
        )
        signature = stripe.WebhookSignature.generate_signature_header(body, secret)
        return self._http.post(
            f"http://127.0.0.1:{self.port}{path}",
            data=body.encode(),
            headers={"Stripe-Signature": signature},
            timeout=120,
        ).status_code

    def deliver_many(self, count: int) -> None:
        """Deliver so many events, of sessions that Stripe does not know.

        As Stripe does, again after a 503: Redis may be kept for the 1.5 s that it has for one.
        """

        def taken(number: int) -> int:
            for _ in range(20):
                status = self.deliver(f"m{number}", session=f"vs_m{number}")
                if status != 503:
                    break
                time.sleep(0.3)
            return status

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(taken, range(count))) == {200}

    def verified(self, behave: str = "", **fields: str) -> str:
        """Have a session verified at Stripe; its id."""
        session: str = requests.post(
            f"{self.sandbox}/v1/identity/verification_sessions",
            data={"type": "document"} | fields | ({"metadata[behave]": behave} if behave else {}),
            auth=("sk_test_workers", ""),
            timeout=120,
        ).json()["id"]
        self.control(f"sessions/{session}/submit", outcome="verified")
        return session

    def deliver_verified(self, session: str) -> str:
        """Deliver that a session is verified; the key of the event."""
        number = session.removeprefix("vs_")
        kind = "identity.verification_session.verified"
        assert self.deliver(number, kind=kind, session=session) == 200
        return f"evt_{number}"

    def control(self, path: str, method: str = "POST", **body: Any) -> requests.Response:
        answer = requests.request(method, f"{self.sandbox}/_sandbox/{path}", json=body, timeout=120)
        answer.raise_for_status()
        return answer

    def restart_worker(self, **environment: str) -> None:
        self.stop_worker()
        self.start_worker(**environment)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def done(self, command: str, *arguments: str) -> str:
        """Have a command do its work; what it said."""
        done = self.command(*command.split(), *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed(self, *options: str) -> list[dict[str, Any]]:
        """Return the events that `events list` shows."""
        found: list[dict[str, Any]] = json.loads(self.done("service events list --json", *options))
        return found

    def state(self, key: str) -> str:
        """Return the state of an event."""
        return json.loads(self.done("service events show --json", key))["state"]

    def age(self, key: str, seconds: int) -> None:
        """Have an event have been accepted so long ago."""
        with self.redis.client() as client:
            client.hincrby(f"iw:evt:{key}", "accepted", -1000 * seconds)


@pytest.fixture
def service(processes, new_server, free_port, wait_until, canary) -> Service:
    return Service(processes, new_server(), free_port(), wait_until, canary)


def unsaid(status: subprocess.CompletedProcess[str], *words: str) -> list[str]:
    """Return which words do not stand in the first ten lines of `status` about what is not well."""
    assert status.returncode in {0, 1, 69}, status.stderr
    first = "\n".join(status.stdout.splitlines()[:10])
    return [each for each in words if each not in first]


@pytest.fixture
def drill(service, prometheus, wait_until, subtests) -> Callable[..., None]:
    """Let something happen while a Prometheus without a past looks, and see what is said."""

    def drill(
        happens: Callable[[], object],
        alerts: set[str],
        *said: str,
        cure: Callable[[], object] | None = None,
        cured: Callable[[], object] | None = None,
        before_first_scrape: bool = False,
    ) -> None:
        """Judge one drill.

        Args:
            happens: makes the incident.
            alerts: that have to fire.
            said: words of the first ten lines of `status`, beside the alerts' names.
            cure: what docs/operations.md says to do.
            cured: whether it helped; without it, whether the alerts are over. Those that look back
                for a quarter of an hour are not so soon.
            before_first_scrape: whether it happens before Prometheus looks.
        """
        with subtests.test(", ".join(sorted(alerts))):
            if before_first_scrape:
                happens()
            watching = prometheus(service.port)
            if not before_first_scrape:
                wait_until(lambda: watching.value("identity_webhooks_redis_up"))
                happens()
            wait_until(lambda: watching.firing() >= alerts)
            # A worker tells a second later what it has in hand.
            deadline = time.monotonic() + 120
            while missing := unsaid(status := service.command("service", "status"), *said, *alerts):
                assert time.monotonic() < deadline, f"{missing} not in {status.stdout}"
            if cure:
                cure()
                wait_until(cured or (lambda: not watching.firing() & alerts))

    return drill

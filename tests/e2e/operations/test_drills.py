"""Incident drills: the alert fires in a Prometheus that has just started, `status` names the cause.

The Prometheus is real, the rules are those that are shipped without their `for:` (test_rules.py has
promtool test that), the service runs as processes. Each drill is cured as docs/operations.md says.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
SECRET = "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4"
OTHER_SECRET = "whsec_T3RoZXJTZWNyZXRPZkFub3RoZXJFbmRwb2ludA"


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

    def get(self, path: str) -> int:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=5).status_code
        except requests.ConnectionError:
            return 0

    def page(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text

    def start_worker(self) -> None:
        self.worker, log = self._processes.python("-m", "workers", env=self.environment)
        self._wait_until(lambda: "worker_ready" in log.read_text())

    def stop_worker(self) -> None:
        assert self.worker
        self.worker.terminate()
        assert self.worker.wait(30) == 0

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
        return requests.post(
            f"http://127.0.0.1:{self.port}{path}",
            data=body.encode(),
            headers={"Stripe-Signature": signature},
            timeout=10,
        ).status_code

    def verified(self, behave: str = "") -> str:
        """Have a session verified at Stripe; its id."""
        session: str = requests.post(
            f"{self.sandbox}/v1/identity/verification_sessions",
            data={"type": "document"} | ({"metadata[behave]": behave} if behave else {}),
            auth=("sk_test_workers", ""),
            timeout=10,
        ).json()["id"]
        self.control(f"sessions/{session}/submit", outcome="verified")
        return session

    def deliver_verified(self, session: str) -> str:
        """Deliver that a session is verified; the key of the event."""
        number = session.removeprefix("vs_")
        kind = "identity.verification_session.verified"
        assert self.deliver(number, kind=kind, session=session) == 200
        return f"evt_{number}"

    def control(self, path: str, method: str = "POST", **body: Any) -> None:
        answer = requests.request(method, f"{self.sandbox}/_sandbox/{path}", json=body, timeout=10)
        answer.raise_for_status()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def age(self, key: str, seconds: int) -> None:
        """Have an event have been accepted so long ago."""
        with self.redis.client() as client:
            client.hincrby(f"iw:evt:{key}", "accepted", -1000 * seconds)


@pytest.fixture
def service(processes, new_server, free_port, wait_until, canary) -> Service:
    return Service(processes, new_server(), free_port(), wait_until, canary)


@pytest.fixture
def drill(service, prometheus, wait_until, subtests) -> Callable[..., None]:
    """Let something happen while a Prometheus without a past looks, and see what is said."""

    def drill(
        happens: Callable[[], object],
        alerts: set[str],
        *said: str,
        cure: Callable[[], object] | None = None,
        before_first_scrape: bool = False,
    ) -> None:
        with subtests.test(", ".join(sorted(alerts))):
            if before_first_scrape:
                happens()
            watching = prometheus(service.port)
            if not before_first_scrape:
                wait_until(lambda: watching.value("identity_webhooks_redis_up"))
                happens()
            wait_until(lambda: watching.firing() >= alerts, within=30)
            status = service.command("service", "status")
            first = "\n".join(status.stdout.splitlines()[:10])
            assert status.returncode in {1, 69}, status.stderr
            for each in (*said, *alerts):
                assert each in first, status.stdout
            if cure:
                cure()
                wait_until(lambda: not watching.firing() & alerts, within=30)

    return drill


def test_what_is_wrong_with_deliveries(service, drill, wait_until) -> None:
    """Nobody works; then the endpoint at Stripe is wrong in every way there is."""
    names = set(re.findall(r"^# TYPE (\w+)", service.page(), re.MULTILINE))
    rules = re.sub(r"#.*|docs/.*", "", RULES.read_text())
    assert names >= set(re.findall(r"\bidentity_webhooks_\w+", rules)), "what the rules ask for"

    # Two processes answer, and each tells what both have counted.
    assert [service.deliver(str(n)) for n in range(8)] == [200] * 8
    wait_until(lambda: 'web_deliveries_total{answer="new"} 8.0' in service.page())
    for _ in range(10):
        assert 'web_deliveries_total{answer="new"} 8.0' in service.page()
        assert "identity_webhooks_pending_events 8.0" in service.page()

    drill(
        lambda: None,
        {"NoWorker", "NoPeriodic"},
        "no worker lives: 8 events wait, the oldest is",
        "python -m workers",
        cure=service.start_worker,
    )
    drill(
        lambda: [
            service.deliver("a", livemode=True),
            service.deliver("b", kind="charge.succeeded"),
            service.deliver("c", path="/stripe/webhook"),
            service.deliver("d", OTHER_SECRET),
        ],
        {"WrongMode", "WrongEvents", "SignatureRefused"},
        "deliveries are refused for their signature",
        "compare STRIPE_WEBHOOK_SECRET",
        "deliveries of the other mode are not processed",
        "events of other types are delivered",
    )


def test_every_panel_of_the_dashboard_shows_something(service, prometheus, wait_until) -> None:
    service.start_worker()
    watching = prometheus(service.port)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20

    def silent() -> list[str]:
        """Work on, and return the queries that show nothing."""
        service.deliver_verified(service.verified())
        time.sleep(0.3)
        return [q for q in queries if not watching.value(q.replace("$__rate_interval", "20s"))]

    wait_until(lambda: not silent(), within=40)


def test_the_first_refusal_fires_also_before_the_first_scrape(service, drill) -> None:
    drill(
        lambda: service.deliver("d", OTHER_SECRET),
        {"SignatureRefused"},
        "SignatureRefused",
        before_first_scrape=True,
    )


def test_what_is_wrong_with_redis(service, drill) -> None:
    with service.redis.client() as client:
        service.start_worker()
        used = client.info("memory")["used_memory"]
        drill(
            lambda: [client.config_set("maxmemory", int(used * 1.1)), time.sleep(6)],
            {"RedisMemoryShort"},
            "above four fifths of its memory: give it more (maxmemory)",
            "done events are kept for",
            cure=lambda: client.config_set("maxmemory", 0),
        )
        drill(
            lambda: client.config_set("min-replicas-to-write", 1),
            {"RedisRefuses"},
            "min-replicas-to-write",
            "NOREPLICAS",
        )
        client.config_set("min-replicas-to-write", 0)
    drill(
        service.redis.stop,
        {"RedisRefuses"},
        "nothing listens there",
        cure=service.redis.start,
    )


def test_what_is_wrong_with_stripe_and_handlers(service, drill) -> None:
    service.environment["BEHAVIOUR"] = "never"  # at no attempt anything else
    service.start_worker()

    session = service.verified(behave="nothing")

    def refuse() -> None:
        service.control("faults", kind="error", status=401)
        service.deliver_verified(session)
        with service.redis.client() as client:
            client.delete("iw:turn:reconcile")

    def heal() -> None:
        service.control("faults", "DELETE")
        with service.redis.client() as client:
            client.delete("iw:pause", "iw:turn:reconcile")

    drill(
        refuse,
        {"StripeRefusesKey", "NotReconciled"},
        "no event is claimed for",
        "stripe: key 401",
        "STRIPE_API_KEY is refused: put a valid one in its place",
    )
    heal()

    def fail() -> None:
        service.deliver_verified(service.verified(behave="never"))
        service.age(service.deliver_verified(service.verified(behave="raise")), 7200)

    drill(
        fail,
        {"DeadEvents", "HandlerFails"},
        "1 dead: discarded; the last: effects.second: discarded:",
        "python -m service events list --state dead",
    )

"""Incident drills: the alert fires in a Prometheus that has just started, `status` names the cause.

The Prometheus is real, the rules are those that are shipped without their `for:` (test_rules.py has
promtool test that), the service runs as processes. Each drill is cured as docs/operations.md says.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
OTHER_SECRET = "whsec_T3RoZXJTZWNyZXRPZkFub3RoZXJFbmRwb2ludA"


@pytest.mark.walk
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
        return [q for q in queries if not watching.value(q.replace("$__rate_interval", "60s"))]

    wait_until(lambda: not silent())


def test_the_first_refusal_fires_also_before_the_first_scrape(service, drill) -> None:
    drill(
        lambda: service.deliver("d", OTHER_SECRET),
        {"SignatureRefused"},
        "SignatureRefused",
        before_first_scrape=True,
    )


@pytest.mark.walk
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


@pytest.mark.walk
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
        "1 dead: effects.second: discarded",
        "python -m service events list --state dead --handler effects.second --reason discarded",
    )

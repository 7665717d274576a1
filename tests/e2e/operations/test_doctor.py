"""`doctor` and `endpoint`: what is wrong at Stripe and here comes first, with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[3]
SECRET = "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4"
URL = "https://shop.example.com/webhooks/stripe"
SIX = [
    f"identity.verification_session.{kind}"
    for kind in ("created", "processing", "requires_input", "verified", "canceled", "redacted")
]
READS = ["verification_session_read", "event_read", "webhook_read"]


class Clinic:
    """A sandbox, a Redis, and commands on them."""

    def __init__(self, sandbox: str, redis_url: str) -> None:
        self.sandbox = sandbox
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "REDIS_URL": redis_url,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_KEY": "sk_test_workers",
            "STRIPE_API_BASE": sandbox,
        }

    def command(self, *arguments: str, **extra: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "workers", *arguments],
            cwd=ROOT,
            env=self.environment | extra,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def doctor(self, **extra: str) -> tuple[int, list[str]]:
        code, said = self.command("doctor", **extra)
        return code, said.splitlines()[:10]

    def key(self, *permissions: str) -> str:
        answer = requests.post(
            f"{self.sandbox}/_sandbox/keys",
            json={"kind": "restricted", "permissions": permissions},
            timeout=120,
        )
        answer.raise_for_status()
        return answer.json()["key"]

    def register(self, *events: str, **more: Any) -> str:
        answer = requests.post(
            f"{self.sandbox}/v1/webhook_endpoints",
            data={"url": URL, "enabled_events[]": events} | more,
            auth=("sk_test_workers", ""),
            timeout=120,
        )
        answer.raise_for_status()
        return answer.json()["id"]

    def remove_endpoints(self) -> None:
        for path in ("v1/webhook_endpoints", "v2/core/event_destinations"):
            there = f"{self.sandbox}/{path}"
            listed = requests.get(there, auth=("sk_test_workers", ""), timeout=120).json()["data"]
            for each in listed:
                requests.delete(f"{there}/{each['id']}", auth=("sk_test_workers", ""), timeout=120)


@pytest.fixture(scope="module")
def _sandbox(session_processes, wait_until, canary) -> str:
    _, said = session_processes.python(
        *("-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json", "--marker", canary)
    )
    wait_until(lambda: said.read_text().endswith("}\n"))
    return json.loads(said.read_text())["url"]


@pytest.fixture
def clinic(_sandbox, server, redis) -> Clinic:
    clinic = Clinic(_sandbox, server.url)
    clinic.remove_endpoints()
    return clinic


def test_before_a_start_neither_redis_nor_an_endpoint_has_to_be_there(clinic) -> None:
    away = {"REDIS_URL": "redis://127.0.0.1:1"}
    code, said = clinic.command("doctor", "--before-start", **away)
    assert code == 0, said
    assert "may read sessions, reports, events" in said
    for wrong, fault in (
        ({"STRIPE_API_KEY": clinic.key("event_read")}, "may not read sessions"),
        ({"HANDLERS": "no_such_plugin"}, "No module named 'no_such_plugin'"),
        ({"STRIPE_WEBHOOK_SECRET": "whsec_short"}, "STRIPE_WEBHOOK_SECRET: "),
    ):
        code, said = clinic.command("doctor", "--before-start", **away | wrong)
        assert code != 0, said
        assert fault in said
    code, said = clinic.command("doctor", "--before-start", STRIPE_API_BASE="http://127.0.0.1:1")
    assert code == 0, said
    assert "unknown  STRIPE_API_KEY: Stripe does not answer as hoped" in said


@pytest.mark.sample(1)
@pytest.mark.parametrize("form", ["snapshot", "thin"])
def test_an_endpoint_that_is_made_is_found_good(form, clinic, request) -> None:
    code, said = clinic.command("endpoint", "check")
    assert code == 1
    assert "nothing at Stripe sends events of Identity: python -m workers endpoint create" in said

    thin = ["--thin"] if form == "thin" else []
    code, made = clinic.command("endpoint", "create", URL, *thin, "--json")
    assert code == 0, made
    assert json.loads(made)["secret"].startswith("whsec_")
    assert json.loads(made)["form"] == form

    code, said = clinic.command("endpoint", "check")
    assert code == 0, said
    assert f"({form}) sends the six events" in said


def test_an_endpoint_is_not_made_for_another_path(clinic) -> None:
    code, said = clinic.command("endpoint", "create", "https://shop.example.com/hooks")
    assert code == 2
    assert "the path should be /webhooks/stripe" in said


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("events", "said"),
    [
        (SIX[:5], "lacks identity.verification_session.redacted: add it"),
        ([*SIX, "charge.succeeded"], "sends charge.succeeded beside: take it out"),
        (["*"], "sends every event there is: choose the six of Identity"),
    ],
    ids=["one too few", "one too many", "all"],
)
def test_wrong_events_are_among_the_first_that_the_doctor_says(events, said, clinic) -> None:
    clinic.register(*events)
    code, first = clinic.doctor()
    assert code == 1
    assert any(line.startswith("bad ") and said in line for line in first), first


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("event_read", "STRIPE_API_KEY: may not read events (list: forbidden 403"),
        ("verification_session_read", "STRIPE_API_KEY: may not read sessions (forbidden 403"),
        ("webhook_read", "STRIPE_API_KEY may not read webhook endpoints"),
    ],
)
def test_a_right_that_a_key_lacks_is_named(lacking, said, clinic) -> None:
    clinic.register(*SIX)
    key = clinic.key(*[each for each in READS if each != lacking])
    _, first = clinic.doctor(STRIPE_API_KEY=key)
    assert any(said in line for line in first), first


def test_a_key_that_is_revoked_is_named(clinic) -> None:
    key = clinic.key(*READS)
    requests.post(f"{clinic.sandbox}/_sandbox/keys/revoke", json={"key": key}, timeout=120)
    code, first = clinic.doctor(STRIPE_API_KEY=key)
    assert code == 1
    assert any("STRIPE_API_KEY: is revoked, expired or mistyped" in line for line in first)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"STRIPE_RESTRICTED_KEY": "rk_live_abcdefgh"}, "STRIPE_RESTRICTED_KEY: is of live mode"),
        ({"HANDLERS": "no_such_module"}, "plugins: "),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "redis: cannot be asked: nothing listens there"),
    ],
    ids=["mode of a key", "plugin", "redis"],
)
def test_what_is_wrong_here_is_named(extra, said, clinic) -> None:
    code, first = clinic.doctor(**extra)
    assert code in {1, 78}
    assert any(said in line for line in first), first


def test_what_status_sees_the_doctor_says_too(clinic) -> None:
    _, first = clinic.doctor()
    assert any(line.startswith("bad      NoWorker: no worker lives") for line in first), first


def test_a_finding_is_data_with_json(clinic) -> None:
    clinic.register(*SIX)
    _, said = clinic.command("doctor", "--json")
    found: list[dict[str, Any]] = json.loads(said)
    bad = {each["name"] for each in found if each["state"] == "bad"}
    good = {each["name"] for each in found if each["state"] == "good"}
    assert bad == {"NoWorker", "NoPeriodic"}
    assert good >= {"settings", "plugins", "clock", "STRIPE_API_KEY", "endpoint", "version"}

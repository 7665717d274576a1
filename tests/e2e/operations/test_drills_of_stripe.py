"""Drills: Stripe refuses, limits, is slow or gone, or a key lacks a right."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.walk

SESSION = "GET /v1/identity/verification_sessions/*"


@pytest.mark.parametrize(
    ("fault", "alert", "said"),
    [
        pytest.param(
            {"kind": "error", "status": 403, "route": SESSION},
            "StripeRefusesKey",
            ("stripe: forbidden 403", "python -m workers doctor says what each key may read"),
            id="403",
        ),
        pytest.param(
            {"kind": "error", "status": 500, "route": SESSION},
            "StripeFails",
            ("stripe: broken 500", "Stripe's Dashboard"),
            id="500",
        ),
        pytest.param(
            {"kind": "timeout", "seconds": 0.2, "route": SESSION},
            "StripeFails",
            ("stripe: unreachable",),
            id="down",
        ),
        pytest.param(
            {"kind": "slow", "seconds": 15, "route": SESSION},
            "StripeFails",
            ("stripe: unreachable",),
            id="slow",
        ),
        pytest.param(
            {"kind": "rate_limit", "retry_after": 60, "route": SESSION},
            "Paused",
            ("stripe: limited 429", "lower STRIPE_API_RATE"),
            id="429",
        ),
    ],
)
def test_what_stripe_answers(fault, alert, said, service, drill) -> None:
    service.keep_reconciliation_out()
    service.start_worker()
    session = service.verified()
    key = f"evt_{session.removeprefix('vs_')}"

    def fail() -> None:
        service.control("faults", **fault)
        service.deliver_verified(session)
        service.age(key, 120)

    def heal() -> None:
        service.control("faults", "DELETE")
        if alert == "Paused":
            service.done("service events resume")
        service.command("service", "events", "retry-now", key)  # it may be under way

    drill(fail, {alert}, *said, cure=heal, cured=lambda: service.state(key) == "done")


def test_a_key_that_may_not_list_events(service, drill) -> None:
    lacking = service.control(
        "keys", kind="restricted", permissions=["verification_session_read"]
    ).json()["key"]

    drill(
        lambda: service.start_worker(STRIPE_API_KEY=lacking),
        {"NotReconciled"},
        "reconciliation of one's own account failed",
        "forbidden 403",
        cure=lambda: [service.restart_worker(), service.done("workers reconcile")],
    )
    service.environment["STRIPE_API_KEY"] = lacking
    doctor = service.command("workers", "doctor")
    assert doctor.returncode == 1
    assert "STRIPE_API_KEY: may not read events" in "\n".join(doctor.stdout.splitlines()[:10])

"""Every answer of `service.receiver`, whole: its body, its headers, its log line and its counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis as redis_py
from redis import Redis

from identity_webhooks.event import Event
from service import findings
from service.inbox import AcceptResult
from service.metrics import Metrics
from service.receiver import JsonResponse, Receiver, readiness
from service.redis_errors import explain
from service.settings import Settings
from service.signature import Secret, sign

SECRET = "whsec_q7H2kP9sXv4LbN8wRt3YcZ6m"
KEY = Secret("default", SECRET.encode())
EVENT = Event("evt_1", "verified", "snapshot", "vs_1", 1_790_000_000, False, "acct_1")
PLAIN = (
    ("Content-Type", "application/json"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'"),
)
LATER = (*PLAIN, ("Retry-After", "30"))


@pytest.fixture
def metrics(redis: Redis) -> Iterator[Metrics]:
    metrics = Metrics(redis)
    yield metrics
    metrics.end()


@pytest.fixture
def receiver(metrics: Metrics) -> Receiver:
    given = {"stripe_webhook_secret": SECRET, "stripe_livemode": False}
    return Receiver(Settings(redis_url="redis://127.0.0.1:1", **given), metrics)


@pytest.mark.parametrize(
    ("status", "reason", "advice"),
    [
        (400, "malformed_header", "was this sent by Stripe?"),
        (400, "signature_mismatch", "check that STRIPE_WEBHOOK_SECRET is this endpoint's"),
        (400, "signature_expired", "check this machine's clock"),
        (413, "body_too_large", "the limit is 262144 bytes"),
        (400, "body_unreadable", "the body is not as its headers say"),
        (411, "body_not_handed_on", "the command of the Procfile"),
    ],
)
def test_a_refusal(status, reason, advice, receiver, metrics, said) -> None:
    answer = receiver.refuse(status, reason)
    hint = answer.content["hint"]
    assert advice in hint
    assert answer == JsonResponse(status, {"received": False, "error": reason, "hint": hint})
    assert answer.headers == PLAIN
    assert said() == [
        {"event": "delivery_refused", "level": "warning", "status": status, "reason": reason}
    ]
    assert metrics.counts() == {f"refusals|{reason}": 1}


@pytest.mark.parametrize(
    ("result", "status", "level", "hint"),
    [
        *((result, 200, "info", None) for result in ("new", "pending", "done", "reopened", "dead")),
        (AcceptResult.FULL, 503, "error", findings.INBOX_IS_FULL),
        (AcceptResult.MEMORY_SHORT, 503, "error", findings.MEMORY_IS_SHORT),
    ],
)
def test_what_the_inbox_answers(result, status, level, hint, receiver, metrics, said) -> None:
    answer = receiver.accepted(EVENT, AcceptResult(result))
    assert answer == JsonResponse(status, {"received": status == 200, "answer": result})
    assert answer.headers == (PLAIN if status == 200 else LATER)
    assert said() == [line_of(result, status, level, hint)]
    assert metrics.counts() == {f"deliveries|{result}": 1}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (redis_py.OutOfMemoryError("OOM"), "memory_short"),
        (redis_py.ReadOnlyError("READONLY"), "redis_failed"),
        (redis_py.ConnectionError("refused"), "redis_failed"),
        (redis_py.TimeoutError("late"), "redis_failed"),
    ],
)
def test_what_redis_fails_with(error, reason, receiver, metrics, said) -> None:
    answer = receiver.failed(EVENT, error)
    assert answer == JsonResponse(503, {"received": False, "answer": reason})
    assert answer.headers == LATER
    cause = {name: value for name, value in explain(error).fields().items() if value}
    assert said() == [line_of(reason, 503, "error", None) | cause]
    assert metrics.counts() == {f"deliveries|{reason}": 1}


@pytest.mark.parametrize("body", [b"", b"{}", b"{", b"\xff", b"[" * 100], ids=repr)
@pytest.mark.parametrize("proven", [False, True])
def test_a_body_is_read_when_it_is_proven_whose_it_is(body, proven, receiver, metrics) -> None:
    now = int(time.time())
    signed = sign(body, KEY, now=now) if proven else f"t={now},v1={'0' * 64}"
    reason = "malformed_event" if proven else "signature_mismatch"
    assert receiver.decide(body, signed).content["error"] == reason
    verified = {"verified_with|default": 1} if proven else {}
    assert metrics.counts() == {f"refusals|{reason}": 1} | verified


@pytest.mark.parametrize("answer", ["ignored", "other_mode"])
def test_what_is_not_ours_is_counted_and_a_mode_is_said(answer, receiver, metrics, said) -> None:
    body = {
        "id": "evt_1",
        "object": "event",
        "type": "charge.succeeded"
        if answer == "ignored"
        else "identity.verification_session.verified",
        "created": EVENT.created,
        "livemode": True,
        "account": "acct_1",
        "data": {"object": {"id": "vs_1", "object": "identity.verification_session"}},
    }
    raw = msgspec.json.encode(body)
    given = receiver.decide(raw, sign(raw, KEY, now=int(time.time())))
    assert given == JsonResponse(200, {"received": True, "answer": answer})
    hint = "not processed: change the endpoint to the other mode, or STRIPE_LIVEMODE"
    lines = [line_of(answer, 200, "warning", hint)] if answer == "other_mode" else []
    assert said() == lines
    assert metrics.counts() == {f"deliveries|{answer}": 1, "verified_with|default": 1}


@pytest.mark.parametrize(("faults", "status"), [([], 200), (["no Redis", "no room"], 503)])
def test_readiness(faults, status) -> None:
    answer = readiness(faults)
    assert answer == JsonResponse(status, {"ready": status == 200, "faults": faults})


def line_of(reason: str, status: int, level: str, hint: str | None) -> dict[str, Any]:
    """Return what is logged of `EVENT`."""
    line = {
        "event": "delivery_answered",
        "level": level,
        "reason": reason,
        "status": status,
        "event_id": "evt_1",
        "kind": "verified",
        "form": "snapshot",
        "session_id": "vs_1",
        "account": "acct_1",
    }
    return line | ({"hint": hint} if hint else {})

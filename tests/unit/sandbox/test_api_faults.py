"""Faults of the API: what is answered, and what happened all the same."""

import re
from typing import Any

import pytest

from stripe_identity_sandbox.faults import API, DELIVERY, Faults

from .conftest import SESSIONS, Api


@pytest.mark.parametrize(
    ("fault", "status", "code", "retry"),
    [
        ({"kind": "rate_limit"}, 429, "rate_limit", "false"),
        ({"kind": "lock_timeout"}, 429, "lock_timeout", "true"),
        ({"kind": "error"}, 500, None, "true"),
        ({"kind": "error", "status": 503}, 503, None, "true"),
        ({"kind": "timeout", "seconds": 0.01}, 500, None, "true"),
    ],
)
def test_instead_of_an_answer(
    api: Api, fault: dict[str, Any], status: int, code: str | None, retry: str
) -> None:
    api.control("faults", next=1, **fault)
    answer = api.post(SESSIONS, "type=document", Idempotency_Key="k")
    assert answer.status_code == status
    assert api.error(answer).get("code") == code
    assert answer.headers["Stripe-Should-Retry"] == retry
    assert not api.world.sessions
    assert api.post(SESSIONS, "type=document", Idempotency_Key="k").status_code == 200


def test_after_the_operation(api: Api) -> None:
    api.control("faults", kind="error", after=True, next=1)
    lost = api.post(SESSIONS, "type=document", Idempotency_Key="k")
    again = api.post(SESSIONS, "type=document", Idempotency_Key="k")
    assert (lost.status_code, again.status_code) == (500, 200)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(api.world.sessions) == 1


def test_saved_for_the_key(api: Api) -> None:
    api.control("faults", kind="error", saved=True, next=1)
    first = api.post(SESSIONS, "type=document", Idempotency_Key="k")
    again = api.post(SESSIONS, "type=document", Idempotency_Key="k")
    assert first.status_code == again.status_code == 500
    assert first.data == again.data


def test_slow_and_cut(api: Api) -> None:
    api.control("faults", kind="slow", seconds=0.01, next=1)
    assert api.get(SESSIONS).status_code == 200
    whole = api.get(SESSIONS).data
    api.control("faults", kind="cut", next=1)
    cut = api.get(SESSIONS)
    assert cut.headers["Content-Length"] == str(len(whole))
    assert whole.startswith(cut.data)
    assert len(cut.data) == len(whole) // 2


def test_other_routes_are_spared(api: Api) -> None:
    api.control("faults", kind="error", route=f"GET {SESSIONS}*")
    assert api.post(SESSIONS, "type=document").status_code == 200
    assert api.get(SESSIONS).status_code == 500
    assert api.client.delete("/_sandbox/faults").json == {"cleared": 1}
    api.control("faults", kind="rate_limit", route="/v1/events", retry_after=3)
    assert api.get(SESSIONS).status_code == 200
    assert api.get("/v1/events").headers["Retry-After"] == "3"


VALUES = {
    "endpoint": "we_x", "event_type": "*", "route": "/v1/*", "times": 2, "bytes": 3, "status": 503,
    "retry_after": 1, "seconds": 1, "after": True, "saved": True, "id": "mine", "struck": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", {**DELIVERY, **API})
def test_a_field_that_means_nothing_to_a_kind_is_refused(api: Api, kind: str) -> None:
    """Who asks for errors of one endpoint's deliveries would get errors of every call."""
    words = set(re.findall(r"`(\w+)`", {**DELIVERY, **API}[kind]))
    taken = set()
    for name, value in VALUES.items():
        answer = api.control("faults", kind=kind, **{name: value})
        if answer.status_code == 200:
            taken.add(name)
            assert answer.json[name] == value
        else:
            assert f"A fault of kind {kind} has no {name}; it has: " in answer.text
        assert api.control("faults", kind=kind, next=1, rate=0.5, **{name: None}).status_code == 200
    where = {"endpoint", "event_type"} if kind in DELIVERY else {"route"}
    lost = {"after"} if kind in {"rate_limit", "lock_timeout", "error", "timeout"} else set()
    own = {"seconds"} if kind in {"stale_timestamp", "future_timestamp"} else words
    assert taken == where | own | lost


@pytest.mark.parametrize(
    "where",
    [
        {"kind": "error", "route": "v1/identity"},
        {"kind": "error", "route": "PUT /v1/*"},
        {"kind": "error", "route": "GET"},
        {"kind": "error", "route": ""},
        {"kind": "drop", "event_type": "verified"},
        {"kind": "drop", "event_type": "identity.verification_session.done"},
        {"kind": "drop", "event_type": ""},
    ],
    ids=str,
)
def test_a_fault_that_could_never_strike_is_refused(api: Api, where: dict[str, str]) -> None:
    refused = api.control("faults", **where)
    assert refused.status_code == 400
    assert "is no route; try" in refused.text or "No event is called" in refused.text


@pytest.mark.parametrize("route", ["get /v1/*", " GET  /v1/*", "*", "GET *", f"GET {SESSIONS}"])
def test_spellings_of_a_route(api: Api, route: str) -> None:
    api.control("faults", kind="error", route=route, next=1)
    assert api.get(SESSIONS).status_code == 500


@pytest.mark.parametrize(
    ("pattern", "struck"),
    [
        ("*.created", {"snapshot", "thin"}),
        ("identity.verification_session.created", {"snapshot", "thin"}),
        ("v1.identity.verification_session.created", {"thin"}),
        ("v1.*", {"thin"}),
        ("*.verified", set()),
    ],
)
def test_the_names_of_both_forms(pattern: str, struck: set[str]) -> None:
    faults = Faults()
    faults.add({"kind": "drop", "event_type": pattern})
    name = "identity.verification_session.created"
    forms = {
        form
        for form, thin in (("snapshot", False), ("thin", True))
        if faults.for_delivery("we_1", "http://x.example", name, thin=thin, first=True)
    }
    assert forms == struck

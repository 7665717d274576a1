"""Deliveries to a real listener."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import stripe

from .conftest import SECRET, THIN_SECRET, Listener, Sandbox

Run = Callable[..., Sandbox]
FAST = ("--retry-after-scale", "0.00002")  # the hour before the second try is 72 ms


@pytest.fixture
def delivering(run: Run, listener: Listener) -> Sandbox:
    return run("--deliver-to", f"{listener.url}/hook", "--secret", SECRET, *FAST)


def create(sandbox: Sandbox, **params: Any) -> Any:
    return sandbox.client().v1.identity.verification_sessions.create({"type": "document", **params})


def settled(sandbox: Sandbox, count: int = 1) -> list[Any]:
    """Return the deliveries once so many are no longer under way."""
    for _ in range(100):
        deliveries = sandbox.control("GET", "deliveries")
        done = [d for d in deliveries if d["state"] not in {"pending", "sending"}]
        if len(done) >= count:
            return list(deliveries)
        time.sleep(0.05)
    raise AssertionError(f"still under way: {deliveries}")


def test_every_change_arrives_signed_and_the_sdk_takes_it(
    delivering: Sandbox, listener: Listener
) -> None:
    session = create(delivering)
    delivering.submit(session.id, "selfie_face_mismatch")
    delivering.submit(session.id)
    types = []
    for _ in range(5):
        got = listener.next()
        event = stripe.Webhook.construct_event(got.body, got.signature, SECRET)
        assert event.data.object["id"] == session.id
        types.append(event.type.rpartition(".")[2])
    assert sorted(types) == sorted(
        ["created", "processing", "requires_input", "processing", "verified"]
    )
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"


def test_thin_events_are_parsed_and_fetched_by_the_sdk(run: Run, listener: Listener) -> None:
    sandbox = run("--deliver-thin-to", listener.url, "--thin-secret", THIN_SECRET)
    session = create(sandbox)
    got = listener.next()
    client = sandbox.client()
    notification = client.parse_event_notification(got.body, got.signature, THIN_SECRET)
    assert notification.type == "v1.identity.verification_session.created"
    assert notification.fetch_related_object().id == session.id  # type: ignore[union-attr]
    full = notification.fetch_event()
    assert client.v1.events.retrieve(full["snapshot_event"]).data.object["id"] == session.id


def test_a_failed_delivery_is_tried_again_with_a_fresh_signature(
    delivering: Sandbox, listener: Listener
) -> None:
    listener.answers += [500, 301]
    create(delivering)
    first, second, third = (listener.next() for _ in range(3))
    assert first.json["id"] == second.json["id"] == third.json["id"]
    assert third.path == "/hook", "a redirect is a failure and is not followed"
    (delivery,) = settled(delivering)
    assert [a["status"] for a in delivery["attempts"]] == [500, 301, 200]
    assert delivery["state"] == "delivered"


def test_after_three_tries_it_is_given_up_and_can_be_sent_again(
    delivering: Sandbox, listener: Listener
) -> None:
    listener.answers += [500] * 3
    create(delivering)
    bodies = [listener.next().json for _ in range(3)]
    (delivery,) = settled(delivering)
    assert delivery["state"] == "failed"
    assert listener.silent()
    event = delivery["event"]
    client = delivering.client()
    assert client.v1.events.retrieve(event).pending_webhooks == 1
    assert [e.id for e in client.v1.events.list({"delivery_success": False})] == [event]

    delivering.control("POST", f"events/{event}/resend")
    assert listener.next().json == bodies[0]
    time.sleep(0.1)
    assert client.v1.events.retrieve(event).pending_webhooks == 0
    assert [e.id for e in client.v1.events.list({"delivery_success": True})] == [event]


def test_connected_accounts_events_say_whose_they_are(run: Run, listener: Listener) -> None:
    both = ("--deliver-to", listener.url, "--secret", SECRET)
    thin = ("--deliver-thin-to", f"{listener.url}/thin", "--thin-secret", THIN_SECRET)
    sandbox = run(*both, *thin)
    session = sandbox.client().v1.identity.verification_sessions.create(
        {"type": "document"}, {"stripe_account": "acct_connected"}
    )
    got = {
        "thin" if r.path == "/thin" else "snapshot": r for r in (listener.next(), listener.next())
    }
    assert got["snapshot"].json["account"] == "acct_connected"
    assert got["thin"].json["context"] == "acct_connected"
    client = sandbox.client()
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.identity.verification_sessions.retrieve(session.id)
    assert caught.value.http_status == 404
    notification = client.parse_event_notification(
        got["thin"].body, got["thin"].signature, THIN_SECRET
    )
    assert notification.fetch_related_object().id == session.id  # type: ignore[union-attr]


def test_bodies_hold_no_personal_data(run: Run, listener: Listener) -> None:
    sandbox = run("--deliver-to", listener.url, "--secret", SECRET, "--marker", "CANARY")
    session = create(sandbox)
    sandbox.submit(session.id)
    assert not any(b"CANARY" in listener.next().body for _ in range(3))
    seen = sandbox.client("rk_test_x").v1.identity.verification_sessions.retrieve(
        session.id, {"expand": ["verified_outputs.id_number", "last_verification_report"]}
    )
    assert json.dumps(seen.to_dict(), default=str).count("CANARY") >= 10

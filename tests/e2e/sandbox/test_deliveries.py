"""Deliveries to a real listener."""

import contextlib
import itertools
import json
import math
import time
from typing import Any

import pytest
import stripe

SECRET, THIN_SECRET = "whsec_snapshot_test", "whsec_thin_test"
FAST = ("--retry-after-scale", "0.00002")  # the hour before the second try is 72 ms


@pytest.fixture
def delivering(run: Any, listener: Any) -> Any:
    return run("--deliver-to", f"{listener.url}/hook", "--secret", SECRET, *FAST)


def create(sandbox: Any, **params: Any) -> Any:
    return sandbox.client().v1.identity.verification_sessions.create({"type": "document", **params})


def settled(sandbox: Any, count: int = 1) -> list[Any]:
    """Return the deliveries once so many are no longer under way."""
    for _ in range(1000):
        deliveries = sandbox.control("GET", "deliveries")
        done = [d for d in deliveries if d["state"] not in {"pending", "sending"}]
        if len(done) >= count:
            return list(deliveries)
        time.sleep(0.05)
    raise AssertionError(f"still under way: {deliveries}")


def held_back(sandbox: Any) -> None:
    """Wait until a fault has put the only delivery off, by more than a minute."""
    for _ in range(1000):
        (delivery,) = sandbox.control("GET", "deliveries")
        if (delivery["next_try"] or 0) > sandbox_now(sandbox) + 60:
            return
        time.sleep(0.05)
    raise AssertionError(f"not put off: {delivery}")


def test_every_change_arrives_signed_and_the_sdk_takes_it(delivering: Any, listener: Any) -> None:
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


def test_in_order_each_event_is_answered_before_the_next(run: Any, listener: Any) -> None:
    sandbox = run("--in-order", "--deliver-to", f"{listener.url}/slow", "--secret", SECRET)
    for _ in range(5):
        sandbox.submit(create(sandbox).id)
    expected = [event.id for event in sandbox.client().v1.events.list({"limit": 100})][::-1]
    got = [listener.next() for _ in expected]
    assert [one.json["id"] for one in got] == expected
    assert all(later.time - one.time >= 0.05 for one, later in itertools.pairwise(got))


def test_thin_events_are_parsed_and_fetched_by_the_sdk(run: Any, listener: Any) -> None:
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
    delivering: Any, listener: Any
) -> None:
    listener.answer(500, 301)
    create(delivering)
    first, second, third = (listener.next() for _ in range(3))
    assert first.json["id"] == second.json["id"] == third.json["id"]
    assert third.path == "/hook", "a redirect is a failure and is not followed"
    (delivery,) = settled(delivering)
    assert [a["status"] for a in delivery["attempts"]] == [500, 301, 200]
    assert delivery["state"] == "delivered"


def test_after_three_tries_it_is_given_up_and_can_be_sent_again(
    delivering: Any, listener: Any, wait_until: Any
) -> None:
    listener.answer(*[500] * 3)
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
    wait_until(lambda: client.v1.events.retrieve(event).pending_webhooks == 0)
    assert [e.id for e in client.v1.events.list({"delivery_success": True})] == [event]


def test_connected_accounts_events_say_whose_they_are(run: Any, listener: Any) -> None:
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


def test_bodies_hold_no_personal_data(run: Any, listener: Any) -> None:
    sandbox = run("--deliver-to", listener.url, "--secret", SECRET, "--marker", "CANARY")
    session = create(sandbox)
    sandbox.submit(session.id)
    assert not any(b"CANARY" in listener.next().body for _ in range(3))
    seen = sandbox.client("rk_test_x").v1.identity.verification_sessions.retrieve(
        session.id, {"expand": ["verified_outputs.id_number", "last_verification_report"]}
    )
    assert json.dumps(seen.to_dict(), default=str).count("CANARY") >= 10


# -- faults ------------------------------------------------------------------------------------


def test_a_duplicate_is_the_same_event_again(delivering: Any, listener: Any) -> None:
    delivering.control("POST", "faults", kind="duplicate", times=2, next=1)
    create(delivering)
    create(delivering)
    ids = [listener.next().json["id"] for _ in range(4)]
    assert sorted(ids.count(one) for one in set(ids)) == [1, 3]
    assert listener.silent()


def test_a_reordered_event_comes_after_a_later_one(delivering: Any, listener: Any) -> None:
    delivering.control("POST", "faults", kind="reorder", event_type="*.created", seconds=3600)
    session = create(delivering)
    held_back(delivering)
    assert listener.silent()
    delivering.submit(session.id, hold=True)
    types = [listener.next().json["type"].rpartition(".")[2] for _ in range(2)]
    assert types == ["processing", "created"]


def test_a_reordered_event_with_nothing_behind_it_comes_in_time(
    delivering: Any, listener: Any
) -> None:
    delivering.control("POST", "faults", kind="reorder", seconds=3600)
    create(delivering)
    held_back(delivering)
    assert listener.silent()
    delivering.control("POST", "clock", advance=3600)
    assert listener.next().json["type"].endswith("created")


def test_a_dropped_event_never_comes_and_stays_unsuccessful(delivering: Any, listener: Any) -> None:
    delivering.control("POST", "faults", kind="drop", next=1)
    create(delivering)
    assert len(settled(delivering)) == 1
    assert listener.silent()
    (dropped,) = delivering.client().v1.events.list({"delivery_success": False})
    create(delivering)
    assert listener.next().json["id"] != dropped.id
    (delivery, _) = settled(delivering, 2)
    assert delivery["state"] == "dropped"


def test_a_delayed_event_comes_by_the_clock(delivering: Any, listener: Any) -> None:
    delivering.control("POST", "faults", kind="delay", seconds=3600)
    create(delivering)
    held_back(delivering)
    assert listener.silent()
    delivering.control("POST", "clock", advance=3600)
    assert listener.next().json["type"].endswith("created")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bad_signature", "No signatures found matching the expected signature for payload"),
        ("stale_timestamp", "Timestamp outside the tolerance zone"),
    ],
)
def test_a_delivery_the_sdk_refuses(
    delivering: Any, listener: Any, kind: str, message: str
) -> None:
    delivering.control("POST", "faults", kind=kind, next=1)
    listener.answer(400)
    create(delivering)
    bad, good = listener.next(), listener.next()
    with pytest.raises(stripe.SignatureVerificationError, match=message):
        stripe.Webhook.construct_event(bad.body, bad.signature, SECRET)
    assert stripe.Webhook.construct_event(good.body, good.signature, SECRET)
    (delivery,) = settled(delivering)
    assert [a["fault"] for a in delivery["attempts"]] == [kind, None]


def test_a_timestamp_in_the_future_and_a_body_too_large(delivering: Any, listener: Any) -> None:
    delivering.control("POST", "faults", kind="future_timestamp", seconds=900)
    delivering.control("POST", "faults", kind="oversized", bytes=2_000_000)
    began = int(time.time())
    create(delivering)
    got = listener.next()
    moment = int(got.signature.partition(",")[0].removeprefix("t="))
    assert began <= moment - 900 <= time.time()
    assert len(got.body) > 2_000_000
    assert stripe.Webhook.construct_event(got.body, got.signature, SECRET)


def test_a_fault_of_one_endpoint_spares_the_other(run: Any, listener: Any) -> None:
    both = ("--deliver-to", f"{listener.url}/a", "--secret", SECRET)
    thin = ("--deliver-thin-to", f"{listener.url}/b", "--thin-secret", THIN_SECRET)
    sandbox = run(*both, *thin)
    sandbox.control("POST", "faults", kind="drop", endpoint=f"{listener.url}/a")
    create(sandbox)
    assert listener.next().path == "/b"
    assert listener.silent()
    assert sandbox.control("DELETE", "faults") == {"cleared": 1}


def test_a_rate_strikes_about_that_often(delivering: Any) -> None:
    delivering.control("POST", "faults", kind="drop", rate=0.5)
    for _ in range(60):
        create(delivering)
    states = [d["state"] for d in settled(delivering, 60)]
    # Six standard deviations around one half.
    assert 7 <= states.count("dropped") <= 53


def test_a_fault_counts_only_the_deliveries_that_it_struck(delivering: Any, faults_of: Any) -> None:
    tried = itertools.count(1)
    for kind in faults_of("deliveries"):
        # 0 is a number too: what is delayed by that is sent at once.
        timed = kind in {"delay", "reorder", "stale_timestamp", "future_timestamp"}
        fields = {"kind": kind, **({"seconds": 0} if timed else {})}
        faults = [
            delivering.control("POST", "faults", **fields, **where)["id"]
            for where in (
                *({"rate": 0.0, "next": 1}, {"endpoint": "we_another"}),
                *({"event_type": "*.verified"}, {"rate": 1.0, "next": 2}),
            )
        ]
        for struck in (1, None, None):
            create(delivering)
            last = settled(delivering, next(tried))[-1]
            counts = {fault["id"]: fault["struck"] for fault in delivering.control("GET", "faults")}
            assert [counts.get(id_) for id_ in faults] == [0, 0, 0, struck], kind
        assert (last["state"], len(last["attempts"])) == ("delivered", 1), kind
        assert delivering.control("DELETE", "faults") == {"cleared": 3}


def test_a_delivery_that_is_not_sent_uses_no_other_fault_up(delivering: Any, listener: Any) -> None:
    for number, kind in enumerate(("drop", "delay", "reorder"), 1):
        delivering.control("POST", "faults", kind="duplicate", next=1)
        delivering.control("POST", "faults", kind="bad_signature", next=1)
        delivering.control("POST", "faults", kind="duplicate", times=9, next=1)
        fields = {} if kind == "drop" else {"seconds": 0}
        delivering.control("POST", "faults", kind=kind, next=1, **fields)
        create(delivering)
        if kind == "drop":
            assert len(settled(delivering)) == 1
            create(delivering)
        got = [listener.next(), listener.next()]
        assert got[0].body == got[1].body
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(got[0].body, got[0].signature, SECRET)
        last = settled(delivering, number + 1)[-1]
        assert {attempt["fault"] for attempt in last["attempts"]} == {"duplicate, bad_signature"}
        (left,) = delivering.control("GET", "faults")
        assert (left["times"], left["struck"]) == (9, 0), "one of a kind strikes at a time"
        delivering.control("DELETE", "faults")


def test_what_was_delivered_stays_so_whatever_struck_it(
    run: Any, listener: Any, faults_of: Any
) -> None:
    # Stripe's own hours between tries: only the test moves the clock that far.
    sandbox = run(
        "--deliver-to", listener.url, "--secret", SECRET, "--retry-after-scale", "1"
    )  # fmt: skip
    kinds = [kind for kind in faults_of("deliveries") if kind not in {"drop", "duplicate"}]
    cases = [
        *[("duplicate", answers) for answers in itertools.product([200, 500], repeat=2)],
        *[(kind, (500,)) for kind in kinds],
    ]
    sandbox.control("POST", "faults", kind="drop", next=1)
    create(sandbox)
    settled(sandbox)
    for kind, answers in cases:
        sandbox.control("POST", "faults", kind=kind, next=1)
        listener.answer(*answers)
        create(sandbox)
        at_once = 0 if kind in {"delay", "reorder"} else len(answers)
        pending = pending_until_it_is_over(sandbox, at_once)
        assert pending == sorted(pending, reverse=True), kind
        delivery = sandbox.control("GET", "deliveries")[-1]
        statuses = [attempt["status"] for attempt in delivery["attempts"]]
        assert statuses == [*answers, *([] if 200 in answers else [200])], kind

    before = sandbox.control("GET", "deliveries")
    assert [d["state"] for d in before] == ["dropped", *["delivered"] * len(cases)]
    sandbox.control("POST", "clock", advance=7 * 86400)
    create(sandbox)
    # What else were due would be sent before this one, or with it.
    assert settled(sandbox, len(before) + 1)[:-1] == before
    events = [sandbox.client().v1.events.retrieve(delivery["event"]) for delivery in before]
    assert [event.pending_webhooks for event in events] == [1, *[0] * len(cases)]


def pending_until_it_is_over(sandbox: Any, at_once: int) -> list[int]:
    """Move the clock to each try of the last delivery; return what `pending_webhooks` was."""
    pending = []
    for _ in range(1000):
        delivery = sandbox.control("GET", "deliveries")[-1]
        event = sandbox.client().v1.events.retrieve(delivery["event"])
        pending.append(event.pending_webhooks)
        if len(delivery["attempts"]) < at_once:
            time.sleep(0.02)  # a duplicate may be on its way: no hour passes between the two
        elif delivery["next_try"]:
            left = delivery["next_try"] - sandbox_now(sandbox)
            sandbox.control("POST", "clock", advance=max(left, 0))
        elif delivery["state"] != "sending":
            return pending
    raise AssertionError(f"still under way: {delivery}")


# -- endpoints ---------------------------------------------------------------------------------


def test_a_rolled_secret_signs_beside_the_new_one_until_it_expires(
    delivering: Any, listener: Any
) -> None:
    (endpoint,) = delivering.client().v1.webhook_endpoints.list()
    rolled = delivering.control("POST", f"webhook_endpoints/{endpoint.id}/roll", overlap=3600)
    create(delivering)
    got = listener.next()
    assert got.signature.count("v1=") == 2
    for secret in (SECRET, rolled["secret"]):
        assert stripe.Webhook.construct_event(got.body, got.signature, secret)

    delivering.control("POST", "clock", advance=3600)
    create(delivering)
    got = listener.next()
    assert stripe.Webhook.construct_event(got.body, got.signature, rolled["secret"])
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(got.body, got.signature, SECRET)


def test_each_secret_signs_until_the_end_it_got_when_it_was_rolled(run: Any, listener: Any) -> None:
    other = f"{listener.url}/other"
    sandbox = run(
        *("--deliver-to", f"{listener.url}/rolled", "--secret", SECRET),
        *("--deliver-thin-to", other, "--thin-secret", THIN_SECRET),
    )
    (endpoint,) = sandbox.client().v1.webhook_endpoints.list()
    hour, now = 3600, 0
    ends: dict[str, float] = {SECRET: math.inf}
    for wait, overlap in [
        *[(0, hour), (0, 4 * hour), (hour / 2, 0), (0, 2 * hour), (hour / 2, None)],
        *[(hour, None), (hour / 2, 72 * hour), (hour, hour), (hour / 2, None)],
        *[(hour / 2, None), (21 * hour, None), (2 * hour, None)],
    ]:
        sandbox.control("POST", "clock", advance=wait)
        now += wait
        if overlap is not None:
            rolled = sandbox.control(
                "POST", f"webhook_endpoints/{endpoint.id}/roll", overlap=overlap
            )
            longest = now + min(overlap, 24 * hour)  # at Stripe both work for a day at most
            # The one that signed so far gets its end; what an earlier one has got stays.
            ends = {old: longest if end == math.inf else end for old, end in ends.items()}
            ends[rolled["secret"]] = math.inf
        create(sandbox)
        got = {one.path: one for one in (listener.next(), listener.next())}
        expected = {secret for secret, end in ends.items() if end > now}
        assert signers(got["/rolled"], {*ends, THIN_SECRET}) == expected
        assert got["/rolled"].signature.count("v1=") == len(expected)
        assert signers(got["/other"], {*ends, THIN_SECRET}) == {THIN_SECRET}


def signers(got: Any, secrets: set[str]) -> set[str]:
    """Those of the secrets that the delivery is signed with."""
    found = set()
    for secret in secrets:
        with contextlib.suppress(stripe.SignatureVerificationError):
            stripe.WebhookSignature.verify_header(got.body.decode(), got.signature, secret)
            found.add(secret)
    return found


@pytest.fixture
def refused(run: Any, listener: Any) -> Any:
    """A sandbox whose first delivery the listener has refused, so that it is due again."""
    sandbox = run("--deliver-to", listener.url, "--secret", SECRET, "--retry-after-scale", "1")
    listener.answer(500)
    create(sandbox)
    listener.next()
    waiting(sandbox)
    return sandbox


def test_a_disabled_endpoint_gets_what_is_due_when_it_is_enabled(
    refused: Any, listener: Any
) -> None:
    client = refused.client()
    (endpoint,) = client.v1.webhook_endpoints.list()
    client.v1.webhook_endpoints.update(endpoint.id, {"disabled": True})
    refused.control("POST", "clock", advance=4 * 3600)
    assert listener.silent()
    client.v1.webhook_endpoints.update(endpoint.id, {"disabled": False})
    assert listener.next().json["type"].endswith("created")


def test_a_deleted_endpoint_gets_nothing_more(refused: Any, listener: Any) -> None:
    client = refused.client()
    (endpoint,) = client.v1.webhook_endpoints.list()
    client.v1.webhook_endpoints.delete(endpoint.id)
    refused.control("POST", "clock", advance=4 * 3600)
    assert listener.silent()
    (delivery,) = settled(refused)
    assert delivery["state"] == "canceled"


def test_the_live_schedule_goes_on_for_three_days(run: Any, listener: Any) -> None:
    sandbox = run(
        "--deliver-to", listener.url, "--secret", SECRET, "--retries", "live",
        "--retry-after-scale", "1",
    )  # fmt: skip
    listener.answer(*[500] * 9)
    create(sandbox)
    waits = []
    for _ in range(9):
        listener.next()
        (delivery,) = waiting(sandbox)
        # In minutes: the try itself takes a while, which is in it.
        waits.append(round((delivery["next_try"] - delivery["attempts"][-1]["time"]) / 60))
        sandbox.control("POST", "clock", advance=delivery["next_try"] - sandbox_now(sandbox))
    listener.next()
    assert waits == sorted(waits), "exponential back-off"
    assert 2 < sum(waits) / 1440 < 3.1
    (delivery,) = settled(sandbox)
    assert delivery["state"] == "delivered"


def waiting(sandbox: Any) -> list[Any]:
    """The deliveries that were tried in vain and will be again."""
    for _ in range(3000):
        tried = [d for d in sandbox.control("GET", "deliveries") if d["attempts"]]
        found = [d for d in tried if d["next_try"]]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("nothing waits")


def sandbox_now(sandbox: Any) -> float:
    return float(sandbox.control("GET", "clock")["now"])


def test_an_endpoint_that_does_not_listen(run: Any) -> None:
    sandbox = run("--deliver-to", "http://127.0.0.1:9/", "--secret", SECRET)
    create(sandbox)
    (delivery,) = waiting(sandbox)
    assert delivery["attempts"][0]["status"] is None
    assert "refused" in delivery["attempts"][0]["error"]

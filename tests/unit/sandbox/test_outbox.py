"""Deliveries without a network: the schedule, the faults, what is signed, what is stored."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import stripe

from stripe_identity_sandbox.delivery import Deliverer
from stripe_identity_sandbox.endpoints import all_events
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.lifetimes import REDACTION, RETRIES
from stripe_identity_sandbox.objects import Answer, Attempt, Delivery, Endpoint, Key, Record
from stripe_identity_sandbox.settings import Settings
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.store import Store

SECRET = "whsec_first"
URL = "http://endpoint.example/hook"
CREATED = "identity.verification_session.created"


@dataclass
class Outbox:
    """A world, a clock, and an endpoint that answers what it is told."""

    save: Callable[[dict[tuple[str, str], Record | None]], None] | None = None
    now: float = 1_795_000_000.0
    answers: list[int | None] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(Settings(), clock=lambda: self.now, save=self.save)
        self.faults = Faults()
        self.deliverer = Deliverer(self.world, self.faults)
        self.deliverer._post = self.post  # type: ignore[method-assign]
        with self.world.step() as world:
            self.endpoint = world.endpoints.add(
                URL, secret=SECRET, enabled_events=all_events("snapshot")
            )

    def post(self, url: str, text: str, signature: str) -> Attempt:
        assert url == URL
        self.sent.append((text, signature))
        status = self.answers.pop(0) if self.answers else 200
        return Attempt(time=0.0, status=status, error=None if status else "refused")

    def emit(self) -> Delivery:
        with self.world.step() as world:
            world.create({"type": "document"})
        return list(self.world.outbox.by_id.values())[-1]

    def pump(self) -> int:
        """Send what is due now, as the sender's threads would; return how many tries."""
        before = len(self.sent)
        with self.world.step() as world:
            due = world.outbox.take_due()
        for delivery in due:
            self.deliverer._try(delivery.id)
        return len(self.sent) - before

    def event(self, number: int = -1) -> Any:
        text, signature = self.sent[number]
        return stripe.Webhook.construct_event(text, signature, SECRET)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def test_the_schedule_of_test_mode(outbox: Outbox) -> None:
    outbox.answers += [500, None, 301]
    delivery = outbox.emit()
    assert outbox.pump() == 1
    for wait in RETRIES["test"]:
        outbox.now += wait - 1
        assert outbox.pump() == 0
        outbox.now += 1
        assert outbox.pump() == 1
    assert delivery.state == "failed"
    assert [a.status for a in delivery.attempts] == [500, None, 301]
    assert outbox.world.next_due() is None


def test_an_answer_of_2xx_ends_it(outbox: Outbox) -> None:
    outbox.answers += [503, 204]
    delivery = outbox.emit()
    event = outbox.world.events.by_id[delivery.event]
    outbox.pump()
    assert outbox.world.outbox.pending(event) == 1
    outbox.now += 3600
    outbox.pump()
    assert delivery.state == "delivered"
    assert outbox.world.outbox.pending(event) == 0
    assert json.loads(outbox.sent[0][0])["pending_webhooks"] == 1


def test_sending_by_hand_does_not_stop_the_automatic_tries(outbox: Outbox) -> None:
    outbox.answers += [500, 200, 200]
    delivery = outbox.emit()
    event = outbox.world.events.by_id[delivery.event]
    outbox.pump()
    with outbox.world.step() as world:
        (by_hand,) = world.outbox.send(event, manual=True)
    assert outbox.pump() == 1
    assert (by_hand.state, delivery.state) == ("delivered", "pending")
    assert outbox.world.outbox.pending(event) == 0
    outbox.now += 3600
    assert outbox.pump() == 1
    outbox.answers += [500]
    with outbox.world.step() as world:
        (again,) = world.outbox.send(event, manual=True)
    outbox.pump()
    outbox.now += 100_000
    assert outbox.pump() == 0
    assert again.state == "failed"


def test_an_endpoint_made_later_gets_what_is_sent_by_hand(outbox: Outbox) -> None:
    delivery = outbox.emit()
    with outbox.world.step() as world:
        later = world.endpoints.add(URL, enabled_events=["*"])
        assert [
            d.endpoint for d in world.outbox.send(world.events.by_id[delivery.event], manual=True)
        ] == [
            outbox.endpoint.id,
            later.id,
        ]


def test_disabled_and_deleted_endpoints(outbox: Outbox) -> None:
    outbox.answers.append(500)
    delivery = outbox.emit()
    outbox.pump()
    with outbox.world.step() as world:
        world.outbox.change_endpoint(outbox.endpoint, status="disabled")
    outbox.now += 3600
    assert outbox.pump() == 0
    assert delivery.state == "pending"
    with outbox.world.step() as world:
        world.outbox.change_endpoint(outbox.endpoint, status="enabled")
    outbox.answers.append(500)
    assert outbox.pump() == 1
    with outbox.world.step() as world:
        world.outbox.drop_endpoint(outbox.endpoint)
    outbox.now += 100_000
    assert outbox.pump() == 0
    assert delivery.state == "canceled"


def test_every_active_secret_signs(outbox: Outbox) -> None:
    with outbox.world.step() as world:
        new = world.endpoints.roll_secret(outbox.endpoint, overlap=60)
    outbox.emit()
    outbox.pump()
    text, signature = outbox.sent[-1]
    assert signature.count("v1=") == 2
    for secret in (SECRET, new):
        assert stripe.Webhook.construct_event(text, signature, secret)
    outbox.now += 60
    outbox.emit()
    outbox.pump()
    with pytest.raises(stripe.SignatureVerificationError):
        outbox.event()


@pytest.mark.parametrize("kind", ["bad_signature", "stale_timestamp"])
def test_faults_the_sdk_sees(outbox: Outbox, kind: str) -> None:
    outbox.faults.add({"kind": kind, "next": 1})
    outbox.emit()
    outbox.pump()
    with pytest.raises(stripe.SignatureVerificationError):
        outbox.event()


def test_faults_of_the_way(outbox: Outbox) -> None:
    outbox.faults.add({"kind": "drop", "next": 1})
    dropped = outbox.emit()
    assert outbox.pump() == 0
    assert dropped.state == "dropped"

    outbox.faults.add({"kind": "delay", "seconds": 30, "next": 1})
    outbox.emit()
    assert outbox.pump() == 0
    outbox.now += 30
    assert outbox.pump() == 1

    outbox.faults.add({"kind": "duplicate", "times": 2, "next": 1})
    twice = outbox.emit()
    assert outbox.pump() == 3
    assert len(twice.attempts) == 3

    outbox.faults.add({"kind": "reorder", "next": 1})
    first, second = outbox.emit(), outbox.emit()
    assert outbox.pump() == 1
    assert outbox.pump() == 1
    assert [outbox.event(-2).id, outbox.event().id] == [second.event, first.event]

    outbox.faults.add({"kind": "oversized", "bytes": 5000, "next": 1})
    outbox.faults.add({"kind": "future_timestamp", "next": 1})
    outbox.emit()
    outbox.pump()
    assert len(outbox.sent[-1][0]) > 5000
    assert outbox.event()


@pytest.mark.parametrize(("kind", "seconds"), [("delay", 60), ("reorder", 5)])
def test_how_long_a_fault_holds_back_what_it_is_given_no_time_for(
    outbox: Outbox, kind: str, seconds: int
) -> None:
    outbox.faults.add({"kind": kind, "next": 1})
    outbox.emit()
    assert outbox.pump() == 0
    outbox.now += seconds - 1
    assert outbox.pump() == 0
    outbox.now += 1
    assert outbox.pump() == 1


def test_what_keeps_an_event_back_strikes_in_its_order(outbox: Outbox) -> None:
    for kind in ("reorder", "delay", "drop"):
        outbox.faults.add({"kind": kind, "next": 1})
    for left in (["reorder", "delay"], ["reorder"], []):
        outbox.emit()
        assert outbox.pump() == 0
        assert [fault.kind for fault in outbox.faults.all()] == left


def test_a_fault_is_of_the_endpoint_with_this_id(outbox: Outbox) -> None:
    outbox.faults.add({"kind": "drop", "endpoint": outbox.endpoint.id})
    outbox.emit()
    assert outbox.pump() == 0


def test_an_endpoint_gets_events_of_its_own_version(outbox: Outbox) -> None:
    outbox.endpoint.api_version = "2025-08-27.basil"
    outbox.emit()
    outbox.pump()
    assert json.loads(outbox.sent[-1][0])["api_version"] == "2025-08-27.basil"


def test_a_failed_duplicate_does_not_undo_a_success(outbox: Outbox) -> None:
    outbox.faults.add({"kind": "duplicate"})
    outbox.answers += [200, 500]
    delivery = outbox.emit()
    outbox.pump()
    assert delivery.state == "delivered"


def test_faults_match_endpoint_and_type_and_rate() -> None:
    faults = Faults()
    never = faults.add({"kind": "drop", "rate": 0})
    elsewhere = faults.add({"kind": "drop", "endpoint": "we_other"})
    other = faults.add({"kind": "drop", "event_type": "*.verified"})
    mine = faults.add({"kind": "drop", "endpoint": URL, "rate": "1.0", "event_type": "*.created"})
    found = faults.for_delivery("we_1", URL, CREATED, thin=False, first=True)
    assert found == [mine]
    assert faults.for_delivery("we_1", URL, CREATED, thin=False, first=False) == []
    assert faults.clear(never.id) == 1
    assert faults.clear("nothing") == 0
    assert faults.all() == [elsewhere, other, mine]
    assert faults.clear() == 3


def test_what_is_stored_is_what_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "state.sqlite")
    outbox = Outbox(save=store.save)
    outbox.answers += [500]
    outbox.emit()
    outbox.pump()
    with outbox.world.step() as world:
        session = world.create({"type": "document"})
        world.submit(session, "verified", delay=60)
        world.advance(30)
        gone = world.endpoints.add(URL, enabled_events=["*"])
    with outbox.world.step() as world:
        world.outbox.drop_endpoint(gone)

    store.close()
    again = World(Settings(), clock=lambda: outbox.now)
    store = Store(tmp_path / "deep" / "state.sqlite")
    again.load(store.load())
    store.close()
    for shelf in ("sessions", "keys"):
        assert list(getattr(again, shelf).items()) == list(getattr(outbox.world, shelf).items())
    for room in ("reports", "events", "endpoints", "outbox", "answers"):
        kept, made = getattr(again, room).by_id, getattr(outbox.world, room).by_id
        assert list(kept.items()) == list(made.items())
    assert again.journal.offset == 30
    token = next(iter(session.links), None) or "none while it is processing"
    assert again.links.session(token) is None
    with again.step():
        again.advance(30)
    assert again.sessions[session.id].status == "verified"
    assert again.events.of(again.sessions[session.id])[-1].type.endswith("verified")


def test_a_try_that_was_cut_off_is_made_again_after_a_restart() -> None:
    outbox = Outbox()
    outbox.emit()
    with outbox.world.step() as world:
        (taken,) = world.outbox.take_due()
    assert taken.state == "sending"
    again = World(Settings(), clock=lambda: outbox.now)
    records: list[Record] = [
        *outbox.world.endpoints.by_id.values(),
        *outbox.world.sessions.values(),
    ]
    again.load([*records, *outbox.world.events.by_id.values(), taken])
    assert [d.id for d in again.outbox.take_due()] == [taken.id]


def test_keys_links_and_answers_are_known_after_a_restart() -> None:
    """But for an answer that was being made: its key can be used again."""
    outbox = Outbox()
    with outbox.world.step() as world:
        session = world.create({"type": "document"})
        redacting = world.create({"type": "document"})
        world.redact(redacting)
        world.set_key(Key("rk_test_gone", revoked=True))
    made = Answer("a/made", "/v1", "x", "req_1", outbox.now, 200, "{}", session.id)
    cut_off = Answer("a/cut_off", "/v1", "x", "req_2", outbox.now)
    again = World(Settings(), clock=lambda: outbox.now)
    stored = (world.sessions, world.events.by_id, world.keys)
    again.load([record for kind in stored for record in kind.values()] + [made, cut_off])
    assert again.keys["rk_test_gone"].revoked
    assert again.links.session(next(iter(session.links))) is session
    assert (again.answers.find("a/made"), again.answers.find("a/cut_off")) == (made, None)
    with again.step():
        again.advance(REDACTION)
    assert again.sessions[redacting.id].redaction == "redacted"


def test_what_is_changed_at_one_endpoint_leaves_the_other_as_it_was(outbox: Outbox) -> None:
    with outbox.world.step() as world:
        other = world.endpoints.add(URL, enabled_events=["*"])
    outbox.emit()
    with outbox.world.step() as world:
        for endpoint in (outbox.endpoint, other):
            world.outbox.change_endpoint(endpoint, status="disabled")
    outbox.pump()
    first, second = outbox.world.outbox.by_id.values()
    assert [(each.state, each.due) for each in (first, second)] == [("pending", None)] * 2
    with outbox.world.step() as world:
        world.outbox.change_endpoint(other, status="enabled")
    assert [each.due for each in (first, second)] == [None, outbox.now]
    with outbox.world.step() as world:
        world.outbox.drop_endpoint(outbox.endpoint)
    assert [each.state for each in (first, second)] == ["canceled", "pending"]


def test_a_step_is_stored_as_one() -> None:
    steps: list[set[str]] = []
    outbox = Outbox(save=lambda touched: steps.append({kind for kind, _ in touched}))
    outbox.emit()
    assert steps == [{Endpoint.__name__}, {"Session", "Event", "Delivery"}]

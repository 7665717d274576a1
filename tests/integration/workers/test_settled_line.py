"""One line for each event that is settled: it alone says how the event went."""

from __future__ import annotations

import pytest
import redis as redis_py

from identity_webhooks import Discard, Retry, Verification, on
from service.inbox import Inbox
from service.inbox.keys import MAX_LAPSES

FIELDS = {
    *("event", "level", "timestamp", "logger", "event_id", "event_key", "kind", "session_id"),
    *("form", "livemode", "state", "outcome", "handlers", "request_ids", "stages_ms"),
}


@on("*")
def good(v: Verification) -> None:
    """Do nothing."""


@on("*")
def bad(v: Verification) -> None:
    raise Discard("no such user")


@on("*", retries=3)
def late(v: Verification) -> None:
    if v.attempt < 3:
        raise Retry("not yet", delay=0.01)


def only(desk) -> dict[str, object]:
    """Return the one line there is."""
    (line,) = desk.logged("event_settled")
    assert line.keys() >= FIELDS
    assert "dropped" not in line
    return line


def test_of_an_event_that_is_done(desk) -> None:
    session = desk.sandbox.session("verified", account="acct_1")
    event = desk.accept("verified", session, account="acct_1")
    desk.settle(desk.processor(good, late), event)
    line = only(desk)
    assert line["level"] == "info"
    assert (line["kind"], line["form"], line["account"]) == ("verified", "snapshot", "acct_1")
    assert (line["state"], line["outcome"], line["livemode"]) == ("done", "verified", False)
    assert line["event_key"] == event.key
    assert line["session_id"] == session.id
    # Of the claim that ended it; the handler that was done before did not run in that.
    assert line["handlers"][0] == "p.good done 1x"
    assert line["handlers"][1].startswith("p.late done 3x ")
    assert line["handlers"][1].endswith("ms")
    (request,) = line["request_ids"]
    assert request.startswith("req_")
    stages = line["stages_ms"]
    assert stages.keys() == {
        *("accepted_to_claim", "claim_to_handler", "stripe", "handlers", "claim_to_end"),
    }
    assert stages["stripe"] <= stages["claim_to_handler"] <= stages["claim_to_end"]
    assert stages["accepted_to_claim"] <= line["took_ms"] == desk.record(event).settled_ms


def test_each_run_that_failed_is_said_with_its_wait(desk) -> None:
    @on("*", retries=2)
    def asks(v: Verification) -> None:
        raise Retry("not yet", delay=0.05)

    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.settle(desk.processor(asks), event)
    lines = desk.logged("handler_failed")
    names = ("level", "handler", "attempt", "status", "reason", "delay_s")
    assert [tuple(line[name] for name in names) for line in lines] == [
        ("warning", "p.asks", 1, "retry", "retry: not yet", 0.05),
        ("warning", "p.asks", 2, "retry", "retry: not yet", 0.05),
        ("warning", "p.asks", 3, "dead", "retry: not yet", 0),
    ]


def test_of_an_event_that_died(desk) -> None:
    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.settle(desk.processor(good, bad), event)
    line = only(desk)
    assert line["level"] == "error"
    assert (line["state"], line["reason"]) == ("dead", "p.bad: discarded: no such user")
    words = [each.rpartition(" ")[0] for each in line["handlers"]]
    assert words == ["p.bad dead 1x", "p.good done 1x"]


def test_of_one_that_stripe_does_not_show(desk) -> None:
    event = desk.accept("verified", "vs_nowhere")
    desk.redis.hincrby(f"iw:evt:{event.key}", "accepted", -3_600_000)
    desk.settle(desk.processor(good), event)
    line = only(desk)
    assert (line["state"], line["handlers"]) == ("dead", [])
    assert line["reason"].startswith("stripe: missing 404")
    assert len(line["request_ids"]) == 1


def test_of_the_form_that_is_not_worked_on(desk) -> None:
    session, thin = desk.sandbox.session_and_thin_event()
    processor = desk.processor(good)
    first = desk.accept("created", session, id=thin, form="thin")
    desk.settle(processor, first)
    twin = desk.record(first)
    assert twin.state == "done"
    line = only(desk)
    assert line["form"] == "thin"
    assert len(line["request_ids"]) == 2, "the event, and the session"


def test_of_an_event_that_killed_its_workers(desk) -> None:
    event = desk.accept("verified", "vs_1", account="acct_1")
    processor = desk.processor(good)
    for _ in range(MAX_LAPSES):
        (claim,) = desk.inbox.claim()
        assert desk.inbox.note_death(event.key, claim.token, "p.good")
        desk.redis.hset(f"iw:evt:{event.key}", "lease", 1)
        desk.wake(event.key)
    assert processor.claim() == []
    line = only(desk)
    assert line["level"] == "error"
    assert (line["state"], line["reason"], line["event_id"]) == ("dead", "quarantined", event.id)
    (alarm,) = desk.logged("event_quarantined")
    names = ("level", "event_id", "event_key", "session_id", "kind", "account", "handler")
    said = ("error", event.id, event.key, "vs_1", "verified", "acct_1", "p.good")
    assert tuple(alarm[name] for name in names) == said
    assert alarm["hint"] == "its workers died three times in a row: see worker_died for what ran"
    counts = desk.counts()
    assert (counts["claims|quarantined"], counts["settled|dead|quarantined"]) == (1, 1)


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_failure_of_stripe_is_a_warning_with_its_requests(status, desk) -> None:
    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.sandbox.fault("error", status=status)
    desk.turn(desk.processor(good))
    (line,) = desk.logged("event_released")
    assert line["level"] == "warning"
    assert line["reason"].startswith("stripe: ")
    assert str(status) in line["reason"]
    (request,) = line["request_ids"]
    assert request.startswith("req_")
    assert line["event_id"] == event.id


@pytest.mark.parametrize(
    ("error", "reason", "level"),
    [
        (redis_py.ConnectionError, "redis failed", "warning"),
        (ValueError, "processing failed", "warning"),
        (None, "handlers wait for their retry", "info"),
    ],
)
def test_what_is_given_back_says_why_and_whose_it_is(
    error, reason, level, desk, monkeypatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise error

    desk.expects_faults = True
    event = desk.accept(
        "verified", desk.sandbox.session("verified", account="acct_1"), account="acct_1"
    )
    if error:
        monkeypatch.setattr(Inbox, "save_progress", fail)
    desk.turn(desk.processor(good, late))
    (line,) = desk.logged("event_released")
    named = ("level", "reason", "event_id", "session_id", "kind", "account")
    expected = (level, reason, event.id, event.session, "verified", "acct_1")
    assert tuple(line[name] for name in named) == expected
    assert 0 < line["delay_s"] <= 0.1, "seconds"


def test_what_is_replayed_is_as_fast_as_it_was_then(desk) -> None:
    processor = desk.processor(good)
    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.redis.hincrby(f"iw:evt:{event.key}", "accepted", -86_400_000)
    desk.redis.hset(f"iw:evt:{event.key}", "state", "pending")
    desk.settle(processor, event)
    assert desk.inbox.replay(event.key, "all") == "replayed"
    before = desk.counts()
    desk.settle(processor, event)
    after = desk.counts()
    assert after["settle_seconds|sum"] - before["settle_seconds|sum"] < 60

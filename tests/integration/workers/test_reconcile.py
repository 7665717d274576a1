"""What was missed is taken in, from a sandbox that delivered nothing."""

from __future__ import annotations

import time

import pytest

from service.inbox import Inbox
from tests.integration.claims import claim_of
from workers import reconcile
from workers.reconcile import InboxFull, Pass, Reconciler
from workers.stripe_api import StripeFailure

ACCOUNT = "acct_reconcile"


@pytest.fixture
def inbox(redis) -> Inbox:
    return Inbox(redis)


@pytest.fixture
def since() -> int:
    """Nothing that other tests made in this sandbox is looked at."""
    time.sleep(1.1)
    return int(time.time())


@pytest.fixture
def reconciler(sandbox, inbox) -> Reconciler:
    return Reconciler(sandbox.api(), inbox, livemode=False)


def kinds(inbox: Inbox, session: str) -> list[str]:
    return sorted(r.event.kind for r in inbox.records("all", 1000) if r.event.session == session)


def test_what_was_missed_is_taken_in_once(reconciler, inbox, sandbox, since) -> None:
    session = sandbox.session("document_expired")
    found = reconciler.run(since)

    assert found.counts == {"new": 3}
    assert len(found.missed) == found.seen == 3
    assert kinds(inbox, session.id) == ["created", "processing", "requires_input"]
    again = reconciler.run(since)
    assert again.counts == {"pending": 3}
    assert again.missed == []


def test_a_wiped_redis_is_rebuilt(reconciler, inbox, sandbox, redis, since) -> None:
    sessions = [sandbox.session("verified").id for _ in range(3)]
    reconciler.run(since)
    before = {key: inbox.find(key).event for key in reconciler.run(since).missed}
    redis.flushall()
    reconciler.run(since)

    assert before == {}
    for session in sessions:
        assert kinds(inbox, session) == ["created", "processing", "verified"]


def test_a_dry_run_takes_nothing_in(reconciler, inbox, sandbox, redis, since) -> None:
    sandbox.session("verified")
    found = reconciler.run(since, dry_run=True)

    assert found.counts == {"new": 3}
    assert not redis.exists("iw:due")


def test_more_than_a_page_is_walked(reconciler, inbox, sandbox, since) -> None:
    for _ in range(35):
        sandbox.session("verified")
    seen: list[int] = []
    found = reconciler.run(since, progress=lambda found: seen.append(found.seen))

    assert found.counts == {"new": 105}
    assert seen == list(range(1, 106))


def test_the_other_mode_is_none_of_ours(sandbox, inbox, since) -> None:
    sandbox.session()
    found = Reconciler(sandbox.api(), inbox, livemode=True).run(since)

    assert found.counts == {"other_mode": 1}
    assert found.missed == []


def test_a_connected_account_is_asked_by_name(sandbox, inbox, since) -> None:
    api = sandbox.api()
    session = api.create_session({"type": "document"}, account=ACCOUNT)
    found = Reconciler(api, inbox, livemode=False, account=ACCOUNT).run(since)

    assert found.counts == {"new": 1}
    assert found.missed[0].startswith(f"{ACCOUNT}-evt_")
    assert kinds(inbox, session.id) == ["created"]


def test_a_full_inbox_ends_the_pass(sandbox, redis, since) -> None:
    sandbox.session("verified")
    with pytest.raises(InboxFull):
        Reconciler(sandbox.api(), Inbox(redis, limit=2), livemode=False).run(since)


def test_old_sessions_are_looked_at_whose_events_are_gone(
    reconciler, inbox, sandbox, monkeypatch, since
) -> None:
    heard, unheard = (sandbox.session(o) for o in ("verified", "document_expired"))
    waiting = sandbox.session()
    monkeypatch.setattr(reconcile, "HORIZON", 0)
    monkeypatch.setattr(type(reconciler._api), "events_since", lambda *_, **__: iter(()))
    time.sleep(1.1)
    first = reconciler.run(since)
    assert set(first.missed) == {
        f"evt_reconciled_{heard.id}_verified",
        f"evt_reconciled_{unheard.id}_requires_input",
    }
    claim = claim_of(inbox, f"evt_reconciled_{heard.id}_verified")
    inbox.finish(claim, "done", outcome="verified")
    found = reconciler.run(since)

    assert found.counts == {"pending": 1}, "what handlers have heard is not made up again"
    assert kinds(inbox, waiting.id) == []


def test_sessions_that_do_not_end_are_reported(reconciler, sandbox, monkeypatch, since) -> None:
    session = sandbox.session()
    sandbox.control(f"sessions/{session.id}/submit", outcome="verified", hold=True)
    assert session.id not in reconciler.run(since).stuck
    monkeypatch.setattr(reconcile, "STUCK", -10)

    assert session.id in reconciler.run(since).stuck


class TestPeriodically:
    def test_a_pass_starts_where_the_last_whole_one_did(
        self, reconciler, inbox, monkeypatch
    ) -> None:
        starts: list[int] = []
        monkeypatch.setattr(reconciler, "run", lambda since: starts.append(since) or Pass())
        now = inbox.now()
        reconcile.reconcile_once(reconciler, inbox)
        reconcile.reconcile_once(reconciler, inbox)

        assert abs(starts[0] - (now - reconcile.WIDE)) <= 2
        assert abs(starts[1] - (now - reconcile.OVERLAP)) <= 2

    def test_a_pass_that_fails_is_made_again(self, reconciler, inbox, monkeypatch) -> None:
        def fail(_: int) -> Pass:
            raise StripeFailure("broken", status=500)

        monkeypatch.setattr(reconciler, "run", fail)
        with pytest.raises(StripeFailure):
            reconcile.reconcile_once(reconciler, inbox)
        assert inbox.watermark() is None

    def test_one_process_at_a_time(self, inbox) -> None:
        assert inbox.try_acquire("reconcile", 60)
        assert not inbox.try_acquire("reconcile", 60)

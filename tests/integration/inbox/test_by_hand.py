"""What a person can have done with an event that waits for what never comes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.inbox import AcceptResult, Claim, Progress, Refused
from service.inbox.keys import LEASE
from service.survey import survey
from tests.integration.claims import claim_next, claim_of, claimed, event


class TestWaitingForAHandlerThatIsGone:
    """A person can have such an event run without it, or end it."""

    @pytest.fixture
    def waiting(self, inbox, redis) -> str:
        """An event of whose handlers one is done and one waits for its retry."""
        inbox.accept(event())
        inbox.accept(event("other"))
        claim = claimed(inbox)
        inbox.save_progress(claim, "a.here", Progress("done"))
        inbox.save_progress(claim, "a.gone", Progress("retry", 2, reason="why"), delay=60)
        inbox.release(claim, 60, "handlers wait for their retry")
        redis.delete("rq:queue:identity")
        return "evt_1"

    @pytest.mark.parametrize("which", ["a.gone", "dead"])
    def test_replayed_it_runs_at_once_and_the_handler_is_forgotten(
        self, inbox, waiting, which
    ) -> None:
        assert claim_of(inbox, waiting) is Refused.EARLY
        assert inbox.replay(waiting, which) == "replayed"
        claim = claim_next(inbox)
        assert isinstance(claim, Claim)
        assert set(claim.progress) == {"a.here"}
        assert claim.faults == 0

    def test_replayed_for_what_it_has_not_it_stays(self, inbox, redis, waiting) -> None:
        before = {key: redis.dump(key) for key in redis.keys("iw:[ed]*")}
        assert inbox.replay(waiting, "a.never") == "pending"
        assert {key: redis.dump(key) for key in redis.keys("iw:[ed]*")} == before

    def test_ended_it_is_done_and_says_by_whom(self, inbox, redis, waiting) -> None:
        assert inbox.discard(waiting) == "discarded"
        found = inbox.find(waiting)
        assert (found.state, found.outcome) == ("done", "discarded")
        assert found.handlers["a.gone"].status == "retry", "what was done is kept"
        assert inbox.accept(event()) is AcceptResult.DONE
        assert inbox.discard(waiting) == "done"
        assert inbox.discard("evt_0") == "gone"
        assert redis.zrange("iw:due", 0, -1) == [b"evt_other"]

    def test_one_that_waits_for_its_session_leaves_the_line(self, inbox, redis) -> None:
        for name in "123":
            inbox.accept(event(name))
        first = claim_next(inbox)
        assert inbox.claim(2) == [Refused.BUSY] * 2
        assert inbox.discard("evt_2") == "discarded"
        inbox.finish(first, "done", outcome="verified")
        (third,) = inbox.claim()
        assert third.event.id == "evt_3", "it is woken in place of the one that ended"
        assert not redis.exists("iw:waiting::vs_1")

    @pytest.mark.parametrize("account", [None, "acct_1", "acct_1/acct_2"])
    @pytest.mark.parametrize("act", ["discard", "replay", "retry"])
    def test_it_leaves_the_line_of_its_own_account(self, inbox, redis, act, account) -> None:
        for name in "12":
            inbox.accept(event(name, account=account))
        claim_next(inbox)
        assert inbox.claim() == [Refused.BUSY]
        key = event("2", account=account).key
        redis.hset(f"iw:evt:{key}", "h:a.one", "retry|1|5||why")
        ask = {"discard": inbox.discard, "replay": inbox.replay, "retry": inbox.retry}[act]
        assert ask(key) in {"discarded", "replayed", "retried"}
        assert redis.keys("iw:waiting:*") == []

    def test_a_dead_one_can_be_ended_too(self, inbox, redis) -> None:
        inbox.accept(event())
        inbox.finish(claimed(inbox), "dead", outcome="verified", reason="a.b: no")
        assert inbox.discard("evt_1") == "discarded"
        assert not redis.exists("iw:dead", "iw:due", "iw:evt:evt_1")
        found = inbox.find("evt_1")
        assert (found.state, found.reason) == ("done", "a.b: no")
        assert inbox.replay("evt_1", "all") == "replayed"


class TestRunAtOnce:
    @pytest.mark.parametrize("attempts", [0, 1, 10])
    def test_every_handler_that_waits_is_due_and_nothing_else_of_it_changes(
        self, inbox, attempts
    ) -> None:
        """Also one that was never run: it waits for Stripe, or for its own process."""
        inbox.accept(event())
        claim = claimed(inbox)
        waits = Progress("retry", attempts, reason="7|failed 5", since=3)
        for handler in ("a.one", "a.two"):
            inbox.save_progress(claim, handler, waits, delay=600)
        for status in ("done", "skipped", "dead"):
            inbox.save_progress(claim, f"a.{status}", Progress(status, attempts, reason="no"))
        inbox.release(claim, 600, "handlers wait for their retry")
        before = inbox.find("evt_1").handlers
        assert inbox.retry("evt_1", "ann") == "retried"
        (again,) = inbox.claim()
        assert [again.is_due(name) for name in ("a.one", "a.two")] == [True, True]
        for name, progress in inbox.find("evt_1").handlers.items():
            assert replace(progress, due=before[name].due) == before[name]
            assert (progress.due != before[name].due) == (progress.status == "retry")


ACCOUNT = "acct_1-evt_1"


def never(inbox, pass_time) -> None:
    """Nobody has had it."""


def works(inbox, pass_time) -> None:
    claimed(inbox, ACCOUNT)


def works_on(inbox, pass_time) -> None:
    claim = claimed(inbox, ACCOUNT)
    pass_time(0.6 * LEASE)
    assert inbox.renew(claim)
    pass_time(0.6 * LEASE)


def died(inbox, pass_time) -> None:
    claimed(inbox, ACCOUNT)
    pass_time(LEASE + 1)


def died_and_the_account_is_paused(inbox, pass_time) -> None:
    died(inbox, pass_time)
    inbox.pause(600, "stripe: limited 429", "acct_1")
    assert claim_of(inbox, ACCOUNT) is Refused.HELD


def the_account_is_paused(inbox, pass_time) -> None:
    inbox.pause(600, "stripe: limited 429", "acct_1")
    assert claim_of(inbox, ACCOUNT) is Refused.HELD


def was_given_back(inbox, pass_time) -> None:
    inbox.release(claimed(inbox, ACCOUNT), 60, "stripe: locked 409")


FREE = [never, died, died_and_the_account_is_paused, the_account_is_paused, was_given_back]
ACTS = {
    "replay": (lambda inbox: inbox.replay(ACCOUNT, "a.one", "ann"), "replayed"),
    "retry": (lambda inbox: inbox.retry(ACCOUNT, "ann"), "retried"),
    "discard": (lambda inbox: inbox.discard(ACCOUNT, "ann"), "discarded"),
}


class TestWhetherAWorkerHasIt:
    """A lease that has run out is nobody's, whichever script is asked."""

    @pytest.fixture
    def accepted(self, inbox, redis) -> None:
        inbox.accept(event(account="acct_1"))
        inbox.accept(event("next", account="acct_1"))
        redis.hset(f"iw:evt:{ACCOUNT}", "h:a.one", "done|1|5")

    @pytest.mark.parametrize("act", ACTS)
    @pytest.mark.parametrize("before", [works, works_on])
    def test_it_is_left_to_the_one_who_works(
        self, inbox, redis, pass_time, accepted, before, act
    ) -> None:
        before(inbox, pass_time)
        kept = redis.dump(f"iw:evt:{ACCOUNT}")
        assert ACTS[act][0](inbox) == "leased"
        assert redis.dump(f"iw:evt:{ACCOUNT}") == kept
        assert claim_of(inbox, ACCOUNT) is Refused.LEASED

    @pytest.mark.parametrize("act", ACTS)
    @pytest.mark.parametrize("before", FREE)
    def test_else_it_is_done_at_once(self, inbox, redis, pass_time, accepted, before, act) -> None:
        before(inbox, pass_time)
        had_it = before in {died, died_and_the_account_is_paused}
        ask, answer = ACTS[act]
        assert ask(inbox) == answer
        redis.delete("iw:pause:acct_1")
        if act == "discard":
            assert inbox.find(ACCOUNT).state == "done"
            assert isinstance(claim_of(inbox, "acct_1-evt_next"), Claim), "the session is free"
            return
        claim = claimed(inbox, ACCOUNT)
        assert claim.suspect == had_it, "what may have killed a worker is not forgotten"
        assert claim.lapses == 0, "and counts as none more"

    @pytest.mark.parametrize("act", ACTS)
    def test_a_holder_that_comes_back_late_is_refused(
        self, inbox, pass_time, accepted, act
    ) -> None:
        claim = claimed(inbox, ACCOUNT)
        pass_time(LEASE + 1)
        ACTS[act][0](inbox)
        assert not inbox.renew(claim)
        assert not inbox.save_progress(claim, "a.one", Progress("done"))
        assert not inbox.release(claim, 0, "worker stopped")
        assert inbox.finish(claim, "done", outcome="verified") is None

    def test_a_replay_that_does_nothing_leaves_it(self, inbox, redis, pass_time, accepted) -> None:
        died(inbox, pass_time)
        kept = redis.dump(f"iw:evt:{ACCOUNT}")
        assert inbox.replay(ACCOUNT, "a.never") == "pending"
        assert redis.dump(f"iw:evt:{ACCOUNT}") == kept
        assert claimed(inbox, ACCOUNT).lapses == 1

    @pytest.mark.parametrize(
        ("before", "waits"),
        [
            (works, 0),
            (died, 0),
            (died_and_the_account_is_paused, 1),
            (the_account_is_paused, 1),
            (was_given_back, 1),
        ],
    )
    def test_what_is_shown_says_the_same(
        self, inbox, redis, pass_time, accepted, before, waits
    ) -> None:
        before(inbox, pass_time)
        assert inbox.find(ACCOUNT).is_claimed == (before is works)
        assert sum(survey(redis).waits.values()) == waits

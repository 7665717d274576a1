"""What a person can have done with an event that waits for what never comes."""

from __future__ import annotations

import pytest

from service.inbox import AcceptResult, Claim, Progress, Refused
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
        assert claim.waits == 0

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

    def test_a_dead_one_can_be_ended_too(self, inbox, redis) -> None:
        inbox.accept(event())
        inbox.finish(claimed(inbox), "dead", outcome="verified", reason="a.b: no")
        assert inbox.discard("evt_1") == "discarded"
        assert not redis.exists("iw:dead", "iw:due", "iw:evt:evt_1")
        found = inbox.find("evt_1")
        assert (found.state, found.reason) == ("done", "a.b: no")
        assert inbox.replay("evt_1", "all") == "replayed"

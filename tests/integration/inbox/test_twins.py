"""One change that comes in both forms, under two ids."""

from __future__ import annotations

import time

import pytest

from service.inbox import AcceptResult, Claim, Inbox, Refused, keys
from tests.integration.claims import claim_next, claim_of, claimed, claimed_again, event


class TestTwins:
    """A change that comes in both forms, under two ids.

    The event that was accepted first is worked on, unless the other was claimed before. Either id
    means that event, wherever an id is given.
    """

    @staticmethod
    def both(inbox: Inbox, first: str, second: str, *, state: str = "pending") -> None:
        """Take both in, and have the thin one find out; `state` is that of the first by then."""
        inbox.accept(event(first, form="thin" if first == "thin" else "snapshot"))
        if state != "pending":
            inbox.finish(claimed(inbox, f"evt_{first}"), state, outcome="verified")
        time.sleep(0.002)  # the moments of acceptance are milliseconds
        inbox.accept(event(second, form="thin" if second == "thin" else "snapshot"))
        inbox.link(claimed(inbox, "evt_thin"), "evt_snap")

    @pytest.mark.parametrize("order", [("thin", "snap"), ("snap", "thin")])
    def test_the_one_accepted_first_is_worked_on(self, inbox, redis, order) -> None:
        self.both(inbox, *order)
        worked_on, other = (f"evt_{name}" for name in order)

        for key in (worked_on, other):
            found = inbox.find(key)
            assert found is not None
            assert (found.key, found.state) == (worked_on, "pending")
            assert inbox.accept(event(key.removeprefix("evt_"))) is AcceptResult.PENDING
        assert redis.zrange("iw:due", 0, -1) == [worked_on.encode()]
        assert [record.key for record in inbox.records("all", 10)] == [worked_on]

    def test_it_is_worked_on_also_when_the_other_is_known_only_by_name(self, inbox, redis) -> None:
        inbox.accept(event("thin"))
        claim = claimed(inbox, "evt_thin")

        assert inbox.link(claim, "evt_snap") == "first"
        assert claim.identity == "evt_snap"
        assert inbox.accept(event("snap", form="snapshot")) is AcceptResult.PENDING
        inbox.finish(claim, "done", outcome="verified")
        assert inbox.accept(event("snap", form="snapshot")) is AcceptResult.DONE
        assert 0 <= keys.KEEP - redis.ttl("iw:evt:evt_snap") < 60

    @pytest.mark.parametrize("state", ["pending", "done", "dead"])
    def test_the_one_that_comes_later_yields(self, inbox, redis, state) -> None:
        self.both(inbox, "snap", "thin", state=state)

        found = inbox.find("evt_thin")
        assert found is not None
        assert (found.key, found.state) == ("evt_snap", state)
        ttl = redis.ttl("iw:evt:evt_thin")
        assert ttl > keys.KEEP - 60 if state == "done" else ttl == -1
        assert not redis.exists("iw:session::vs_1")

    def test_one_that_yields_loses_its_claim_and_frees_the_session(self, inbox) -> None:
        inbox.accept(event("snap", form="snapshot"))
        time.sleep(0.002)
        inbox.accept(event("thin"))
        late = claimed(inbox, "evt_thin")
        assert claim_of(inbox, "evt_snap") is Refused.BUSY
        inbox.claim(2)  # what accepting them put into the queue

        assert inbox.link(late, "evt_snap") == "second"
        assert late.lost
        first = claim_next(inbox)
        assert isinstance(first, Claim)
        assert (first.event.id, first.identity) == ("evt_snap", "evt_snap")
        inbox.finish(first, "done", outcome="verified")
        assert inbox.accept(event("thin")) is AcceptResult.DONE

    def test_one_that_was_claimed_before_is_worked_on(self, inbox, pass_time) -> None:
        inbox.accept(event("thin"))
        inbox.accept(event("snap", form="snapshot"))
        inbox.release(claimed(inbox, "evt_snap"), 5, "stripe: busy")

        assert inbox.link(claimed(inbox, "evt_thin"), "evt_snap") == "second"
        found = inbox.find("evt_thin")
        assert found is not None
        assert found.key == "evt_snap"

    def test_linking_again_is_the_same(self, inbox, pass_time) -> None:
        inbox.accept(event("thin"))
        inbox.link(claimed(inbox, "evt_thin"), "evt_snap")
        pass_time(keys.LEASE)
        again = claimed(inbox, "evt_thin")

        assert again.twin == "evt_snap"
        assert inbox.link(again, "evt_snap") == "first"

    def test_a_third_id_leads_to_the_same_event_and_is_forgotten_in_time(
        self, inbox, redis
    ) -> None:
        self.both(inbox, "thin", "snap")
        inbox.finish(claimed_again(inbox, "evt_thin"), "dead", outcome="", reason="no")
        inbox.accept(event("third"))
        assert inbox.link(claimed(inbox, "evt_third"), "evt_snap") == "second"

        assert {inbox.find(f"evt_{id_}").key for id_ in ("thin", "snap", "third")} == {"evt_thin"}
        assert redis.hget("iw:evt:evt_thin", "twin") == b"evt_snap"
        assert redis.ttl("iw:evt:evt_third") > keys.KEEP - 60

    @pytest.mark.parametrize("id_", ["evt_thin", "evt_snap"])
    @pytest.mark.parametrize("order", [("thin", "snap"), ("snap", "thin")])
    def test_whatever_is_given_an_id_takes_either(self, redis, order, id_) -> None:
        inbox = Inbox(redis, reopen_dead=True)
        self.both(inbox, *order)
        worked_on = f"evt_{order[0]}"

        claim = claimed_again(inbox, id_)
        assert claim.event.key == worked_on
        assert claim.identity == "evt_snap"
        assert [inbox.replay(id_), inbox.discard(id_)] == ["leased", "leased"]
        inbox.finish(claim, "dead", outcome="", reason="no")
        assert claim_of(inbox, id_) is Refused.DEAD
        assert inbox.replay(id_, "all") == "replayed"
        inbox.finish(claimed(inbox, id_), "dead", outcome="", reason="no")
        name = id_.removeprefix("evt_")
        assert inbox.accept(event(name)) is AcceptResult.REOPENED
        assert inbox.accept(event(name)) is AcceptResult.PENDING
        assert inbox.discard(id_) == "discarded"
        assert inbox.accept(event(name)) is AcceptResult.DONE
        assert claim_of(inbox, id_) is Refused.DONE
        assert inbox.find(id_).key == worked_on

    def test_a_lost_claim_links_nothing(self, inbox, redis, pass_time) -> None:
        inbox.accept(event("thin"))
        old = claimed(inbox, "evt_thin")
        pass_time(keys.LEASE)
        claimed(inbox, "evt_thin")

        assert inbox.link(old, "evt_snap") == "lost"
        assert not redis.exists("iw:evt:evt_snap")

    def test_an_id_that_leads_nowhere_is_new(self, inbox, redis) -> None:
        inbox.accept(event("thin"))
        inbox.link(claimed(inbox, "evt_thin"), "evt_snap")
        redis.delete("iw:evt:evt_thin", "iw:session::vs_1")
        redis.expire("iw:evt:evt_snap", keys.KEEP)

        assert inbox.find("evt_snap") is None
        assert inbox.accept(event("snap")) is AcceptResult.NEW
        assert redis.ttl("iw:evt:evt_snap") == -1
        assert claimed(inbox, "evt_snap").twin is None

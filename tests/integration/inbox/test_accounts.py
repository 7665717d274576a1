"""Whose events are compared with Stripe's."""

from __future__ import annotations

from service.inbox import AcceptResult, Inbox
from service.survey import survey
from tests.integration.claims import event


class TestAccounts:
    """Connected accounts: whose events are compared with Stripe's."""

    def test_those_that_events_came_from_are_remembered(self, inbox, redis) -> None:
        inbox.accept(event("1"))
        assert inbox.accounts() == []
        assert not redis.exists("iw:accounts"), "nothing where nobody is connected"
        for name, account in (("2", "acct_b"), ("3", "acct_a"), ("4", "acct_b/acct_c")):
            inbox.accept(event(name, account=account))

        assert inbox.accounts() == ["acct_a", "acct_b", "acct_b/acct_c"]

    def test_one_that_was_not_compared_yet_has_no_age(self, inbox, redis) -> None:
        inbox.accept(event(account="acct_a"))
        assert survey(redis).through == {}
        inbox.move_watermark(inbox.now() - 60, "acct_a")
        assert 60 <= survey(redis).through["acct_a"] < 120

    def test_one_whose_event_was_refused_is_not(self, redis) -> None:
        inbox = Inbox(redis, limit=1)
        inbox.accept(event("0", session="0"))
        assert inbox.accept(event(account="acct_a")) is AcceptResult.FULL
        assert inbox.accounts() == []

    def test_what_is_taken_in_as_done_is_of_an_account_too(self, inbox) -> None:
        inbox.move_watermark(1_800_000_001, "acct_a")
        for name, account in (("1", "acct_a"), ("2", "acct_b"), ("3", None)):
            assert inbox.adopt(event(name, account=account), "ann") == "adopted"
        assert inbox.accounts() == ["acct_a", "acct_b"]
        watermarks = [inbox.watermark(each) for each in ("acct_a", "acct_b")]
        assert watermarks == [1_800_000_001, None], "what was compared stays compared"

    def test_each_has_a_watermark_of_its_own(self, inbox) -> None:
        inbox.accept(event(account="acct_a"))
        assert [inbox.watermark(each) for each in (None, "acct_a", "acct_b")] == [None] * 3
        inbox.move_watermark(1_800_000_001)
        inbox.move_watermark(1_800_000_002, "acct_a")
        inbox.move_watermark(1_800_000_003, "acct_b")

        inbox.accept(event("2", account="acct_a"))
        watermarks = [inbox.watermark(each) for each in (None, "acct_a", "acct_b")]
        assert watermarks == [1_800_000_001, 1_800_000_002, 1_800_000_003]
        assert inbox.accounts() == ["acct_a", "acct_b"], "also one that somebody else named"

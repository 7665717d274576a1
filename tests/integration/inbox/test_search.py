"""Whatever is asked for, a search finds what a look at every record finds, and in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from service.inbox import Filter, Inbox, Progress, search
from tests.integration.claims import claimed, event

DAY = 86_400
ACCOUNTS = (None, "acct_1", "acct_10", "acct_1/acct_2")
SESSIONS = ("one", "two")
ENDS = ("pending", "done", "dead")
DIED = "failed: KeyError at crm.py:4 save"


@pytest.fixture
def keys(inbox: Inbox, pass_time: Callable[[float], None]) -> list[str]:
    """Of each account and session an event of each end, three times, days apart."""
    keys = []
    for turn in range(3):
        for number, (account, session, end) in enumerate(
            itertools.product(ACCOUNTS, SESSIONS, ENDS)
        ):
            taken = event(f"{turn}{number:02}", session, form="snapshot", account=account)
            inbox.accept(taken)
            keys.append(taken.key)
            if end == "pending":
                continue
            claim = claimed(inbox, taken.key)
            progress = Progress("done") if end == "done" else Progress("dead", 3, reason=DIED)
            inbox.save_progress(claim, f"p.{session}", progress)
            reason = "" if end == "done" else f"p.{session}: {DIED}"
            inbox.finish(claim, end, outcome="verified", reason=reason)
        pass_time(3 * DAY)
    return keys


def filters(now: float) -> list[Filter]:
    moments = (None, datetime.fromtimestamp(now - 7 * DAY, UTC))
    return [
        Filter(*values)
        for values in itertools.product(
            ("all", *ENDS),
            (None, "vs_one", "vs_none"),
            (None, *ACCOUNTS[1:], "acct_2"),
            (None, "p.one", "p.none"),
            (None, "failed"),
            moments,
            moments,
        )
    ]


def test_every_filter_finds_what_a_look_at_every_record_finds(inbox, keys) -> None:
    records = [record for key in keys if (record := inbox.find(key))]
    assert len(records) == len(keys) == 72
    found_some = 0
    for wanted in filters(inbox.now()):
        found = [record.key for record in inbox.search.all(wanted)]
        assert sorted(found) == sorted(r.key for r in records if wanted.matches(r)), wanted
        found_some += bool(found)
    assert found_some > 100


@pytest.mark.parametrize("bound", ["since", "until"])
def test_bounds_within_the_hour_of_an_event_are_kept_to(inbox, keys, bound) -> None:
    """What has ended is listed by the hour; a bound may lie anywhere in it."""
    records = [record for key in keys if (record := inbox.find(key))]
    for of in (records[0], records[len(records) // 2], records[-1]):
        hour = of.accepted.replace(minute=0, second=0, microsecond=0)
        moments = [hour, hour + timedelta(hours=1)]
        moments += [of.accepted + timedelta(milliseconds=ms) for ms in (-1000, -1, 0, 1, 1000)]
        for moment, state in itertools.product(moments, ("all", *ENDS)):
            wanted = Filter(state, **{bound: moment})
            found = sorted(record.key for record in inbox.search.all(wanted))
            assert found == sorted(r.key for r in records if wanted.matches(r)), wanted


def test_the_newest_come_first_also_over_hours_and_months(inbox, pass_time) -> None:
    for name in ("first", "second", "third"):
        pass_time(31 * DAY)  # the lists by session are those of 30 days
        inbox.accept(event(name))
        inbox.finish(claimed(inbox, f"evt_{name}"), "done", outcome="verified")
    for wanted in (Filter(), Filter("done"), Filter(session="vs_1")):
        found = [record.key for record in inbox.search.all(wanted)]
        assert found == ["evt_third", "evt_second", "evt_first"], wanted


@pytest.mark.parametrize("tied", [False, True], ids=["", "all in the same millisecond"])
@pytest.mark.parametrize("limit", [1, 5])
def test_pages_one_after_another_are_the_whole_however_few_are_read_at_once(
    inbox, keys, redis, monkeypatch, limit, tied
) -> None:
    if tied:
        for name in (b"iw:due", *redis.scan_iter("iw:dead*", _type="zset")):
            for key in redis.zrange(name, 0, -1):
                redis.zadd(name, {key: 1_800_000_000_000})
    options = (("all", *ENDS), (None, "vs_one"), (None, "acct_1"), (None, "p.one"))
    asked = [Filter(*values) for values in itertools.product(*options)]
    whole = [[record.key for record in inbox.search.all(wanted)] for wanted in asked]
    monkeypatch.setattr(search, "CHUNK", 4)
    monkeypatch.setattr(search, "KEYS", 3)
    for wanted, expected in zip(asked, whole, strict=True):
        begin, found = None, []
        for _ in range(len(keys) + 2):
            page = inbox.search.page(wanted, limit, begin, look=1)
            found += [record.key for record in page.records]
            if (begin := page.following) is None:
                break
            assert search.is_place(begin, wanted)
        assert (found, begin) == (expected, None), wanted


def test_what_is_not_done_is_found_by_its_session_however_old_it_is(
    inbox, keys, redis, pass_time
) -> None:
    """The lists are kept for as long as what is done; a person may act later."""
    pass_time(inbox.search._keep + DAY)
    for name in (*redis.scan_iter("iw:log:*"), *redis.scan_iter("iw:of:*")):
        redis.delete(name)
    left = [r for key in keys if (r := inbox.find(key)) and r.state == "dead"]
    waiting = next(key for key in keys if inbox.find(key).state == "pending")
    inbox.release(claimed(inbox, waiting), 60, "stripe: unreachable")
    left.append(inbox.find(waiting))
    assert len(left) == 25
    for session in SESSIONS:
        found = {record.key for record in inbox.search.all(Filter(session=f"vs_{session}"))}
        assert found == {each.key for each in left if each.event.session == f"vs_{session}"}

"""What the inbox promises, one sentence a test. The state machine is in test_model.py."""

from __future__ import annotations

import time
from calendar import monthrange
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from service.inbox import (
    AcceptResult,
    Claim,
    Inbox,
    Progress,
    Quarantined,
    Refused,
    Swept,
    keys,
    save_progress_at_end,
)
from service.inbox import inbox as inbox_module
from service.inbox.scripts import script
from tests.integration.claims import claim_next, claim_of, claimed, event


def test_an_accepted_event_is_found_as_it_was(inbox) -> None:
    given = event(account="acct_1/acct_2", kind="requires_input")

    assert inbox.accept(given) is AcceptResult.NEW
    found = inbox.find("acct_1-acct_2-evt_1")

    assert found is not None
    assert (found.event, found.state) == (given, "pending")


@pytest.mark.usefixtures("within_an_hour")
def test_it_is_listed_where_every_release_lists_it(inbox, redis) -> None:
    """By hours and months of 720 hours since 1970: two releases may share a Redis."""
    hour = int(inbox.now() // 3600)
    inbox.accept(event("1", session="vs_abcXY"))

    assert redis.zrange("iw:hours", 0, -1) == [str(hour).encode()]
    assert redis.lrange(f"iw:log:{hour}", 0, -1) == [b"evt_1"]
    assert redis.lrange(f"iw:of:{hour // 720}:XY", 0, -1) == [b"abc evt_1"]


@pytest.mark.parametrize("state", ["done", "dead"])
def test_it_says_when_it_was_settled_until_it_lives_again(inbox, redis, state) -> None:
    inbox.accept(event())
    assert inbox.find("evt_1").settled_ms is None
    claim = claimed(inbox)
    redis.hincrby("iw:evt:evt_1", "accepted", -5000)
    inbox.finish(claim, state, outcome="", reason="no")
    assert 5000 <= inbox.find("evt_1").settled_ms < 600_000
    inbox.replay("evt_1", "all")
    assert inbox.find("evt_1").settled_ms is None


def test_accepting_is_one_round_trip(redis, server, monkeypatch) -> None:
    monkeypatch.setattr(inbox_module, "MEMORY_PROBE", 10_000)
    inbox = Inbox(redis)
    inbox.accept(event("0"))  # asks for the memory as well, as one call every five seconds does
    redis.ping()  # connects
    with server.client() as other, other.monitor() as monitor:
        inbox.accept(event("1"))
        redis.echo("that was all")
        sent = []
        while (command := monitor.next_command())["command"] != "ECHO that was all":
            if command["client_type"] != "lua":
                sent.append(command["command"].split()[0])

    assert sent == ["EVALSHA"]


def test_accepted_again_it_changes_nothing(inbox, redis) -> None:
    inbox.accept(event())
    before = {key: redis.dump(key) for key in redis.keys("*")}

    assert inbox.accept(event()) is AcceptResult.PENDING
    assert {key: redis.dump(key) for key in redis.keys("*")} == before


def test_fifty_at_once_accept_it_once(server, redis) -> None:
    def accept(_: int) -> AcceptResult:
        with server.client() as client:
            return Inbox(client).accept(event())

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(accept, range(50)))

    assert sorted(answers) == [AcceptResult.NEW] + [AcceptResult.PENDING] * 49
    assert redis.llen("rq:queue:identity") == 1


def test_a_full_inbox_takes_nothing_new_but_knows_what_it_has(redis) -> None:
    inbox = Inbox(redis, limit=2)
    answers = [inbox.accept(event(name)) for name in ("1", "2", "3", "1")]

    assert answers == [AcceptResult.NEW, AcceptResult.NEW, AcceptResult.FULL, AcceptResult.PENDING]
    assert inbox.find("evt_3") is None
    assert inbox.room() == 0


def test_only_one_can_hold_a_claim(inbox) -> None:
    inbox.accept(event())

    assert isinstance(claim_of(inbox, "evt_1"), Claim)
    assert claim_of(inbox, "evt_1") is Refused.LEASED
    assert claim_of(inbox, "evt_2") is Refused.GONE


def test_a_claim_whose_lease_ran_out_passes_to_the_next_and_the_old_token_is_refused(
    inbox, pass_time
) -> None:
    inbox.accept(event())
    old = claimed(inbox)
    pass_time(keys.LEASE)
    new = claimed(inbox)

    assert int(new.token) > int(old.token)
    assert not inbox.save_progress(old, "a.b", Progress("done"))
    assert old.lost
    assert not inbox.renew(old)
    assert not inbox.release(old, 0, "")
    assert inbox.finish(old, "done", outcome="") is None
    assert inbox.save_progress(new, "a.b", Progress("done"))


def test_a_renewed_lease_goes_on(inbox, pass_time) -> None:
    inbox.accept(event())
    claim = claimed(inbox)
    pass_time(0.6 * keys.LEASE)
    assert inbox.renew(claim)
    pass_time(0.6 * keys.LEASE)

    assert claim_of(inbox, "evt_1") is Refused.LEASED


def test_a_lease_that_ran_out_is_still_good_if_nobody_else_came(inbox, pass_time) -> None:
    inbox.accept(event())
    claim = claimed(inbox)
    pass_time(keys.LEASE + 5)

    assert inbox.save_progress(claim, "a.b", Progress("done"))
    assert inbox.renew(claim)


def test_two_events_of_one_session_are_not_held_at_once(inbox, pass_time) -> None:
    inbox.accept(event("1"))
    inbox.accept(event("2"))
    inbox.accept(event("3", account="acct_9"))
    first = claimed(inbox, "evt_1")

    assert claim_of(inbox, "evt_2") is Refused.BUSY
    assert isinstance(claim_of(inbox, "acct_9-evt_3"), Claim), (
        "another account's session of that id"
    )
    assert claim_of(inbox, "evt_2") is Refused.EARLY

    inbox.finish(first, "done", outcome="")
    pass_time(keys.BUSY_DELAY)
    assert isinstance(claim_of(inbox, "evt_2"), Claim)


def test_the_next_event_of_a_session_is_woken_when_it_is_free(inbox, redis) -> None:
    for name in ("1", "2", "3"):
        inbox.accept(event(name))
    first = claim_next(inbox)
    assert isinstance(first, Claim)
    assert [claim_next(inbox), claim_next(inbox)] == [Refused.BUSY, Refused.BUSY]
    assert claim_next(inbox) is None

    inbox.finish(first, "done", outcome="")
    second = claim_next(inbox)
    assert isinstance(second, Claim)
    assert second.event.id == "evt_2"
    assert claim_next(inbox) is None
    inbox.release(second, 30, "stripe: busy")
    third = claim_next(inbox)
    assert isinstance(third, Claim)
    assert third.event.id == "evt_3"
    inbox.finish(third, "done", outcome="")
    assert claim_next(inbox) is None
    assert redis.keys("iw:waiting:*") == []


def test_while_paused_nothing_is_taken(inbox, redis) -> None:
    inbox.accept(event())
    inbox.pause(30, "Stripe refuses our key")

    assert claim_next(inbox) is Refused.PAUSED
    redis.delete("iw:pause")
    assert isinstance(claim_next(inbox), Claim)


def test_after_a_pause_of_an_account_was_ended_its_events_wait_a_moment_longer(
    inbox, pass_time
) -> None:
    inbox.accept(event(account="acct_1"))
    inbox.pause(3600, "by ann", "acct_1")
    assert not isinstance(claim_next(inbox), Claim)
    assert inbox.resume("acct_1")
    pass_time(keys.HORIZON)
    inbox.sweep()
    assert isinstance(claim_next(inbox), Claim)


@pytest.mark.parametrize("seconds", [20, 3600])
def test_what_a_pause_of_its_account_holds_is_due_when_that_ends_or_after_a_minute(
    inbox, redis, seconds
) -> None:
    inbox.accept(event(account="acct_1"))
    before = redis.time()[0]
    inbox.pause(seconds, "stripe: limited 429", "acct_1")
    assert claim_next(inbox) is Refused.HELD
    waits = min(seconds, keys.HORIZON)
    until = inbox.find("acct_1-evt_1").waits_until.timestamp()
    assert before + waits <= until <= redis.time()[0] + 1 + waits
    assert redis.zscore("iw:due", "acct_1-evt_1") == round(until * 1000)


def test_a_holder_whose_session_another_event_has_by_now_has_lost_it(inbox, redis) -> None:
    for name in ("1", "2"):
        inbox.accept(event(name))
    late = claimed(inbox, "evt_1")
    redis.delete("iw:session::vs_1")  # its lease has run out
    holder = claimed(inbox, "evt_2")
    assert not inbox.renew(late)
    assert late.lost
    assert redis.get("iw:session::vs_1").startswith(b"evt_2 ")
    assert inbox.renew(holder)


@pytest.mark.parametrize(("form", "events"), [("snapshot", 12), ("thin", 6)])
def test_all_workers_share_a_rate_of_api_calls(redis, form, events) -> None:
    workers = [Inbox(redis, api_rate=10) for _ in range(3)]
    for number in range(40):
        workers[0].accept(event(str(number), session=str(number), form=form))
    started = time.monotonic()
    taken = []
    while (answer := claim_next(workers[len(taken) % 3])) is not Refused.THROTTLED:
        taken.append(answer)
    took = time.monotonic() - started

    # A second's worth at once, and one more call that began within it.
    assert abs(len(taken) - events) <= 1 + 10 * took
    time.sleep(0.25)
    assert isinstance(claim_next(workers[0]), Claim)


def test_the_rate_ends_a_claim_of_several_and_takes_none_of_them_away(redis) -> None:
    inbox = Inbox(redis, api_rate=2)
    for number in range(5):
        inbox.accept(event(str(number), session=str(number), form="snapshot"))
    *claims, last = inbox.claim(5)
    assert last is Refused.THROTTLED
    assert [claim.event.id for claim in claims] == [f"evt_{n}" for n in range(len(claims))]
    assert len(claims) in range(2, 5)


@pytest.mark.parametrize(
    ("what", "calls"), [("new", 2), ("has no other form", 1), ("is in hand", 0), ("is gone", 0)]
)
def test_what_a_wake_up_takes_out_of_the_rate_of_calls(redis, what, calls) -> None:
    inbox = Inbox(redis, api_rate=1)
    inbox.accept(event())
    if what == "has no other form":
        claim = claimed(inbox)
        inbox.link(claim, "")
        inbox.release(claim, 0, "worker stopped")
    elif what == "is in hand":
        claimed(inbox)
    elif what == "is gone":
        redis.delete("iw:evt:evt_1")
    redis.delete("iw:budget")
    began = redis.time()
    claim_of(inbox, "evt_1")
    until = int(redis.get("iw:budget") or 0)
    ended = redis.time()
    earliest, latest = (1000 * (s + calls) + us // 1000 for s, us in (began, ended))
    assert earliest <= until <= latest if calls else not until


def test_without_a_rate_there_is_no_limit(inbox) -> None:
    for number in range(300):
        inbox.accept(event(str(number), session=str(number)))

    assert all(isinstance(claim_next(inbox), Claim) for _ in range(300))


def test_several_are_taken_at_once_until_the_queue_is_empty(inbox) -> None:
    for number in range(5):
        inbox.accept(event(str(number), session=str(number)))
    first, rest = inbox.claim(3), inbox.claim(3)
    assert [claim.event.id for claim in first + rest] == [f"evt_{n}" for n in range(5)]
    assert inbox.claim(3) == []


@pytest.mark.parametrize("days", [0, 1, 30])
def test_how_an_event_ended_counts_under_the_day_on_which_stripe_made_it(
    inbox, redis, days
) -> None:
    """However late it was delivered."""
    created = int(redis.time()[0]) - days * 86_400
    inbox.accept(event(created=created))
    inbox.finish(claimed(inbox), "done", outcome="verified")
    assert redis.keys("iw:outcomes:*") == [b"iw:outcomes:%d" % (created // 86_400)]


def test_a_foreign_job_is_dropped(inbox, redis) -> None:
    redis.rpush("rq:queue:identity", "os-system", "evt_0-1; rm", "x:y-3")
    redis.hset("rq:job:os-system", "data", '["os.system", null, ["true"], {}]')

    assert [claim_next(inbox) for _ in range(4)] == [Refused.GONE] * 3 + [None]
    assert redis.keys("rq:job:*") == []


def test_a_claim_that_slept_through_its_lease_yields_to_another_event_of_the_session(
    inbox, pass_time
) -> None:
    inbox.accept(event("1"))
    inbox.accept(event("2"))
    sleeper = claimed(inbox, "evt_1")
    pass_time(keys.LEASE + 1)
    assert isinstance(claim_of(inbox, "evt_2"), Claim)

    assert not inbox.renew(sleeper)
    assert sleeper.lost


def test_what_handlers_did_is_kept_between_claims(inbox, pass_time) -> None:
    inbox.accept(event())
    claim = claimed(inbox)
    inbox.save_progress(claim, "a.done", Progress("done"))
    inbox.save_progress(claim, "a.later", Progress("retry", 2, reason="why"), delay=5)
    inbox.release(claim, 5, "handlers wait")

    assert claim_of(inbox, "evt_1") is Refused.EARLY
    pass_time(5)
    again = claimed(inbox)

    assert again.progress["a.done"].status == "done"
    assert again.progress["a.later"].attempts == 2
    assert again.progress["a.later"].reason == "why"
    assert not again.is_due("a.done")
    assert again.is_due("a.later")
    assert again.is_due("a.new")


def test_a_release_without_delay_wakes_at_once(inbox, redis) -> None:
    inbox.accept(event())
    inbox.release(claimed(inbox), 0, "worker stopped")

    assert redis.llen("rq:queue:identity") == 2
    assert isinstance(claimed(inbox), Claim)


def test_faults_are_counted_until_something_is_done_and_waits_are_not(inbox, pass_time) -> None:
    inbox.accept(event())
    for count in range(3):
        claim = claimed(inbox)
        assert claim.faults == count
        inbox.release(claim, 1, "processing failed", is_fault=True)
        pass_time(1)
        inbox.release(claimed(inbox), 1, "stripe: limited 429")
        pass_time(1)
    claim = claimed(inbox)
    assert claim.faults == 3
    inbox.save_progress(claim, "a.b", Progress("retry"), delay=1)
    inbox.release(claim, 1, "handlers wait")
    pass_time(1)

    assert claimed(inbox).faults == 0


def test_a_done_event_is_kept_35_days_and_then_forgotten(inbox, redis) -> None:
    inbox.accept(event())
    took = inbox.finish(claimed(inbox), "done", outcome="verified", reason="")

    assert took is not None
    assert 0 <= took < 60
    assert inbox.accept(event()) is AcceptResult.DONE
    assert claim_of(inbox, "evt_1") is Refused.DONE
    assert 0 <= keys.KEEP - redis.ttl("iw:done:evt_1") < 60
    assert not redis.exists("iw:due", "iw:session::vs_1", "iw:evt:evt_1")


def test_what_is_kept_of_a_done_event_says_the_same(inbox, redis) -> None:
    inbox.accept(event(account="acct_1"))
    claim = claimed(inbox, "acct_1-evt_1")
    inbox.save_progress(claim, "a.one", Progress("skipped", 0, reason="no\tt|ab"))
    before = inbox.find(claim.event.key)
    save_progress_at_end(claim, "b.two", Progress("done", 3))
    inbox.finish(claim, "done", outcome="needs_input", reason="too\tdark")

    kept = inbox.find(claim.event.key)
    assert (kept.key, kept.event, kept.accepted) == (before.key, before.event, before.accepted)
    assert (kept.state, kept.outcome, kept.reason) == ("done", "needs_input", "too dark")
    assert kept.handlers["a.one"].reason == "no t/ab"
    assert kept.handlers["b.two"].attempts == 3
    assert kept.settled_ms is not None
    assert list(inbox.records("done", 10)) == list(inbox.records("all", 10)) == [kept]

    assert inbox.replay(kept.key, "a.one") == "replayed"
    again = claimed(inbox, kept.key)
    assert again.event == claim.event
    assert int(again.token) > int(claim.token)
    assert again.progress == {"b.two": kept.handlers["b.two"]}
    assert not redis.exists(f"iw:done:{kept.key}")


@pytest.mark.parametrize("days", [0, 2], ids=["at once", "later than its lists expect"])
def test_an_event_is_listed_for_as_long_as_it_is_kept(inbox, redis, pass_time, days) -> None:
    inbox.accept(event())
    (hours,), (sessions,) = redis.keys("iw:log:*"), redis.keys("iw:of:*")
    assert redis.ttl(hours) > keys.KEEP + keys.HOUR + keys.DAY - 60
    assert redis.ttl(sessions) > keys.KEEP + keys.HOURS_OF * keys.HOUR + keys.DAY - 60
    pass_time(days * keys.DAY)
    lists = [*redis.keys("iw:log:*"), *redis.keys("iw:of:*")]
    for name in lists:  # the shortest that is left: they were begun with the hour, with the month
        redis.expire(name, keys.KEEP + keys.DAY - days * keys.DAY)
    inbox.sweep()
    inbox.finish(claimed(inbox), "done", outcome="verified")
    assert min(map(redis.ttl, lists)) >= redis.ttl("iw:done:evt_1")


def test_what_handlers_last_heard_of_a_session_is_found_in_whichever_month(inbox, redis) -> None:
    assert inbox.last_kind(event()) is None
    inbox.accept(event())
    inbox.finish(claimed(inbox), "done", outcome="verified")
    (this_month,) = redis.keys("iw:last:*")
    assert 0 <= keys.KEEP_LAST - redis.ttl(this_month) < 60
    heard = inbox.last_kind(event())
    assert heard == event().kind

    year = this_month.split(b":")[2][:4]
    redis.rename(this_month, this_month.replace(year, b"%d" % (int(year) - 1)))
    assert inbox.last_kind(event()) == heard
    assert inbox.last_kind(event(session="vs_2")) is None
    assert inbox.last_kind(event(account="acct_1")) is None
    redis.hset(this_month, ":vs_1", "canceled")
    assert inbox.last_kind(event()) == "canceled", "the last one counts"


@pytest.mark.parametrize("month", range(1, 13))
def test_it_is_found_for_as_long_as_it_is_remembered(inbox, redis, monkeypatch, month) -> None:
    """At any day of the year, and also in the last of the months that it can be from."""
    now = datetime(2025, month, 1, tzinfo=UTC)
    monkeypatch.setattr(inbox, "now", lambda: int(now.timestamp()))
    for days in (0, 100, 200, 300, 400):
        heard = now - timedelta(days=days)
        redis.flushdb()
        redis.hset(f"iw:last:{heard:%Y-%m}:_1", ":vs_1", "verified")
        assert inbox.last_kind(event()) == "verified", days


def test_what_was_overtaken_is_not_what_handlers_heard_last(inbox) -> None:
    inbox.accept(event("1"))
    inbox.finish(claimed(inbox, "evt_1"), "done", outcome="verified")
    inbox.accept(event("2", kind="processing"))
    inbox.finish(claimed(inbox, "evt_2"), "done", outcome="superseded")
    assert inbox.last_kind(event()) == "verified"


def test_a_dead_event_stays_until_a_person_acts(inbox, redis) -> None:
    inbox.accept(event())
    claim = claimed(inbox)
    inbox.save_progress(claim, "a.good", Progress("done"))
    inbox.save_progress(claim, "a.bad", Progress("dead", 3, reason="no"))
    inbox.finish(claim, "dead", outcome="verified", reason="a.bad: no")

    assert redis.ttl("iw:evt:evt_1") == -1
    assert [record.reason for record in inbox.records("dead", 10)] == ["a.bad: no"]
    assert inbox.accept(event()) is AcceptResult.DEAD, "a redelivery leaves it dead"
    assert claim_of(inbox, "evt_1") is Refused.DEAD

    assert inbox.replay("evt_1") == "replayed"
    again = claimed(inbox)
    assert set(again.progress) == {"a.good"}
    assert list(inbox.records("dead", 10)) == []
    assert inbox.replay("evt_1") == "leased"
    assert inbox.replay("evt_0") == "gone"


def test_a_dead_event_is_reopened_on_redelivery_if_so_set(redis) -> None:
    inbox = Inbox(redis, reopen_dead=True)
    inbox.accept(event())
    inbox.finish(claimed(inbox), "dead", outcome="", reason="no")

    assert inbox.accept(event()) is AcceptResult.REOPENED
    assert inbox.accept(event()) is AcceptResult.PENDING
    assert isinstance(claim_of(inbox, "evt_1"), Claim)


@pytest.mark.parametrize(("which", "left"), [("all", set()), ("a.one", {"a.two"})])
def test_a_done_event_can_be_replayed(inbox, redis, which, left) -> None:
    inbox.accept(event())
    claim = claimed(inbox)
    inbox.save_progress(claim, "a.one", Progress("done"))
    inbox.save_progress(claim, "a.two", Progress("done"))
    inbox.finish(claim, "done", outcome="verified")

    assert inbox.replay("evt_1", which) == "replayed"
    assert set(claimed(inbox).progress) == left
    assert redis.ttl("iw:evt:evt_1") == -1
    assert not redis.exists("iw:done:evt_1")


@pytest.mark.parametrize("which", ["dead", "a.never"])
def test_one_of_which_there_is_nothing_to_run_again_stays_as_it_was(inbox, redis, which) -> None:
    inbox.accept(event(kind="requires_input"))
    claim = claimed(inbox)
    inbox.save_progress(claim, "a.one", Progress("done"))
    inbox.finish(claim, "done", outcome="needs_input", reason="document_expired")
    before = {key: redis.dump(key) for key in redis.keys("iw:[!a]*")}

    assert inbox.replay("evt_1", which) == "nothing"
    assert {key: redis.dump(key) for key in redis.keys("iw:[!a]*")} == before


@pytest.mark.parametrize("state", ["dead", "discarded"])
def test_what_was_cut_short_before_its_handlers_had_their_turn_is_replayed(inbox, state) -> None:
    inbox.accept(event())
    if state == "dead":
        inbox.finish(claimed(inbox), "dead", outcome="", reason="stripe: missing 404")
    else:
        inbox.discard("evt_1")
    assert inbox.replay("evt_1", "a.never") == "nothing"
    assert inbox.replay("evt_1") == "replayed"
    assert claimed(inbox).progress == {}


@pytest.mark.parametrize("state", ["done", "dead"])
def test_the_outcome_outlasts_a_replay_in_which_nothing_ran(inbox, state) -> None:
    """A handler is replayed that this release does not have."""
    inbox.accept(event())
    claim = claimed(inbox)
    inbox.save_progress(claim, "a.gone", Progress("dead"))
    inbox.finish(claim, state, outcome="verified", reason="")
    assert inbox.replay("evt_1") == "replayed"
    inbox.finish(claimed(inbox), "done", outcome="")
    assert inbox.find("evt_1").outcome == "verified"


def test_what_is_quarantined_says_which_event_it_was(inbox, pass_time) -> None:
    given = event(account="acct_1", kind="requires_input")
    inbox.accept(given)
    for _ in range(keys.MAX_LAPSES):
        claimed(inbox, given.key)
        pass_time(keys.LEASE)
    inbox.sweep()
    inbox.accept(event("2", session="2"))
    answers = inbox.claim(9)

    assert [answer.event for answer in answers if isinstance(answer, Quarantined)] == [given]
    assert isinstance(answers[-1], Claim), "the others are not held up"


def test_an_event_that_kills_its_worker_three_times_is_quarantined(inbox, pass_time) -> None:
    inbox.accept(event())
    for _ in range(keys.MAX_LAPSES):
        assert isinstance(claim_of(inbox, "evt_1"), Claim)
        pass_time(keys.LEASE)

    answer = claim_of(inbox, "evt_1")
    assert isinstance(answer, Quarantined)
    assert answer.event == event(account=None)
    found = inbox.find("evt_1")
    assert found is not None
    assert (found.state, found.reason) == ("dead", "quarantined")
    assert inbox.replay("evt_1") == "replayed"
    assert isinstance(claim_of(inbox, "evt_1"), Claim)


class TestWhatRanAtADeath:
    """A worker's next process writes down which handler ran when the last one died."""

    def test_is_in_the_reason_of_a_quarantine(self, inbox, pass_time) -> None:
        inbox.accept(event())
        for handler in ("a.one", "a.two", "a.three"):
            claim = claimed(inbox)
            assert inbox.note_death("evt_1", claim.token, handler)
            pass_time(keys.LEASE)
        answer = claim_of(inbox, "evt_1")
        assert isinstance(answer, Quarantined)
        assert answer.ran == "a.three", "at the last death"
        reason = "quarantined: its worker died while a.three ran"
        assert inbox.find("evt_1").reason == reason

    def test_is_forgotten_when_something_was_done(self, inbox, pass_time) -> None:
        inbox.accept(event())
        inbox.note_death("evt_1", claimed(inbox).token, "a.one")
        pass_time(keys.LEASE)
        inbox.save_progress(claimed(inbox), "a.one", Progress("done"))
        for _ in range(keys.MAX_LAPSES):
            pass_time(keys.LEASE)
            answer = claim_of(inbox, "evt_1")
        assert isinstance(answer, Quarantined)
        assert (answer.ran, inbox.find("evt_1").reason) == ("", "quarantined")

    def test_is_not_said_of_an_event_that_somebody_else_has_had_since(
        self, inbox, redis, pass_time
    ) -> None:
        inbox.accept(event())
        died = claimed(inbox)
        pass_time(keys.LEASE)
        alive = claimed(inbox)
        before = redis.hgetall("iw:evt:evt_1")
        assert not inbox.note_death("evt_1", died.token, "a.one")
        assert redis.hgetall("iw:evt:evt_1") == before
        inbox.release(alive, 5, "why")
        assert not inbox.note_death("evt_1", alive.token, "a.one")
        assert not inbox.note_death("evt_2", "1", "a.one")
        assert not redis.exists("iw:evt:evt_2")


def test_waiting_for_a_busy_session_is_no_lapse(inbox, pass_time) -> None:
    inbox.accept(event("1"))
    inbox.accept(event("2"))
    claimed(inbox, "evt_1")
    pass_time(keys.LEASE)
    other = claimed(inbox, "evt_2")
    for _ in range(keys.MAX_LAPSES + 1):
        assert claim_of(inbox, "evt_1") is Refused.BUSY
        pass_time(keys.BUSY_DELAY)
        assert inbox.renew(other)

    inbox.finish(other, "done", outcome="")
    assert isinstance(claim_of(inbox, "evt_1"), Claim)


def test_progress_ends_the_count_of_lapses(inbox, pass_time) -> None:
    inbox.accept(event())
    for number in range(keys.MAX_LAPSES * 2):
        inbox.save_progress(claimed(inbox), f"a.b{number}", Progress("done"))
        pass_time(keys.LEASE)

    assert isinstance(claim_of(inbox, "evt_1"), Claim)


class TestSweep:
    @pytest.mark.parametrize(("ahead", "left"), [(3_600_000, [3_599_990, 3_599_980]), (15, [5, 0])])
    def test_each_brings_the_clock_nearer_to_that_of_redis(self, inbox, redis, ahead, left) -> None:
        redis.set("iw:clock", f"{ahead} 0")
        for expected in left:
            inbox.sweep()
            assert int(redis.get("iw:clock").split()[0]) == expected

    def test_nothing_is_woken_before_its_time(self, inbox) -> None:
        inbox.accept(event())
        assert inbox.sweep() == Swept()

    def test_a_lost_wakeup_is_made_good(self, inbox, redis, pass_time) -> None:
        inbox.accept(event())
        redis.delete("rq:queue:identity")
        pass_time(keys.HORIZON)

        assert inbox.sweep() == Swept(woken=1)
        assert redis.lrange("rq:queue:identity", 0, -1) == [b"evt_1-2"]
        assert inbox.sweep() == Swept()

    def test_a_wakeup_that_still_waits_is_not_doubled(self, inbox, redis, pass_time) -> None:
        for number in range(5):
            inbox.accept(event(str(number), session=str(number)))
        taken = redis.lpop("rq:queue:identity", 2)
        pass_time(keys.HORIZON)

        assert taken == [b"evt_0-1", b"evt_1-2"]
        assert inbox.sweep() == Swept(woken=2, postponed=3)
        assert redis.llen("rq:queue:identity") == 5

    def test_a_dead_workers_event_is_woken_when_its_lease_is_over(
        self, inbox, redis, pass_time
    ) -> None:
        inbox.accept(event())
        redis.delete("rq:queue:identity")
        claimed(inbox)
        assert inbox.sweep() == Swept()
        pass_time(keys.LEASE)

        assert inbox.sweep() == Swept(woken=1)

    def test_a_stale_entry_is_removed(self, inbox, redis) -> None:
        redis.zadd("iw:due", {"evt_gone": 1})

        assert inbox.sweep() == Swept(stale=1)
        assert not redis.exists("iw:due")

    def test_foreign_ids_in_the_queue_do_not_stop_it(self, inbox, redis, pass_time) -> None:
        redis.rpush("rq:queue:identity", "some-job")
        inbox.accept(event())
        pass_time(keys.HORIZON)

        assert inbox.sweep().woken == 1

    def test_it_takes_as_many_as_asked(self, inbox, redis, pass_time) -> None:
        for number in range(5):
            inbox.accept(event(str(number), session=str(number)))
        redis.delete("rq:queue:identity")
        pass_time(keys.HORIZON)

        assert [inbox.sweep(2).woken for _ in range(4)] == [2, 2, 1, 0]


def test_times_are_those_of_redis(inbox, redis, monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    inbox.accept(event())
    claim = claimed(inbox)

    assert abs(claim.now / 1000 - redis.time()[0]) < 600


def test_when_a_wake_up_was_queued_is_written_right_on_every_day(redis) -> None:
    """Also in leap years, and in the first and the last second of a month."""
    moments = [
        datetime(year, month, day, hour, minute, second, ms * 1000, tzinfo=UTC)
        for year in (1999, 2000, 2026, 2027, 2028, 2100)
        for month in range(1, 13)
        for day, hour, minute, second, ms in (
            (1, 0, 0, 0, 0),
            (28, 13, 7, 9, 45),
            (monthrange(year, month)[1], 23, 59, 59, 999),
        )
    ]
    ms = [round(moment.timestamp() * 1000) for moment in moments]
    body = "local found = {}\nfor i, ms in ipairs(ARGV) do found[i] = stamp(tonumber(ms)) end\n"
    stamps = redis.eval(script(f"{body}return found\n"), 0, "a.1", *ms)
    assert [datetime.fromisoformat(each.decode()) for each in stamps] == moments


def test_how_long_things_last_is_as_the_pages_say() -> None:
    """The other tests take these from the code."""
    assert (keys.LEASE, keys.HORIZON, keys.BUSY_DELAY, keys.MAX_LAPSES) == (10, 60, 5, 3)
    days = [kept / keys.DAY for kept in (keys.KEEP, keys.KEEP_LAST, keys.KEEP_OUTCOMES)]
    assert (days, keys.DAY) == ([35, 400, 40], 86_400)
    assert (keys.STEP, keys.CATCH_UP, keys.KEEP_ANSWER) == (5, 0.01, 5)
    assert (keys.MAX_AUDIT, keys.MAX_ACTS, keys.MAX_TRAIL) == (1000, 5, 5)


def test_what_only_waited_is_no_attempt_that_failed(inbox) -> None:
    """For Stripe, or for its own process, before it was run."""
    inbox.accept(event())
    claim = claimed(inbox)
    for attempts in (0, 1, 2):
        waits = Progress("retry", attempts, reason="why")
        inbox.save_progress(claim, "a.b", waits)
    assert [each.number for each in inbox.find("evt_1").attempts] == [1]


@pytest.mark.parametrize("length", range(70, 90))
def test_a_reason_in_any_script_is_kept_readable(inbox, redis, length) -> None:
    """Of a failed attempt its beginning is kept; it ends with a whole character."""
    inbox.accept(event(session="1"))
    inbox.accept(event("2", session="2"))
    reason = f"retry: {'x' * (length % 3)}{'Ошибка€𝄞' * 20}"[:length]
    for attempt in (1, 2):
        claim = claimed(inbox)
        inbox.save_progress(claim, "a.b", Progress("retry", attempt, reason=reason), delay=0)
        inbox.release(claim, 0, reason)
    again, other = claimed(inbox), claimed(inbox, "evt_2")
    assert again.progress["a.b"].reason == reason
    assert other.lapses == 0
    save_progress_at_end(again, "a.b", Progress("done", 3))
    inbox.finish(again, "done", outcome="verified")
    first, _ = inbox.find("evt_1").attempts
    assert reason.startswith(first.reason)
    assert len(first.reason.encode()) in range(77, 81)


def test_bytes_that_are_no_text_cost_no_other_event(inbox, redis) -> None:
    for name in ("1", "2"):
        inbox.accept(event(name, session=name))
    redis.hset("iw:evt:evt_1", "trail", b"a.b|1|5|half a character \xd0")
    assert [claim.event.id for claim in inbox.claim(2)] == ["evt_1", "evt_2"]
    assert inbox.find("evt_1").key == "evt_1"


MEANWHILE = {
    "nothing": lambda inbox, claim: inbox.release(claim, 0, "worker stopped"),
    "another handler is done": lambda inbox, claim: (
        inbox.save_progress(claim, "a.other", Progress("done")),
        inbox.release(claim, 0, "worker stopped"),
    ),
    "a handler waits for Stripe": lambda inbox, claim: (
        inbox.save_progress(claim, "a.b", Progress("retry", 0, reason="stripe: broken 503")),
        inbox.release(claim, 0, "stripe: broken 503"),
    ),
    "a handler fails": lambda inbox, claim: (
        inbox.save_progress(claim, "a.b", Progress("retry", 1, reason="failed: E")),
        inbox.release(claim, 0, "handlers wait for their retry"),
    ),
    "a handler is done, which is told with the end": lambda inbox, claim: (
        save_progress_at_end(claim, "a.b", Progress("done")),
        inbox.release(claim, 0, "handlers wait for their retry"),
    ),
    "it dies and is replayed": lambda inbox, claim: (
        inbox.finish(claim, "dead", outcome="", reason="a.b: failed: its process died"),
        inbox.replay("evt_1"),
    ),
    "it waits and is replayed": lambda inbox, claim: (
        inbox.save_progress(claim, "a.b", Progress("retry", 1, reason="failed: E")),
        inbox.release(claim, 0, "handlers wait for their retry"),
        inbox.replay("evt_1"),
    ),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_a_suspect_stays_one_until_it_is_done(inbox, pass_time, what) -> None:
    inbox.accept(event("1"))
    assert not claimed(inbox).suspect
    pass_time(keys.LEASE)
    again = claimed(inbox)
    assert again.suspect
    MEANWHILE[what](inbox, again)
    pass_time(1)
    last = claimed(inbox)
    assert last.suspect
    inbox.finish(last, "done", outcome="verified")
    inbox.replay("evt_1", "all")
    assert not claimed(inbox).suspect

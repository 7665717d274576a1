"""What the inbox promises, one sentence a test. The state machine is in test_model.py."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis as redis_py

from identity_webhooks.event import Event
from service.inbox import (
    AcceptResult,
    Claim,
    Inbox,
    Progress,
    Refused,
    Swept,
    keys,
    save_progress_at_end,
)
from service.inbox import inbox as module
from tests.integration.claims import claim_of


def event(name: str = "1", session: str = "1", **changes: object) -> Event:
    fields: dict[str, object] = {"kind": "verified", "form": "thin", "created": 1_700_000_000}
    return Event(f"evt_{name}", session=f"vs_{session}", livemode=False, **(fields | changes))


@pytest.fixture
def inbox(redis) -> Inbox:
    return Inbox(redis)


def claim_next(inbox: Inbox) -> Claim | Refused | None:
    return next(iter(inbox.claim()), None)


def claimed(inbox: Inbox, key: str = "evt_1") -> Claim:
    claim = claim_of(inbox, key)
    assert isinstance(claim, Claim)
    return claim


def test_an_accepted_event_is_found_as_it_was(inbox) -> None:
    given = event(account="acct_1/acct_2", kind="requires_input")

    assert inbox.accept(given) is AcceptResult.NEW
    found = inbox.find("acct_1-acct_2-evt_1")

    assert found is not None
    assert (found.event, found.state) == (given, "pending")


def test_accepting_is_one_round_trip(redis, server) -> None:
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
    pass_time(keys.LEASE - 1)
    assert inbox.renew(claim)
    pass_time(keys.LEASE - 1)

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


class TestTwins:
    """A change that comes in both forms, under two ids."""

    def test_the_one_known_first_is_worked_on(self, inbox) -> None:
        inbox.accept(event("thin"))
        claim = claimed(inbox, "evt_thin")

        assert inbox.link(claim, "evt_snap")
        assert claim.identity == "evt_snap"
        assert inbox.accept(event("snap")) is AcceptResult.PENDING, "it leads to the other"
        assert claim_of(inbox, "evt_snap") is Refused.GONE
        inbox.finish(claim, "done", outcome="verified")
        assert inbox.accept(event("snap")) is AcceptResult.DONE
        found = inbox.find("evt_snap")
        assert found is not None
        assert found.key == "evt_thin"
        assert len(list(inbox.records("all", 10))) == 1

    @pytest.mark.parametrize("state", ["pending", "done", "dead"])
    def test_the_one_that_comes_later_yields(self, inbox, redis, state, pass_time) -> None:
        inbox.accept(event("snap"))
        if state != "pending":
            inbox.finish(claimed(inbox, "evt_snap"), state, outcome="verified")
        inbox.accept(event("thin"))
        late = claimed(inbox, "evt_thin")

        assert not inbox.link(late, "evt_snap")
        assert late.lost
        settled = inbox.find("evt_thin")
        assert settled is not None
        assert (settled.state, settled.outcome, settled.reason) == ("done", "twin", "evt_snap")
        kept = inbox.find("evt_snap")
        assert kept is not None
        assert kept.state == state

    def test_linking_again_is_the_same(self, inbox, pass_time) -> None:
        inbox.accept(event("thin"))
        inbox.link(claimed(inbox, "evt_thin"), "evt_snap")
        pass_time(keys.LEASE)
        again = claimed(inbox, "evt_thin")

        assert again.twin == "evt_snap"
        assert inbox.link(again, "evt_snap")

    def test_a_lost_claim_links_nothing(self, inbox, redis, pass_time) -> None:
        inbox.accept(event("thin"))
        old = claimed(inbox, "evt_thin")
        pass_time(keys.LEASE)
        claimed(inbox, "evt_thin")

        assert not inbox.link(old, "evt_snap")
        assert not redis.exists("iw:evt:evt_snap")

    def test_a_dead_one_is_reopened_by_either_id(self, redis) -> None:
        inbox = Inbox(redis, reopen_dead=True)
        inbox.accept(event("thin"))
        claim = claimed(inbox, "evt_thin")
        inbox.link(claim, "evt_snap")
        inbox.finish(claim, "dead", outcome="", reason="no")

        assert inbox.accept(event("snap")) is AcceptResult.REOPENED
        assert isinstance(claim_of(inbox, "evt_thin"), Claim)

    def test_an_id_that_leads_nowhere_is_new(self, inbox, redis) -> None:
        inbox.accept(event("thin"))
        inbox.link(claimed(inbox, "evt_thin"), "evt_snap")
        redis.delete("iw:evt:evt_thin", "iw:session::vs_1")

        assert inbox.accept(event("snap")) is AcceptResult.NEW
        assert isinstance(claim_of(inbox, "evt_snap"), Claim)


def test_while_paused_nothing_is_taken(inbox, redis) -> None:
    inbox.accept(event())
    inbox.pause(30, "Stripe refuses our key")

    assert claim_next(inbox) is Refused.PAUSED
    redis.delete("iw:pause")
    assert isinstance(claim_next(inbox), Claim)


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


def test_what_may_have_killed_its_worker_is_the_last_of_what_is_taken(inbox, redis) -> None:
    for number in range(4):
        inbox.accept(event(str(number), session=str(number)))
    for name in ("1", "2"):
        claimed(inbox, f"evt_{name}")
        redis.hset(f"iw:evt:evt_{name}", "lease", 1)
        redis.delete(f"iw:session::vs_{name}")
    batches = [inbox.claim(4) for _ in range(4)]
    assert [[(c.event.id, c.lapses) for c in batch] for batch in batches] == [
        [("evt_0", 0), ("evt_1", 1)],
        [("evt_2", 1)],
        [("evt_3", 0)],
        [],
    ]


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


def test_a_release_without_delay_wakes_at_once_and_counts_no_wait(inbox, redis) -> None:
    inbox.accept(event())
    inbox.release(claimed(inbox), 0, "worker stopped")

    assert redis.llen("rq:queue:identity") == 2
    assert claimed(inbox).waits == 0


def test_waits_are_counted_until_something_is_done(inbox, pass_time) -> None:
    inbox.accept(event())
    for _ in range(3):
        inbox.release(claimed(inbox), 1, "stripe: busy 429")
        pass_time(1)
    claim = claimed(inbox)
    assert claim.waits == 3
    inbox.save_progress(claim, "a.b", Progress("retry"), delay=1)
    inbox.release(claim, 1, "handlers wait")
    pass_time(1)

    assert claimed(inbox).waits == 1


def test_a_done_event_is_kept_35_days_and_then_forgotten(inbox, redis) -> None:
    inbox.accept(event())
    took = inbox.finish(claimed(inbox), "done", outcome="verified", reason="")

    assert took is not None
    assert 0 <= took < 5
    assert inbox.accept(event()) is AcceptResult.DONE
    assert claim_of(inbox, "evt_1") is Refused.DONE
    assert 0 <= keys.KEEP - redis.ttl("iw:done:evt_1") < 5
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
    assert kept.handlers["a.one"].reason == "no t|ab"
    assert kept.handlers["b.two"].attempts == 3
    assert kept.settled_ms is not None
    assert list(inbox.records("done", 10)) == list(inbox.records("all", 10)) == [kept]

    assert inbox.replay(kept.key, "a.one") == "replayed"
    again = claimed(inbox, kept.key)
    assert again.event == claim.event
    assert int(again.token) > int(claim.token)
    assert again.progress == {"b.two": kept.handlers["b.two"]}
    assert not redis.exists(f"iw:done:{kept.key}")


def test_what_handlers_last_heard_of_a_session_is_found_in_whichever_month(inbox, redis) -> None:
    assert inbox.last_kind(event()) is None
    inbox.accept(event())
    inbox.finish(claimed(inbox), "done", outcome="verified")
    (this_month,) = redis.keys("iw:last:*")
    assert 0 <= keys.KEEP_LAST - redis.ttl(this_month) < 5
    heard = inbox.last_kind(event())
    assert heard == event().kind

    year = this_month.split(b":")[2][:4]
    redis.rename(this_month, this_month.replace(year, b"%d" % (int(year) - 1)))
    assert inbox.last_kind(event()) == heard
    assert inbox.last_kind(event(session="vs_2")) is None
    assert inbox.last_kind(event(account="acct_1")) is None
    redis.hset(this_month, ":vs_1", "canceled")
    assert inbox.last_kind(event()) == "canceled", "the last one counts"


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
    assert inbox.replay("evt_1") == "pending"
    assert inbox.replay("evt_0") == "gone"


def test_a_dead_event_is_reopened_on_redelivery_if_so_set(redis) -> None:
    inbox = Inbox(redis, reopen_dead=True)
    inbox.accept(event())
    inbox.finish(claimed(inbox), "dead", outcome="", reason="no")

    assert inbox.accept(event()) is AcceptResult.REOPENED
    assert inbox.accept(event()) is AcceptResult.PENDING
    assert isinstance(claim_of(inbox, "evt_1"), Claim)


@pytest.mark.parametrize(
    ("which", "left"), [("all", set()), ("a.one", {"a.two"}), ("dead", {"a.one", "a.two"})]
)
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


def test_an_event_that_kills_its_worker_three_times_is_quarantined(inbox, pass_time) -> None:
    inbox.accept(event())
    for _ in range(keys.MAX_LAPSES):
        assert isinstance(claim_of(inbox, "evt_1"), Claim)
        pass_time(keys.LEASE)

    assert claim_of(inbox, "evt_1") is Refused.QUARANTINED
    found = inbox.find("evt_1")
    assert found is not None
    assert (found.state, found.reason) == ("dead", "quarantined")
    assert inbox.replay("evt_1") == "replayed"
    assert isinstance(claim_of(inbox, "evt_1"), Claim)


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


def fill(inbox: Inbox) -> int:
    """Accept events until no more are taken; how many were."""
    for number in range(100_000):
        inbox._next_probe = 0.0  # look at every one
        if inbox.accept(event(str(number), session=str(number))) is AcceptResult.FULL:
            return number
    return 100_000


def test_nothing_new_is_taken_in_when_redis_is_four_fifths_full(new_server) -> None:
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        inbox = Inbox(client)
        taken = fill(inbox)
        memory = client.info("memory")

        assert 100 < taken < 100_000
        assert 0.79 < memory["used_memory"] / memory["maxmemory"] < 0.85
        assert inbox.room() == 0
        client.config_set("maxmemory", "60mb")
        inbox._next_probe = 0.0
        assert inbox.accept(event("new")) is AcceptResult.NEW


def test_a_full_redis_still_drains(new_server, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_LIMIT", 2.0)
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        inbox = Inbox(client, limit=10**9)
        with pytest.raises(redis_py.exceptions.ResponseError, match="maxmemory"):
            fill(inbox)
        for _ in range(50):
            (claim,) = inbox.claim()
            assert inbox.renew(claim)
            assert inbox.save_progress(claim, "a.b", Progress("done"))
            assert inbox.finish(claim, "done", outcome="verified") is not None
        (claim,) = inbox.claim()
        inbox.release(claim, 0, "")
        inbox.sweep()


def test_gauges_tell_what_waits(inbox, redis, pass_time) -> None:
    inbox.accept(event("1"))
    inbox.accept(event("2", session="2"))
    inbox.finish(claimed(inbox, "evt_1"), "dead", outcome="", reason="no")
    pass_time(keys.HORIZON + 5)
    gauges = {name: value for name, _, value in inbox.gauges()}

    assert gauges["pending_events"] == 1
    assert gauges["dead_events"] == 1
    assert gauges["queued_jobs"] == 2
    assert 5 <= gauges["overdue_seconds"] < 15


def test_a_reply_that_is_lost_costs_nothing(server, redis, monkeypatch) -> None:
    """The client repeats the script when the connection breaks before the reply."""
    with server.client(retry_on_timeout=True) as client:
        inbox = Inbox(client)
        inbox.accept(event("0"))
        read, broken = redis_py.connection.AbstractConnection.read_response, []

        def lose_one(*args: object, **kwargs: object) -> object:
            answer = read(*args, **kwargs)
            if not broken:
                broken.append(answer)
                raise redis_py.exceptions.ConnectionError("the reply was lost")
            return answer

        monkeypatch.setattr(redis_py.connection.AbstractConnection, "read_response", lose_one)
        answer = inbox.accept(event("1", session="2"))

    assert broken == [b"new"]
    assert answer is AcceptResult.PENDING
    assert redis.llen("rq:queue:identity") == 2
    assert redis.zcard("iw:due") == 2


def test_times_are_those_of_redis(inbox, redis, monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    inbox.accept(event())
    claim = claimed(inbox)

    assert abs(claim.now / 1000 - redis.time()[0]) < 5

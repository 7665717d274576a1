"""What one look at the inbox finds, and what it does not count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from click.testing import CliRunner
from redis import Redis

from service import connection, status
from service import survey as surveys
from service.__main__ import main
from service.inbox import Claim, Inbox, Progress, keys
from service.inbox.inbox import PENDING_LIMIT
from service.processes import Process
from service.settings import Settings
from service.survey import BUSY, NOT_LISTED, Reconciled, survey
from tests.conftest import Server, free_port
from tests.integration.claims import claimed, event

DIED = "failed: KeyError at crm.py:4 save"


@pytest.fixture
def inbox(redis: Redis) -> Inbox:
    return Inbox(redis)


def accept(inbox: Inbox, name: str, age: float = 0) -> str:
    """Accept an event, some seconds ago."""
    taken = event(name, name, form="snapshot")
    inbox.accept(taken)
    accepted = int(inbox._redis.hget(f"{keys.RECORD}{taken.key}", "accepted"))
    inbox._redis.hset(f"{keys.RECORD}{taken.key}", "accepted", accepted - round(age * 1000))
    return taken.key


def live(redis: Redis, name: str, now: float, **says: object) -> None:
    """Have a process say that it lives."""
    process = Process(**{"pid": 1, "started": 1, "role": "worker"} | says)
    redis.hset(keys.PROCESSES, name, f"{round(now * 1000)} {process.encoded()}")


@pytest.mark.parametrize("due", ["first", "last"])
def test_the_oldest_is_found_whether_it_is_due_first_or_last(inbox, monkeypatch, due) -> None:
    monkeypatch.setattr(surveys, "SAMPLE", 2)
    old = accept(inbox, "old", age=7200)
    others = [accept(inbox, str(number)) for number in range(9)]
    for number, key in enumerate([*others, old] if due == "last" else [old, *others]):
        inbox.release(claimed(inbox, key), 100 + 100 * number, "stripe: unreachable")
    assert 7200 <= survey(inbox._redis).oldest < 7300


def test_what_is_settled_is_no_longer_the_oldest(inbox) -> None:
    for state in ("done", "dead"):
        key = accept(inbox, state, age=7200)
        inbox.finish(claimed(inbox, key), state, outcome="verified", reason=DIED)
    accept(inbox, "new", age=60)
    assert 60 <= survey(inbox._redis).oldest < 160


def waits_in_the_queue(inbox: Inbox, key: str) -> None:
    job = inbox._redis.lindex(keys.QUEUE_KEY, 0).decode()
    inbox._redis.hset(keys.JOB + job, "enqueued_at", stamp(inbox.now() - 500))
    accept(inbox, "later")


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(at))


def was_not_woken(inbox: Inbox, key: str) -> None:
    inbox.release(claimed(inbox, key), 1, "stripe: unreachable")
    inbox._redis.delete(keys.QUEUE_KEY)
    inbox._redis.zadd(keys.DUE, {key: (inbox.now() - 500) * 1000})


def waits_for_a_retry(inbox: Inbox, key: str) -> None:
    inbox.release(claimed(inbox, key), 500, "handlers wait for their retry")
    inbox._redis.delete(keys.QUEUE_KEY)


def is_in_hand(inbox: Inbox, key: str) -> None:
    claimed(inbox, key)
    inbox._redis.delete(keys.QUEUE_KEY)


@pytest.mark.parametrize(
    ("happens", "overdue"),
    [(waits_in_the_queue, 500), (was_not_woken, 500), (waits_for_a_retry, 0), (is_in_hand, 0)],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_it_is_a_worker_that_the_overdue_wait_for(inbox, happens, overdue) -> None:
    key = accept(inbox, "1", age=1000)
    happens(inbox, key)
    found = survey(inbox._redis).overdue
    assert overdue <= found < overdue + 100
    assert not (overdue == 0 and found)


def test_each_that_waits_counts_once_by_what_it_waits_for(inbox, redis) -> None:
    for name, again in (("retry", False), ("again", True)):
        key = accept(inbox, name)
        claim = claimed(inbox, key)
        inbox.save_progress(claim, "p.done", Progress("done"))
        inbox.save_progress(claim, "p.b", Progress("retry", 1, reason=DIED), delay=600)
        inbox.release(claim, 600, "handlers wait for their retry")
        if again:
            assert inbox.retry(key) == "retried"
            claimed(inbox, key)
        for over in ("dead", "skipped", "superseded"):
            redis.hset(f"{keys.RECORD}{key}", f"h:p.{over}", f"{over}|1|5||no")
    inbox.release(claimed(inbox, accept(inbox, "stripe")), 60, "stripe: unreachable")
    accept(inbox, "new")
    claimed(inbox, accept(inbox, "inhand"))
    first, second = (event(name, "same", form="snapshot") for name in ("first", "second"))
    inbox.accept(first)
    inbox.accept(second)
    claimed(inbox, first.key)
    redis.lpush(keys.QUEUE_KEY, f"{second.key}-0")
    assert [each.value for each in inbox.claim()] == ["busy"]
    dead = accept(inbox, "dead")
    inbox.finish(claimed(inbox, dead), "dead", outcome="", reason="stripe: missing 404")

    assert survey(redis).waits == {f"p.b: {DIED}": 2, "stripe: unreachable": 1, BUSY: 1}


def test_a_pause_of_an_account_is_none_of_all(inbox, redis) -> None:
    inbox.pause(600, "by ann", "acct_1")
    assert survey(redis).paused is None
    inbox.pause(300, "stripe: key 401")
    why, left = survey(redis).paused
    assert why == "stripe: key 401"
    assert 200 < left <= 301
    inbox.resume()
    assert survey(redis).paused is None


def test_each_account_has_its_own_last_pass(inbox, redis) -> None:
    now = inbox.now()
    for number, account in enumerate((None, "acct_1", "acct_1/acct_2"), 1):
        inbox.move_watermark(now - 1000 * number, account)
        failed = "list: key 401" if account == "acct_1" else ""
        ended = Reconciled(now, failed=failed, missed=number)
        inbox.note_pass(account, msgspec.json.encode(ended).decode())
    redis.hset(keys.RECONCILED, "acct_3", '{"of": "another release"}')
    found = survey(redis)
    assert {name: round(age, -3) for name, age in found.through.items()} == {
        "": 1000,
        "acct_1": 2000,
        "acct_1/acct_2": 3000,
    }
    passes = {name: (each.failed, each.missed) for name, each in found.reconciled.items()}
    assert passes == {
        "": ("", 1),
        "acct_1": ("list: key 401", 2),
        "acct_1/acct_2": ("", 3),
    }


WORKER = '{"role":"worker","pid":1,"started":1}'


@pytest.mark.parametrize(
    "said",
    ["", "x", "5 {}", '5 {"role":"robot","pid":1,"started":1}', "5 {", f"x {WORKER}", WORKER],
)
def test_what_another_release_says_hides_no_process(inbox, redis, said) -> None:
    live(redis, "one", inbox.now(), slots=5, busy=2)
    redis.hset(keys.PROCESSES, "other", said)
    live(redis, "two", inbox.now(), slots=7)
    for name, role, ago, ended in (
        ("a", "web", 0, 0),
        ("b", "worker", 60, 0),
        ("c", "worker", 0, 1),
    ):
        live(redis, name, inbox.now() - ago, role=role, ended=bool(ended), slots=100, busy=50)
    assert (survey(redis).slots, survey(redis).in_flight) == (12, 2)


def test_each_number_is_of_what_it_is_called(new_server: Callable[..., Server]) -> None:
    with new_server("--maxmemory", "64mb").client() as client:
        inbox = Inbox(client)
        for number in range(6):
            accept(inbox, str(number))
        claims = [claim for claim in inbox.claim(3) if isinstance(claim, Claim)]
        inbox.finish(claims[0], "dead", outcome="", reason="stripe: missing 404")
        inbox.release(claims[1], 600, "stripe: unreachable")
        live(client, "worker", inbox.now(), slots=5, busy=1)
        found = survey(client)
        used = client.info("memory")["used_memory"]
    assert (found.pending, found.queued, found.dead) == (5, 3, 1)
    assert (found.slots, found.in_flight, found.waiting) == (5, 1, 1)
    assert found.memory_limit == 64 << 20
    assert used / 2 < found.memory < used * 2
    assert replace(found, queued=9).waiting == 0


def test_what_is_in_no_list_is_counted_as_dead_all_the_same(inbox, redis) -> None:
    for number in range(3):
        claim = claimed(inbox, accept(inbox, str(number)))
        inbox.save_progress(claim, "p.b", Progress("dead", 3, reason=DIED))
        inbox.finish(claim, "dead", outcome="verified", reason=f"p.b: {DIED}")
    redis.hincrby(keys.DEATHS, "p.b|failed KeyError", -2)  # of these an older release knew
    found = survey(redis)
    assert (found.dead, found.deaths) == (
        3,
        {("p.b", "failed KeyError"): 1, ("", NOT_LISTED): 2},
    )


@pytest.mark.parametrize("command", ["info", "lindex", "zrange", "hgetall"])
def test_what_a_user_may_not_ask_hides_nothing_else(inbox, redis, server: Server, command) -> None:
    accept(inbox, "1")
    user = ("ACL", "SETUSER", "some", "on", ">word", "~*", "&*", "+@all", f"-{command}")
    redis.execute_command(*user)
    url = f"redis://some:word@127.0.0.1:{server.port}/0"
    try:
        with connection.connect(Settings(redis_url=url)) as client:
            found = survey(client)
    finally:
        redis.execute_command("ACL", "DELUSER", "some")
    assert (found.pending, found.queued) == (1, 1)
    assert (found.memory is None) == (command == "info")
    assert found.room == PENDING_LIMIT


class TestStatus:
    """`status.take`: whether deliveries are accepted is one thing, whether workers work another."""

    @pytest.mark.parametrize(
        ("happens", "accepting", "processing"),
        [
            ("", True, True),
            ("everything is paused", True, False),
            ("an account is paused", True, True),
            ("no worker lives", True, False),
            ("the inbox is full", False, True),
            ("Redis evicts keys", False, True),
        ],
    )
    def test_of_each_state(
        self, new_server: Callable[..., Server], happens, accepting, processing
    ) -> None:
        own = new_server()
        with own.client() as client:
            inbox = Inbox(client)
            accept(inbox, "1")
            live(client, "web", inbox.now(), role="web")
            if happens != "no worker lives":
                live(client, "worker", inbox.now())
            live(client, "gone", inbox.now() - 600)
            if happens.endswith("is paused"):
                inbox.pause(600, "by ann", "acct_1" if happens.startswith("an account") else "")
            if happens == "the inbox is full":
                accept(inbox, "2")
            if happens == "Redis evicts keys":
                client.config_set("maxmemory-policy", "allkeys-lru")
            taken = status.take(client, Settings(redis_url=own.url, inbox_limit=2))
        assert (taken.accepting, taken.processing) == (accepting, processing)
        workers = int(happens != "no worker lives")
        assert taken.processes == {"web": 1, "worker": workers, "periodic": 0}

    @pytest.mark.parametrize("as_json", [False, True])
    @pytest.mark.parametrize(
        ("happens", "code"),
        [("", 0), ("a problem", 1), ("Redis is away", 69), ("the settings are not complete", 78)],
    )
    def test_the_command_says_it_by_its_exit_code_too(
        self, server: Server, redis: Redis, happens: str, code: int, as_json: bool
    ) -> None:
        for role in ("web", "worker", *(["periodic"] if happens != "a problem" else [])):
            live(redis, role, Inbox(redis).now(), role=role)
        port = free_port() if happens == "Redis is away" else server.port
        env = {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        if code == 78:
            env["INBOX_LIMIT"] = "none"
        done = CliRunner(env=env).invoke(main, ["status", *(["--json"] if as_json else [])])
        assert done.exit_code == code, done.output
        if code == 78:
            assert (done.stdout, "INBOX_LIMIT" in done.stderr) == ("", True)
        elif as_json:
            told = json.loads(done.stdout)
            assert (told["accepting"], bool(told["problems"])) == (code != 69, code != 0)
        else:
            assert done.stdout.startswith("NOT WELL: 1 problem\n" if code else "well\n")

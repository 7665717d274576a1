"""`python -m service events`: what the commands find, do, refuse, write down, and how they exit."""

from __future__ import annotations

import getpass
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from click.testing import CliRunner, Result

from identity_webhooks.event import Event
from service import repair
from service.__main__ import main
from service.inbox import AcceptResult, Claim, Filter, Inbox, Progress, keys
from service.inbox import inbox as inbox_module
from service.survey import survey
from tests.conftest import ROOT, free_port
from tests.integration.claims import claim_of, claimed

Run = Callable[..., Result]

KEYS_OF_LISTS = ("iw:log:*", "iw:of:*", "iw:hours", "iw:dead:*", "iw:dead-of:*", "iw:deaths")


@pytest.fixture
def service(server, redis) -> Run:
    def service(*arguments: str, **env: str) -> Result:
        given = {"REDIS_URL": server.url, "LOG_FORMAT": "json", "LOGNAME": "ann"} | env
        return CliRunner(env=given).invoke(main, ["events", *arguments])

    return service


@pytest.fixture
def ask(service) -> Callable[..., Any]:
    """Run a command that ends well with --json, and return what it says."""

    def ask(*arguments: str) -> Any:
        done = service(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return ask


def accept(inbox: Inbox, name: str, session: str, account: str | None = None) -> str:
    event = Event(f"evt_{name}", "verified", "snapshot", session, 1_790_000_000, False, account)
    assert inbox.accept(event) is AcceptResult.NEW
    time.sleep(0.002)  # no two in the same millisecond
    return event.key


def die(inbox: Inbox, key: str, *reasons: tuple[str, str]) -> None:
    """Have an event die of these handlers, beside one that is done."""
    claim = claim_of(inbox, key)
    assert isinstance(claim, Claim)
    inbox.save_progress(claim, "p.a", Progress("done"))
    for handler, reason in reasons:
        inbox.save_progress(claim, handler, Progress("dead", 3, reason=reason))
    handler, reason = reasons[0]
    inbox.finish(claim, "dead", outcome="verified", reason=f"{handler}: {reason}")
    time.sleep(0.002)


def quarantine(inbox: Inbox, redis: redis_py.Redis, key: str, ran: str) -> None:
    for _ in range(keys.MAX_LAPSES):
        claim = claim_of(inbox, key)
        if isinstance(claim, Claim):
            inbox.note_death(key, claim.token, ran)
            redis.hset(f"iw:evt:{key}", "lease", 1)
    claim_of(inbox, key)


NO_USER, KEY_ERROR = "discarded: no / user", "failed: KeyError at crm.py:4 save"


@pytest.fixture
def filled(redis) -> dict[str, str]:
    """Put an event of each kind into the inbox: the key of each, by a word for it."""
    inbox = Inbox(redis)
    found = {
        "pending": accept(inbox, "pending", "vs_one"),
        "waiting": accept(inbox, "waiting", "vs_two"),
        "done": accept(inbox, "done", "vs_one"),
        "dead": accept(inbox, "dead", "vs_one"),
        "other": accept(inbox, "other", "vs_other", "acct_1"),
        "both": accept(inbox, "both", "vs_both"),
        "deadly": accept(inbox, "deadly", "vs_deadly"),
    }
    claim = claim_of(inbox, "evt_waiting")
    inbox.save_progress(claim, "p.b", Progress("retry", 1, reason=KEY_ERROR), delay=600)
    inbox.release(claim, 600, "handlers wait for their retry")
    claim = claim_of(inbox, "evt_done")
    inbox.save_progress(claim, "p.a", Progress("done"))
    inbox.finish(claim, "done", outcome="needs_input", reason="document_expired")
    die(inbox, "evt_dead", ("p.b", NO_USER))
    die(inbox, found["other"], ("p.b", KEY_ERROR))
    die(inbox, "evt_both", ("p.c", KEY_ERROR), ("p.b", NO_USER))
    quarantine(inbox, redis, "evt_deadly", "p.b")
    inbox.note_handlers(["p.a", "p.b", "p.c"])
    redis.delete("rq:queue:identity")
    return found


class TestList:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("", "deadly both other dead done waiting pending"),
            ("--state pending", "pending waiting"),
            ("--state done", "done"),
            ("--state dead", "deadly both other dead"),
            ("--session vs_one", "dead done pending"),
            ("--session vs_one --state dead", "dead"),
            ("--session vs_two --handler p.b", "waiting"),
            ("--session vs_none", ""),
            ("--account acct_1", "other"),
            ("--account acct_2", ""),
            ("--state dead --handler p.b", "deadly both other dead"),
            ("--state dead --handler p.c", "both"),
            ("--state dead --reason failed", "both other"),
            ("--state dead --reason 'failed KeyError'", "both other"),
            ("--state dead --reason fail", ""),
            ("--state dead --handler p.b --reason discarded", "both dead"),
            ("--state dead --handler p.c --reason discarded", ""),
            ("--state dead --reason quarantined", "deadly"),
            ("--handler p.b", "deadly both other dead waiting"),
            ("--reason document_expired", "done"),
            ("--handler p.a --reason document_expired", "done"),
            ("--handler p.b --reason document_expired", ""),
            ("--state pending --reason 'failed KeyError'", "waiting"),
            ("--state pending --handler p.b --reason handlers", "waiting"),
            ("--since 1h", "deadly both other dead done waiting pending"),
            ("--until 1h", ""),
            ("--state dead --since 1h --until 2100-01-01", "deadly both other dead"),
            ("--limit 2", "deadly both"),
        ],
    )
    def test_a_filter_finds_what_is_like_that(self, ask, filled, options, expected) -> None:
        listed = [event["key"] for event in ask("list", *shlex.split(options))]
        assert listed == [filled[word] for word in expected.split()]

    @pytest.mark.usefixtures("within_an_hour")
    def test_the_table_says_when_it_came_and_when_it_runs_next(self, service, filled) -> None:
        done = service("list", "--limit", "6")
        lines = [line.split() for line in done.stdout.splitlines()]
        heads = ["EVENT", "KIND", "SESSION", "STATE", "ACCEPTED", "NEXT", "OUTCOME", "REASON"]
        assert lines[0] == heads
        rows = {line[0]: line for line in lines[1:]}
        today = datetime.now(UTC).date().isoformat()
        assert rows["evt_waiting"][4] == today
        moments = [datetime.fromisoformat("T".join(rows["evt_waiting"][n : n + 2])) for n in (4, 6)]
        assert 595 < (moments[1] - moments[0]).total_seconds() < 605
        assert done.stderr == "these are the first 6: --limit shows more, if there are\n"
        assert service("list", "--limit", "6", "--json").stderr == done.stderr
        assert "queued" in service("list", "--state", "pending").stdout.splitlines()[1]

    def test_what_a_pending_event_does(self, ask, filled, redis) -> None:
        assert ask("retry-now", "evt_pending") == [{"key": "evt_pending", "answer": "retried"}]
        assert isinstance(Inbox(redis).claim()[0], Claim)
        waits = {each["key"]: each["waits"] for each in ask("list", "--state", "pending")}
        assert waits == {"evt_pending": "running", "evt_waiting": "waiting"}
        assert ask("show", "evt_waiting")["next_at"].endswith("+00:00")
        assert ask("show", "evt_dead")["waits"] is None

    def test_causes(self, ask, service, filled) -> None:
        assert [tuple(each.values()) for each in ask("causes")] == [
            ("p.b", "discarded", 2),
            ("p.b", "failed KeyError", 1),
            ("p.b", "quarantined", 1),
            ("p.c", "failed KeyError", 1),
        ]
        assert service("causes").stdout.splitlines()[1].split() == ["p.b", "discarded", "2"]


class TestShow:
    def test_an_event_as_data(self, ask, filled) -> None:
        shown = ask("show", "evt_dead")
        assert shown.pop("accepted_at").endswith("+00:00")
        assert shown.pop("settled_ms") >= 0
        assert all(handler.pop("ms") >= 0 for handler in shown["handlers"])
        assert shown == {
            "key": "evt_dead",
            "id": "evt_dead",
            "kind": "verified",
            "form": "snapshot",
            "session": "vs_one",
            "account": None,
            "livemode": False,
            "created": 1_790_000_000,
            "state": "dead",
            "outcome": "verified",
            "reason": f"p.b: {NO_USER}",
            "waits": None,
            "next_at": None,
            "claims": 1,
            "other_form": None,
            "handlers": [
                {"name": "p.a", "status": "done", "attempts": 1, "reason": ""},
                {"name": "p.b", "status": "dead", "attempts": 3, "reason": NO_USER},
            ],
            "failed_attempts": [],
            "acts": [],
        }

    def test_what_happened_in_order(self, service, filled, redis) -> None:
        inbox = Inbox(redis)
        assert service("retry-now", "evt_waiting", "--as", "bob").exit_code == 0
        claim = claimed(inbox, "evt_waiting")
        time.sleep(0.002)
        inbox.save_progress(claim, "p.b", Progress("dead", 2, reason=NO_USER))
        inbox.finish(claim, "dead", outcome="verified", reason=f"p.b: {NO_USER}")
        assert service("replay", "evt_waiting").exit_code == 0

        lines = service("show", "evt_waiting").stdout.split("\n\n")[1].splitlines()[1:]
        assert [line.split("evt_waiting  ")[1] for line in lines] == [
            "accepted: verified, snapshot",
            f"p.b: attempt 1 failed: {KEY_ERROR}",
            "retry, by bob",
            f"p.b: attempt 2 failed: {NO_USER}",
            "replay dead, by ann",
        ]
        assert "next         queued" in service("show", "evt_waiting").stdout

    def test_a_session_is_all_its_events(self, service, ask, filled) -> None:
        assert [each["key"] for each in ask("show", "vs_one")] == [
            *("evt_dead", "evt_done", "evt_pending")
        ]
        lines = service("show", "vs_one").stdout.splitlines()
        times = [line[:23] for line in lines if line.startswith("20")]
        assert times == sorted(times)
        assert len(times) == 3 + 1 + 2 + 2, "accepted, and handlers and ends of two"

    def test_a_session_whose_end_is_that_of_another_is_not_it(self, ask, service, redis) -> None:
        for session in ("vs_1aaaXYZqq", "vs_2bbbXYZqq", "vs_3cccxyzqq"):
            accept(Inbox(redis), session[3:], session)
        assert [each["session"] for each in ask("show", "vs_1aaaXYZqq")] == ["vs_1aaaXYZqq"]
        assert service("show", "vs_4dddXYZqq").exit_code == 1


@pytest.mark.parametrize("action", ["replay", "discard", "retry-now"])
@pytest.mark.parametrize("interrupted", ["at the first event", "after it"])
def test_who_acts_is_written_down_also_when_it_is_interrupted(redis, action, interrupted) -> None:
    inbox = Inbox(redis)
    ann = repair.Repair(redis, inbox, "ann")
    names = {accept(inbox, str(number), f"vs_{number}"): "dead" for number in range(3)}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if interrupted == "at the first event":
        ann.act = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ann.run(action, names, {"state": "pending"}, rate=100, progress=interrupt)
    (noted,) = repair.audit(redis, 9)
    assert (noted.by, noted.action, noted.matched) == ("ann", action, 3)


class TestReplay:
    def test_of_named_events(self, service, filled, redis) -> None:
        done = service("replay", "evt_dead", "evt_pending", "evt_done", "evt_none")
        assert done.exit_code == 1
        assert done.stdout.splitlines() == [
            *("evt_dead replayed", "evt_pending pending", "evt_done nothing", "evt_none gone")
        ]
        assert list(Inbox(redis).find("evt_dead").handlers) == ["p.a"]

    def test_of_one_handler_what_the_others_did_stays(self, service, filled, redis) -> None:
        done = service("replay", "--dead", "--handler", "p.b", "--reason", "discarded")
        assert (done.exit_code, done.stdout.splitlines()) == (
            0,
            ["evt_both replayed", "evt_dead replayed"],
        )
        both = Inbox(redis).find("evt_both")
        assert {name: p.status for name, p in both.handlers.items()} == {
            "p.a": "done",
            "p.c": "dead",
        }
        assert both.acts[0].by == "ann"
        left = {record.key for record in Inbox(redis).records("dead", 10)}
        assert left == {filled["other"], "evt_deadly"}

    def test_those_whose_workers_died_only_when_asked_for(self, service, filled, redis) -> None:
        done = service("replay", "--dead")
        assert (done.exit_code, len(done.stdout.splitlines())) == (0, 3)
        assert "1 left out, as their workers died three times in a row" in done.stderr
        for named in (("evt_deadly",), ("--dead",), ("--reason", "quarantined")):
            done = service("replay", *named)
            assert (done.exit_code, done.stdout) == (1, ""), named
        done = service("replay", "--dead", "--quarantined", "--handler", "p.b")
        assert (done.exit_code, done.stdout) == (0, "evt_deadly replayed\n")

    def test_a_handler_that_no_worker_has_is_refused(self, service, filled, redis) -> None:
        before = Inbox(redis).find("evt_dead")
        for named in (("evt_dead",), ("--dead",)):
            done = service("replay", *named, "--handler", "p.mistyped")
            assert (done.exit_code, done.stdout) == (2, "")
            assert "no worker has started with a handler p.mistyped" in done.stderr
        assert Inbox(redis).find("evt_dead") == before

    def test_a_handler_of_an_older_release_is_not_known(self, filled, redis) -> None:
        inbox = Inbox(redis)
        redis.hset("iw:handlers", "p.old", inbox.now() - keys.HOUR - 60)
        assert inbox.handlers() == ["p.a", "p.b", "p.c"]

    def test_those_of_the_last_release_stay_known(self, filled, redis) -> None:
        inbox = Inbox(redis)
        started = inbox.now() - 7 * 86_400
        redis.hset("iw:handlers", mapping=dict.fromkeys(["p.a", "p.b", "p.c"], started))
        assert inbox.handlers() == ["p.a", "p.b", "p.c"]

    def test_events_of_a_removed_handler_go_to_its_new_name(self, service, filled, redis) -> None:
        inbox = Inbox(redis)
        redis.delete("iw:handlers")
        inbox.note_handlers(["p.a", "p.new"])
        was_done = accept(inbox, "wasdone", "vs_was_done")
        claim = claim_of(inbox, was_done)
        inbox.save_progress(claim, "p.b", Progress("done"))
        inbox.finish(claim, "done", outcome="verified")
        done = service("replay", "--handler", "p.b", "--to", "p.wrong")
        assert done.exit_code == 2
        done = service("replay", "--handler", "p.b", "--to", "p.new")
        assert done.exit_code == 0
        assert set(done.stdout.split()) == {
            *("evt_both", filled["other"], "evt_dead", "evt_waiting", "replayed")
        }
        assert all("p.b" not in inbox.find(key).handlers for key in ("evt_dead", "evt_waiting"))
        assert list(inbox.find(was_done).handlers) == ["p.b"]
        assert inbox.find("evt_both").handlers.keys() == {"p.a", "p.c"}

    def test_a_dry_run_of_a_filter(self, service, filled) -> None:
        for command in ("replay", "discard"):
            done = service(command, "--handler", "p.c", "--dry-run")
            assert (done.exit_code, done.stdout) == (0, f"evt_both would {command}\n")
        done = service("retry-now", "--handler", "p.b", "--dry-run")
        assert done.stdout == "evt_waiting would retry-now\n"

    @pytest.mark.parametrize(
        ("command", "would"),
        [
            ("replay", "replayed"),
            ("replay --quarantined", "replayed"),
            ("replay --all-handlers", "replayed"),
            ("replay --all-handlers --quarantined", "replayed"),
            ("replay --handler p.a", "replayed"),
            ("replay --handler p.b --quarantined", "replayed"),
            ("replay --handler p.c", "replayed"),
            ("replay --handler p.c --quarantined", "replayed"),
            ("retry-now", "retried"),
            ("discard", "discarded"),
        ],
    )
    def test_a_dry_run_says_what_the_run_says_and_changes_nothing(
        self, service, filled, redis, command, would
    ) -> None:
        inbox = Inbox(redis)
        leased = accept(inbox, "leased", "vs_leased")
        claim_of(inbox, leased)
        # On a busy machine the commands take longer than a lease.
        redis.hincrby(f"iw:evt:{leased}", "lease", 600_000)
        nothing_ran = accept(inbox, "nothing", "vs_nothing")
        inbox.finish(claim_of(inbox, nothing_ran), "done", outcome="verified")
        cut_short = accept(inbox, "cut", "vs_cut")
        die(inbox, cut_short, ("p.b", KEY_ERROR))
        inbox.discard(cut_short)
        as_done = Event("evt_as_done", "verified", "snapshot", "vs_as", 1_790_000_000, False)
        inbox.adopt(as_done, "ann")
        twin = Event("evt_thin", "verified", "thin", "vs_one", 1_790_000_000, False)
        inbox.accept(twin)
        claim = claim_of(inbox, twin.key)
        inbox.link(claim, "evt_done")
        inbox.finish(claim, "done", outcome="twin")
        more = (leased, nothing_ran, cut_short, as_done.key, twin.key, "evt_none")
        service("list")  # what an older release left is listed at the first look
        for key in redis.keys("*"):
            redis.persist(key)
        before = {key: redis.dump(key) for key in redis.keys("*")}
        for key in [*filled.values(), *more]:
            told = service(*command.split(), key, "--dry-run")
            assert {key: redis.dump(key) for key in redis.keys("*")} == before, key
            done = service(*command.split(), key)
            expected = told.stdout.replace(f"would {command.split()[0]}", would)
            assert (expected, told.exit_code) == (done.stdout, done.exit_code), key
            redis.flushdb()
            for each, content in before.items():
                redis.restore(each, 0, content)

    def test_with_all_handlers_also_those_run_that_were_done_before_workers_died(
        self, service, redis
    ) -> None:
        inbox = Inbox(redis)
        key = accept(inbox, "deadly", "vs_deadly")
        inbox.save_progress(claim_of(inbox, key), "p.a", Progress("done"))
        redis.hset(f"iw:evt:{key}", "lease", 1)
        quarantine(inbox, redis, key, "p.b")
        service("replay", "--all-handlers", "--quarantined", key)
        assert inbox.find(key).handlers == {}

    def test_at_a_rate(self, service, filled) -> None:
        began = time.monotonic()
        assert len(service("replay", "--dead", "--rate", "10").stdout.splitlines()) == 3
        assert time.monotonic() - began >= 0.2

    def test_many_are_told_as_they_go(self, service, redis) -> None:
        inbox = Inbox(redis)
        for number in range(repair.BATCH + 5):
            accept(inbox, str(number), f"vs_{number}")
        done = service("discard", "--state", "pending", "--since", "1h")
        assert (done.exit_code, len(done.stdout.splitlines())) == (0, repair.BATCH + 5)
        assert f"{repair.BATCH + 5} of {repair.BATCH + 5}\n" in done.stderr

    def test_500_of_one_handler_among_others(self, service, redis) -> None:
        inbox = Inbox(redis)
        for number in range(550):
            event = Event(f"evt_{number}", "verified", "thin", f"vs_{number}", 1, livemode=False)
            inbox.accept(event)
            (claim,) = inbox.claim()
            name = "p.other" if number % 11 == 0 else "p.b"
            inbox.save_progress(claim, name, Progress("dead", 1, reason=KEY_ERROR))
            inbox.finish(claim, "dead", outcome="verified", reason=f"{name}: {KEY_ERROR}")
        done = service("replay", "--dead", "--handler", "p.b")
        assert (done.exit_code, len(done.stdout.splitlines())) == (0, 500)
        assert inbox.search.deaths() == {("p.other", "failed KeyError"): 50}


class TestRetryNow:
    def test_it_runs_at_once_and_its_attempts_are_not_forgotten(
        self, service, filled, redis
    ) -> None:
        inbox = Inbox(redis)
        done = service("retry-now", "--handler", "p.b", "--reason", "failed KeyError")
        assert (done.exit_code, done.stdout) == (0, "evt_waiting retried\n")
        (claim,) = inbox.claim()
        assert claim.event.key == "evt_waiting"
        assert claim.progress["p.b"].attempts == 1
        assert claim.is_due("p.b")
        assert service("retry-now", "evt_waiting").stdout == "evt_waiting leased\n"

    def test_of_others(self, service, filled) -> None:
        done = service("retry-now", "evt_dead", "evt_done", "evt_none")
        assert (done.exit_code, done.stdout.split()[1::2]) == (1, ["dead", "done", "gone"])
        assert service("retry-now", "--pending").exit_code == 0


class TestDiscard:
    def test_it_is_known_and_says_by_whom(self, service, ask, filled, redis) -> None:
        inbox = Inbox(redis)
        done = service("discard", "evt_dead", "evt_done", "evt_none", "--as", "bob")
        assert done.exit_code == 1
        assert done.stdout.splitlines() == [
            *("evt_dead discarded", "evt_done done", "evt_none gone")
        ]
        assert service("discard", "evt_dead").exit_code == 0, "asked again"
        shown = ask("show", "evt_dead")
        assert (shown["state"], shown["outcome"]) == ("done", "discarded")
        (act,) = shown["acts"]
        assert (act["what"], act["by"]) == ("discard", "bob")
        again = Event("evt_dead", "verified", "snapshot", "vs_one", 1_790_000_000, livemode=False)
        assert inbox.accept(again) is AcceptResult.DONE
        assert service("replay", "evt_dead").exit_code == 0
        assert [act.what for act in inbox.find("evt_dead").acts] == ["discard", "replay"]

    def test_the_dead_of_a_handler(self, service, ask, filled) -> None:
        done = service("discard", "--handler", "p.c")
        assert (done.exit_code, done.stdout) == (0, "evt_both discarded\n")
        assert len(ask("causes")) == 3


OF_STATES = {
    "replay --quarantined": "dead",
    "replay --state done --all-handlers": "done",
    "discard": "dead",
    "discard --state pending": "pending",
    "retry-now": "pending",
}
FILTERS = [
    *("--handler p.b", "--handler p.c", "--session vs_one", "--session vs_two"),
    *("--account acct_1", "--reason failed", "--reason discarded", "--since 1h"),
]


@pytest.mark.sample(12)
@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("command", OF_STATES)
def test_a_filter_is_about_events_of_the_state_that_the_command_is_for(
    service, ask, filled, redis, command, options
) -> None:
    """Events of other states that are like that, and all that are not, stay as they are."""
    state = OF_STATES[command]
    meant = {each["key"] for each in ask("list", "--state", state, *options.split())}

    def held() -> dict[str, Any]:
        return {key: Inbox(redis).find(key) for key in filled.values()}

    before = held()
    told = service(*command.split(), *options.split(), "--dry-run")
    assert (set(told.stdout.split()[::3]), held()) == (meant, before)
    done = service(*command.split(), *options.split())
    assert set(done.stdout.split()[::2]) == meant
    assert {key for key, record in held().items() if record != before[key]} == meant


class TestPause:
    def test_of_everything(self, service, ask, filled, redis) -> None:
        inbox = Inbox(redis)
        service("retry-now", "evt_pending")
        paused = ask("pause", "--minutes", "5")
        assert paused["why"] == "by ann"
        assert 240 < inbox.paused()[0] - time.time() < 305
        ends = datetime.fromtimestamp(inbox.paused()[0], UTC)
        assert paused["paused_until"] == ends.isoformat(timespec="seconds")
        assert [answer.value for answer in inbox.claim()] == ["paused"]
        inbox.pause(60, "stripe: key 401")
        assert inbox.paused()[1] == "by ann", "a shorter one does not end it early"
        assert ask("resume") == {"account": None, "paused_until": None, "why": None}
        assert inbox.claim()[0].event.key == "evt_pending"
        assert service("resume").exit_code == 1, "there is none"

    def test_of_one_account(self, service, filled, redis) -> None:
        inbox = Inbox(redis)
        assert service("replay", filled["other"]).exit_code == 0
        assert service("retry-now", "evt_pending").exit_code == 0
        done = service("pause", "--account", "acct_1")
        ends = datetime.fromtimestamp(inbox.paused("acct_1")[0], UTC).isoformat(timespec="seconds")
        assert done.stdout == f"events of acct_1: paused until {ends} (by ann)\n"
        held, other = inbox.claim(2)
        assert (held.value, other.event.key) == ("held", "evt_pending")
        assert 30 < (inbox.find(filled["other"]).waits_until.timestamp() - time.time()) < 61
        assert inbox.find(filled["other"]).reason == "account paused: by ann"
        assert survey(redis).waits["account paused: by ann"] == 1
        assert service("resume", "--account", "acct_1").exit_code == 0
        assert service("retry-now", "--account", "acct_1").exit_code == 0
        assert inbox.claim()[0].event.key == filled["other"]

    @pytest.mark.parametrize("account", ["", "acct_1"])
    @pytest.mark.parametrize(("minutes", "lasts"), [("", 60), ("1", 1), ("120", 120)])
    def test_it_lasts_as_long_as_is_said_and_a_shorter_one_ends_it_no_sooner(
        self, service, redis, minutes, lasts, account
    ) -> None:
        inbox = Inbox(redis)
        of = ["--account", account] if account else []
        given = ["--minutes", minutes] if minutes else []
        for again in (given, ["--minutes", "1"]):
            assert service("pause", *again, *of).exit_code == 0
            left = inbox.paused(account)[0] - inbox.now()
            assert lasts * 60 - 30 < left < lasts * 60 + 2
        assert inbox.paused("acct_2") is None
        assert (inbox.paused() is None) == bool(account)

    @pytest.mark.parametrize("ended", ["", "acct_1", "acct_1/acct_2"])
    def test_who_ends_one_ends_no_other(self, service, redis, ended) -> None:
        inbox = Inbox(redis)
        every = ("", "acct_1", "acct_1/acct_2", "acct_2")
        for account in every:
            inbox.pause(600, "by bob", account)
        assert service("resume", *(["--account", ended] if ended else [])).exit_code == 0
        assert [inbox.paused(each) is None for each in every] == [each == ended for each in every]

    def test_that_of_an_account_ends_also_beside_one_that_keeps_leases(
        self, service, redis
    ) -> None:
        inbox = Inbox(redis)
        inbox.pause(10, "clock set")
        inbox.pause(600, "by bob", "acct_1")
        assert service("resume", "--account", "acct_1").exit_code == 0
        assert inbox.paused("acct_1") is None
        assert inbox.paused()[1] == "clock set"

    def test_one_that_keeps_leases_stays(self, service, redis) -> None:
        Inbox(redis).pause(10, "clock set")
        done = service("resume")
        assert done.exit_code == 1
        assert "(clock set)" in done.stdout


class TestAudit:
    def test_each_action_is_written_down_and_logged(self, service, ask, filled) -> None:
        acts = (
            *("replay --dead --handler p.c --as bob", "discard evt_dead"),
            *("retry-now --session vs_two", "pause --account acct_1", "resume"),
        )
        logged = [service(*act.split()).stderr for act in acts]
        entries = list(reversed(ask("audit")))
        assert [(e["action"], e["by"], e["matched"]) for e in entries] == [
            ("replay", "bob", 1),
            ("discard", "ann", 1),
            ("retry-now", "ann", 1),
            ("pause", "ann", 0),
            ("resume", "ann", 0),
        ]
        assert entries[0]["on"] == {"handler": "p.c", "state": "dead", "handlers": "p.c"}
        assert entries[1]["on"] == {"keys": "evt_dead"}
        assert entries[3]["on"] == {"seconds": 3600, "account": "acct_1"}
        assert entries[4]["on"] == {}
        for lines, entry in zip(logged, entries, strict=True):
            said = next(map(json.loads, lines.splitlines()))
            assert (said["event"], said["action"], said["by"]) == (
                *("person_acted", entry["action"], entry["by"]),
            )
            assert "dropped" not in said
        *_, ended = map(json.loads, logged[0].splitlines())
        told = [ended[name] for name in ("event", "action", "by", "counts")]
        assert told == ["events_repaired", "replay", "bob", {"replayed": 1}]
        assert service("audit").stdout.splitlines()[1].split()[1] == "ann"

    def test_the_log_line_has_all_of_it(self, redis, said) -> None:
        on = {"handler": "p.a", "reason": "failed", "state": "dead", "session": "vs_1"}
        repair.Repair(redis, Inbox(redis), "ann").note("replay", 3, on | {"account": "acct_1"})
        on["session_id"] = on.pop("session")
        line = {"event": "person_acted", "level": "info", "action": "replay", "by": "ann"}
        assert said() == [line | on | {"count": 3, "account": "acct_1"}]

    def test_it_does_not_grow_for_ever(self, redis, monkeypatch) -> None:
        monkeypatch.setattr(keys, "MAX_AUDIT", 3)
        acting = repair.Repair(redis, Inbox(redis), "ann")
        for number in range(5):
            acting.note("pause", number, {})
        assert [entry.matched for entry in repair.audit(redis, 10)] == [4, 3, 2]
        assert [entry.matched for entry in repair.audit(redis, 2)] == [4, 3], "the newest"

    @pytest.mark.parametrize(
        ("user", "expected"),
        [("ann", "ann"), ("ann@example.com", "ann_example.com"), ("x" * 40, "x" * 32)],
    )
    def test_the_user_is_a_name(self, monkeypatch, user, expected) -> None:
        monkeypatch.setattr(getpass, "getuser", lambda: user)
        assert repair.operator() == expected

    def test_a_user_without_a_name_is_a_number(self, monkeypatch) -> None:
        def nobody() -> str:
            raise KeyError("uid not found")

        monkeypatch.setattr(getpass, "getuser", nobody)
        assert repair.operator() == f"uid-{os.getuid()}"


def test_on_a_full_redis_events_are_listed_and_discarded(new_server, monkeypatch) -> None:
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        inbox = Inbox(client, limit=10**9)
        die(inbox, accept(inbox, "dead", "vs_dead"), ("p.b", NO_USER))
        with pytest.raises(redis_py.OutOfMemoryError):
            fill(inbox, monkeypatch)
        # Redis frees some kB of its clients' buffers as time passes.
        client.config_set("maxmemory", int(0.97 * client.info("memory")["maxmemory"]))
        runner = CliRunner(env={"REDIS_URL": server.url})
        listed = runner.invoke(main, ["events", "list", "--state", "dead"])
        assert (listed.exit_code, "evt_dead" in listed.stdout) == (0, True), listed.output
        assert "Redis is full" in listed.stderr
        done = runner.invoke(main, ["events", "discard", "--handler", "p.b"])
        assert (done.exit_code, done.stdout) == (0, "evt_dead discarded\n")
        assert "audit_not_kept" in done.stderr
        assert "Redis is full: this log line is all there is of it" in done.stderr


def fill(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept events until Redis refuses, also past what is kept free for working off."""
    with monkeypatch.context() as patch:
        patch.setattr(inbox_module, "MEMORY_LIMIT", math.inf)
        for number in range(100_000):
            event = Event(f"evt_{number}", "verified", "thin", f"vs_{number}", 1, livemode=False)
            inbox.accept(event)


class TestUpgrade:
    """A Redis that an older release has filled: no lists, and no worker told its handlers."""

    @pytest.fixture
    def old(self, filled, redis) -> dict[str, str]:
        for pattern in (*KEYS_OF_LISTS, "iw:listed", "iw:handlers"):
            for key in redis.keys(pattern):
                redis.delete(key)
        return filled

    @pytest.mark.parametrize(
        "options",
        ["", "--session vs_one", "--state dead --handler p.b", "--state dead --reason quarantined"],
    )
    def test_nothing_is_hidden(self, service, old, options) -> None:
        done = service("list", *options.split(), "--json")
        assert len(json.loads(done.stdout)) == {"": 7, "--session vs_one": 3}.get(
            options, 4 if "p.b" in options else 1
        )
        assert "7 events of an older release were listed" in done.stderr

    def test_what_it_takes_in_beside_the_new_one_is_listed_an_hour_later(
        self, service, ask, old, redis
    ) -> None:
        ask("list")
        for key in redis.keys("iw:log:*"):
            redis.lrem(key, 0, "evt_pending")
        assert len(ask("list")) == 6
        redis.set("iw:listed", int(redis.get("iw:listed")) - keys.HOUR)
        assert len(ask("list")) == 7
        assert redis.get("iw:listed") == b"all"
        assert service("list").stderr == ""

    def test_its_dead_leave_the_lists_they_are_not_in(self, service, old, redis) -> None:
        inbox = Inbox(redis)
        assert inbox.replay("evt_dead") == "replayed"
        assert inbox.discard("evt_both") == "discarded"
        assert inbox.search.deaths() == {}
        service("causes")
        assert sum(inbox.search.deaths().values()) == 2

    def test_any_handler_is_taken(self, service, old) -> None:
        assert service("replay", "evt_dead", "--handler", "p.b").exit_code == 0

    def test_on_an_inbox_of_its_own_there_is_one_look(self, service, redis) -> None:
        accept(Inbox(redis), "1", "vs_1")
        assert service("list").stderr == ""
        assert redis.get("iw:listed") == b"all"


class TestRetention:
    @pytest.mark.usefixtures("within_an_hour")
    def test_what_is_known_is_listed_for_as_long_and_a_day_more(self, redis) -> None:
        inbox = Inbox(redis, keep=5 * 86_400)
        accept(inbox, "1", "vs_1")
        (claim,) = inbox.claim()
        inbox.finish(claim, "done", outcome="verified")
        (hours,), (sessions,) = redis.keys("iw:log:*"), redis.keys("iw:of:*")
        lasts = keys.HOURS_OF * keys.HOUR  # a list by session is begun in its first moment
        for key, more in (("iw:done:evt_1", 0), (hours, keys.HOUR), (sessions, lasts)):
            expected = 5 * 86_400 + (more and more + keys.DAY)
            assert 0 <= expected - redis.ttl(key) < 60, key

    @pytest.mark.usefixtures("within_an_hour")
    def test_one_that_is_settled_late_is_listed_again(self, redis) -> None:
        inbox = Inbox(redis)
        accept(inbox, "1", "vs_1")
        redis.hset("iw:evt:evt_1", "accepted", (inbox.now() - keys.DAY - 60) * 1000)
        for key in (*redis.keys("iw:log:*"), *redis.keys("iw:of:*"), "iw:hours"):
            redis.delete(key)
        (claim,) = inbox.claim()
        inbox.finish(claim, "done", outcome="verified")
        assert [record.key for record in inbox.records("all", 5)] == ["evt_1"]
        assert redis.zcard("iw:hours") == 1

    def test_the_long_dead_are_listed_last(self, filled, redis) -> None:
        inbox = Inbox(redis)
        old = inbox.now() * 1000 - 40 * 86_400_000
        redis.zadd("iw:dead", {"evt_dead": old})
        redis.hset("iw:evt:evt_dead", mapping={"accepted": old - 1, "settled": old})
        listed = [record.key for record in inbox.records("all", 10)]
        assert (listed[-1], len(listed)) == ("evt_dead", 7)
        page = inbox.search.page(Filter(), 6)
        assert [r.key for r in inbox.search.page(Filter(), 6, page.following).records] == [
            "evt_dead"
        ]

    @pytest.mark.usefixtures("within_an_hour")
    def test_hours_whose_lists_are_gone_are_forgotten(self, redis) -> None:
        redis.zadd("iw:hours", {str(hour): hour for hour in range(100, 105)})
        accept(Inbox(redis), "1", "vs_1")
        assert redis.zcard("iw:hours") == 1


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "words", "code"),
        [
            ("show evt_none", "no event evt_none is in the inbox", 1),
            ("show vs_none", "no event of vs_none is in the inbox", 1),
            ("replay", "this would be every event", 2),
            ("discard", "this would be every event", 2),
            ("retry-now", "this would be every event", 2),
            ("replay --state all", "this would be every event", 2),
            ("replay --state done", "this would be every event", 2),
            ("discard --state pending", "this would be every event", 2),
            ("replay evt_1 --dead", "not both", 2),
            ("replay evt_1 --session vs_1", "not both", 2),
            ("discard evt_1 --handler p.a", "not both", 2),
            ("retry-now evt_1 --handler p.a", "not both", 2),
            ("replay evt_1 --state done", "not both", 2),
            ("discard evt_1 --state dead", "not both", 2),
            ("discard evt_1 --state pending", "not both", 2),
            ("replay --dead --state done", "not both", 2),
            ("replay --dead --handler p.a --all-handlers", "not both", 2),
            ("replay --dead --to p.a", "--to needs --handler", 2),
            ("replay --dead", "no event to do it with", 1),
            ("list --state lost", "'lost' is not one of", 2),
            ("list --limit 0", "0 is not in the range x>=1", 2),
            ("list --since yesterday", "'yesterday' is no moment", 2),
            ("list --since 2h --until 3h", "until is not after since", 2),
            ("list --since 2100-01-01T00:00", "since is still to come", 2),
            ("discard --since 2h --until 3h", "until is not after since", 2),
            ("replay --dead --rate 0", "0.0 is not in the range", 2),
            ("replay --dead --rate nan", "'nan' is no number of events", 2),
            ("replay --dead --rate inf", "'inf' is no number of events", 2),
            ("pause --minutes 0", "0 is not in the range", 2),
        ],
    )
    def test_it_is_said_and_nothing_is_done(self, service, redis, arguments, words, code) -> None:
        done = service(*arguments.split())
        assert (done.exit_code, done.stdout) == (code, "")
        assert words in done.stderr
        assert redis.llen("iw:audit") == 0

    def test_wrong_settings(self, service) -> None:
        done = service("list", INBOX_LIMIT="none")
        assert done.exit_code == 78
        assert "INBOX_LIMIT" in done.stderr


def test_without_redis() -> None:
    env = {
        "PATH": os.environ["PATH"],
        "REDIS_URL": f"redis://:Pa55w0rd@127.0.0.1:{free_port()}/0",
    }
    command = [sys.executable, "-m", "service", "events", "list"]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("Redis: nothing listens there: check host and port")
    assert "Pa55w0rd" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("iw-service events re", {"replay", "retry-now", "resume"}),
        ("iw-workers reco", {"reconcile"}),
    ],
)
def test_the_shell_completes_commands(words, expected) -> None:
    script = (
        "source deploy/completion.bash; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1));"
        ' "_${COMP_WORDS[0]//-/_}"; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", words],
        cwd=ROOT,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert set(done.stdout.split()) == expected

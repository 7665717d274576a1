"""Every answer that Stripe can give, to every call, with either key: who waits, and what then.

What is expected stands here in a table of its own, and not in the one that the code reads.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import pytest

from identity_webhooks import Retry, Verification, on
from identity_webhooks.event import Event
from identity_webhooks.verification import SENSITIVE, Need
from service.inbox import Inbox, Refused
from service.settings import Settings
from tests.conftest import wait_until
from tests.integration.workers.fake_stripe import (
    CALLS,
    KEY,
    RESTRICTED_KEY,
    Answer,
    FakeStripe,
    Fault,
)
from workers import failures, stripe_api
from workers.failures import RECHECK, RESULTS_SHOWN_FOR, RULES, Judge, StripeFailure
from workers.jobs import Processor
from workers.reconcile import Pass, Reconciler
from workers.router import Router
from workers.stripe_api import PAGE, StripeApi

# Rows: what Stripe answers. Columns: to which call.
#   waits    this event waits, however long it takes
#   briefly  the same, 4 s at most
#   recheck  it waits for two minutes, then it is dead
#   dead     it is dead at once
#   alone    it goes on as an event of its own
#   later    the same, after it has been asked again like `recheck`
#   all      no worker claims an event for a while
#   next     this account waits for the next pass
#   gone     this account is asked for once a day
# For `sensitive` the same words mean the handlers that need the fields; `shown`: they wait until
# Stripe shows the fields no longer, 48 h after the result. `!`: an alarm that names the key.
TABLE = """
status  code                        session   thin event   sensitive   list
0       (cut-off)                   waits     waits        waits       next
200     (html)                      waits     waits        waits       next
200     ({})                        waits     waits        waits       next
200     ([])                        waits     waits        waits       next
200     ("text")                    waits     waits        waits       next
200     (null)                      waits     waits        waits       next
400     parameter_unknown           dead      alone        dead        next
400     rate_limit                  all       all          all         next
400     account_invalid             recheck   alone        recheck     gone
400     (html)                      waits     waits        waits       next
401     -                           all!      all!         shown!      next!
401     api_key_expired             all!      all!         shown!      next!
402     card_declined               dead      alone        dead        next
403     -                           waits!    alone!       shown!      next!
403     account_invalid             recheck   alone        recheck     gone
403     (html)                      waits!    alone!       shown!      next!
404     resource_missing            recheck   later        recheck     next
404     -                           recheck   later        recheck     next
404     (html)                      waits     waits        waits       next
409     -                           briefly   briefly      briefly     next
409     idempotency_key_in_use      briefly   briefly      briefly     next
424     external_dependency_failed  dead      alone        dead        next
429     -                           all       all          all         next
429     rate_limit                  all       all          all         next
429     lock_timeout                briefly   briefly      briefly     next
500     api_error                   waits     waits        waits       next
502     (html)                      waits     waits        waits       next
503     lock_timeout                briefly   briefly      briefly     next
"""
HEAD, *LINES = TABLE.strip().split("\n")
COLUMNS = ("session", "thin event", "sensitive", "list")
ROWS = [
    (Answer(int(status), "" if code == "-" else code), dict(zip(COLUMNS, words, strict=True)))
    for status, code, *words in map(str.split, LINES)
]
KEY_OF = {call: RESTRICTED_KEY if call == "sensitive" else KEY for call in CALLS}
OTHER = {KEY: RESTRICTED_KEY, RESTRICTED_KEY: KEY}


def column(call: str) -> str:
    """Return the column of a call. The report comes with the session."""
    return "session" if call == "report" else call


def walk(*calls: str) -> list[Any]:
    return [
        pytest.param(call, answer, cells[column(call)], id=f"{call}-{answer.status}{answer.code}")
        for call, (answer, cells) in itertools.product(calls, ROWS)
    ]


NEEDS = "verified_outputs.dob"
SETTING = {KEY: "STRIPE_API_KEY", RESTRICTED_KEY: "STRIPE_RESTRICTED_KEY"}


@pytest.fixture(autouse=True)
def _longest_waits(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every wait be as long as jitter can make it."""
    assert desk
    monkeypatch.setattr(failures, "backoff", lambda _attempt, cap: cap)


class Bench:
    """Two events of two sessions, one of which Stripe answers badly, with handlers for both."""

    def __init__(
        self, desk: Any, fake: FakeStripe, call: str, number: int = 1, more: Sequence[Any] = ()
    ) -> None:
        """`more`: handlers beside these two."""
        self.desk, self.fake = desk, fake
        self.api = StripeApi(KEY, base=fake.url)
        self.runs: list[tuple[str, str, int]] = []

        def handler(name: str, **words: Any) -> Any:
            def handle(v: Verification) -> None:
                self.runs.append((name, v.event.session, v.attempt))

            handle.__name__ = name
            return on("*", **words)(handle)

        self.processor = desk.processor(
            handler("plain"),
            handler("needy", needs=[NEEDS]),
            *more,
            api=self.api,
            restricted_api=StripeApi(RESTRICTED_KEY, base=fake.url),
        )
        report = {"last_verification_report": None} if call == "session" else {}
        self.event, self.beside = (
            desk.accept("verified", fake.session(number, **report), form="thin")
            for number in (1, 2)
        )
        self.about = self.event.id if call == "thin event" else self.event.session

    def turn(self) -> None:
        for _ in range(2):  # each event once, at most
            self.desk.turn(self.processor)

    def pass_time(self, seconds: float) -> None:
        """Have so much time passed since the event and its result, and what waits be due."""
        record = f"iw:evt:{self.event.key}"
        fields = self.desk.fields(self.event)
        if not fields:
            return  # it is done
        report = self.fake.sessions[self.event.session]["last_verification_report"]
        if report:
            report["created"] -= round(seconds)
        for name in (b"accepted", b"reopened"):
            if name in fields:
                self.desk.redis.hset(record, name, int(fields[name]) - round(seconds * 1000))
        for name, value in fields.items():
            if name.startswith(b"h:") and value.startswith(b"retry"):
                status, attempts, ms, _, reason = value.split(b"|")
                self.desk.redis.hset(record, name, b"|".join([status, attempts, ms, b"1", reason]))
        self.desk.redis.delete("iw:pause")
        self.desk.redis.hdel(record, "not_before")
        self.desk.wake(self.event.key)
        self.turn()

    def state(self) -> tuple[str, dict[str, tuple[str, int]]]:
        record = self.desk.record(self.event)
        return record.state, {
            name.removeprefix("p."): (p.status, p.attempts) for name, p in record.handlers.items()
        }

    def alarms(self) -> list[dict[str, Any]]:
        return self.desk.logged("stripe_refuses_our_key")


BOTH_DONE = {"plain": ("done", 1), "needy": ("done", 1)}
NONE: dict[str, tuple[str, int]] = {}


@pytest.mark.parametrize(
    ("call", "answer", "expected"), walk("session", "report", "sensitive", "thin event")
)
def test_of_an_event(call, answer, expected, desk, fake) -> None:
    bench, key = Bench(desk, fake, call), KEY_OF[call]
    word, alarmed = expected.rstrip("!"), expected.endswith("!")
    fault = fake.fault = Fault(call, key, bench.about, answer)
    began = desk.now()
    bench.turn()
    assert fault.struck == 1
    plain = {"plain": ("done", 1)} if call == "sensitive" else NONE
    waiting = plain | ({"needy": ("retry", 0)} if call == "sensitive" else NONE)
    ended = plain | ({"needy": ("dead", 0)} if call == "sensitive" else NONE)
    first = {"dead": ("dead", ended), "alone": ("done", BOTH_DONE)}
    assert bench.state() == first.get(word, ("pending", waiting))
    assert len(bench.alarms()) == alarmed
    needy_waits = call == "sensitive" and bench.state()[0] == "pending"
    assert desk.counts().get("handler_runs|p.needy|waiting", 0) == needy_waits, "and did not run"
    for line in bench.alarms():
        assert (line["key_name"], line["call"]) == (SETTING[key], column(call))
        assert line["status"] == answer.status
        assert line.get("handler") == ("p.needy" if call == "sensitive" else None)

    # Nobody else is held up, unless everyone would meet the same.
    if word == "all":
        assert desk.inbox.claim() == [Refused.PAUSED]
    else:
        assert desk.record(bench.beside).state == "done"
    assert {p.attempts for p in desk.record(bench.beside).handlers.values()} <= {1}

    waits = {"briefly": 4, "waits": 60, "recheck": 60, "later": 60, "shown": 60, "all": 60}
    if longest := waits.get(word):
        due = desk.due(bench.event)
        assert began + longest * 1000 - 2_000 <= due <= desk.now() + longest * 1000
        bench.pass_time(RECHECK + 1)
        over = {"recheck": ("dead", ended), "later": ("done", BOTH_DONE)}
        assert bench.state() == over.get(word, ("pending", waiting))
        bench.pass_time(RESULTS_SHOWN_FOR)
        over["shown"] = ("dead", ended)
        assert bench.state() == over.get(word, ("pending", waiting))
    if bench.state()[0] == "dead":
        reason = desk.record(bench.event).reason
        assert len(reason.split()) > 8, "words that a person can act on"
        assert str(answer.status) in reason
        assert desk.inbox.replay(bench.event.key) == "replayed"
        bench.turn()
        again = {"shown": ("dead", ended), **first}  # what a result is old enough for stays so
        assert bench.state() == again.get(word, ("pending", waiting)), "it has its time again"
        desk.inbox.replay(bench.event.key)

    fake.fault = None
    bench.pass_time(1)
    assert bench.state() == ("done", BOTH_DONE)
    assert sorted(bench.runs) == sorted(set(bench.runs)), "none ran twice, and no attempt was spent"
    assert "handler_runs|p.needy|retry" not in desk.counts()
    assert desk.record(bench.beside).state in ({"done", "pending"} if word == "all" else {"done"})


@pytest.mark.parametrize("call", ["report", "thin event", "sensitive"])
def test_a_limit_of_a_connected_account_holds_up_no_other(call, desk, fake) -> None:
    bench = Bench(desk, fake, call)
    other = desk.accept("verified", fake.session(3, "acct_1"), account="acct_1", form="thin")
    behind = desk.accept("verified", fake.session(4, "acct_1"), account="acct_1", form="thin")
    about = other.id if call == "thin event" else other.session
    fake.fault = Fault(call, KEY_OF[call], about, Answer(429, "rate_limit"))
    for _ in range(4):
        desk.turn(bench.processor)
    assert {desk.record(each).state for each in (bench.event, bench.beside)} == {"done"}
    assert {desk.record(each).state for each in (other, behind)} == {"pending"}
    assert desk.inbox.paused() is None
    until, why = desk.inbox.paused("acct_1")
    assert "limited 429" in why
    assert time.time() < until < time.time() + 61


@pytest.mark.parametrize("account", [None, "acct_1"])
def test_who_is_paused_by_each_failure_of_an_event(account, desk) -> None:
    @on("*")
    def handled(_: Verification) -> None: ...

    desk.accept("verified", "vs_1", account=account)
    (claim,) = desk.processor(handled).claim()
    judge, places = Judge(desk.inbox, desk.metrics), ("", "acct_1", "acct_2")
    for call, rules in RULES.items():
        for kind, rule in rules.items():
            failure = StripeFailure(kind, call=call)
            judge.verdict(failure, claim)
            paused = [each for each in places if desk.inbox.resume(each)]
            expected = {"everyone": [""], "account": [account or ""]}.get(rule.who, [])
            assert paused == expected, (failure, rule)


@pytest.mark.parametrize("account", [None, "acct_1"])
def test_what_stripe_asks_to_wait_is_for_the_event_and_a_minute_for_others(account, desk) -> None:
    @on("*")
    def handled(_: Verification) -> None: ...

    desk.accept("verified", "vs_1", account=account)
    (claim,) = desk.processor(handled).claim()
    judge, places = Judge(desk.inbox, desk.metrics), ("", "acct_1")
    for call, rules in RULES.items():
        for kind, rule in rules.items():
            plain = judge.verdict(StripeFailure(kind, call=call), claim).delay
            asked = judge.verdict(StripeFailure(kind, call=call, retry_after=3600), claim).delay
            assert asked == (None if plain is None else plain + 3600), (call, kind)
            for place in places:
                if pause := desk.inbox.paused(place):
                    assert pause[0] == pytest.approx(time.time() + rule.longest, abs=5), (
                        call,
                        kind,
                    )
                    desk.inbox.resume(place)


def test_a_thin_event_that_goes_on_alone_keeps_its_key(desk, fake) -> None:
    """An effect of its first attempt would be repeated under another one."""
    keys: list[tuple[str, str]] = []

    @on("*")
    def unsteady(v: Verification) -> None:
        keys.append((v.event.session, v.idempotency_key))
        if v.attempt == 1:
            raise Retry("later", delay=0)

    bench = Bench(desk, fake, "thin event", more=[unsteady])
    fault = fake.fault = Fault("thin event", KEY, bench.about, Answer(403))
    desk.turn(bench.processor)
    desk.turn(bench.processor)
    fake.fault = None
    for event in (bench.event, bench.beside):
        desk.settle(bench.processor, event)
    alone, beside = bench.event, bench.beside
    assert sorted(keys) == [
        *2 * [(alone.session, f"{alone.id}:p.unsteady")],
        *2 * [(beside.session, f"{beside.id}snapshot:p.unsteady")],
    ]
    asked = [about for call, _, about in fake.calls if call == "thin event"]
    assert sorted(asked) == sorted([alone.id, beside.id]), "once, whatever was answered"
    assert fault.struck == 1


@pytest.mark.parametrize("restricted", [False, True], ids=["API key", "restricted key"])
def test_a_worker_asks_with_the_keys_and_at_the_address_of_its_settings(
    restricted, desk, fake, server, monkeypatch
) -> None:
    """With the restricted key once at a time: the handlers that need it wait in the inbox."""
    monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 1)
    monkeypatch.setattr(failures, "backoff", lambda *_: 0.01)  # nothing is asked of waits
    seen: list[object] = []

    @on("*")
    def plain(v: Verification) -> None: ...

    @on("*", needs=[NEEDS])
    def needy(v: Verification) -> None:
        seen.append(v.sensitive.dob)

    handlers = Router()
    handlers.add(type("P", (), {"a": staticmethod(plain), "b": staticmethod(needy)})(), "p")
    settings = Settings(
        redis_url=server.url,
        stripe_api_key=KEY,
        stripe_restricted_key=RESTRICTED_KEY,
        stripe_api_base=fake.url,
        worker_concurrency=3,
    )
    processor = desk.add(Processor.from_settings(settings, desk.stop, handlers))
    event = desk.accept("verified", fake.session(1))
    call, key = ("sensitive", RESTRICTED_KEY) if restricted else ("report", KEY)
    fault = fake.fault = Fault(call, key, event.session, Answer(500))
    desk.turn(processor)
    assert fault.struck == (1 if restricted else 2)
    assert desk.record(event).state == "pending"
    fake.fault = None
    desk.settle(processor, event)
    assert seen == [date(1990, 7, 17)]
    asked = {(call, key) for call, key, _ in fake.calls}
    assert asked == {("report", KEY), ("sensitive", RESTRICTED_KEY)}
    observed: Counter[str] = Counter()
    for name, by in processor._metrics.counts().items():
        if name.startswith("stripe_seconds|") and not name.endswith("|sum"):
            observed[name.split("|")[2]] += int(by)
    assert observed["500"] == fault.struck
    assert observed.total() == len(fake.calls), "each call is counted, whichever key it has"


@pytest.mark.sample(1)
@pytest.mark.parametrize("call", [call for call in CALLS if call != "list"])
def test_with_the_other_key_it_is_never_asked(call, desk, fake) -> None:
    for number, (answer, _) in enumerate(ROWS):
        bench = Bench(desk, fake, call, 10 * number)
        fault = fake.fault = Fault(call, OTHER[KEY_OF[call]], bench.about, answer)
        bench.turn()
        assert (bench.state(), fault.struck) == (("done", BOTH_DONE), 0)
    assert bench.alarms() == []


@pytest.mark.parametrize("account", [None, "acct_1"])
def test_all_of_an_event_is_asked_for_in_its_account(account, desk, fake) -> None:
    bench = Bench(desk, fake, "sensitive")
    for event in (bench.event, bench.beside):
        desk.settle(bench.processor, event)
    fake.calls.clear()
    fake.headers.clear()
    event = desk.accept("verified", fake.session(3, account), account=account, form="thin")
    desk.settle(bench.processor, event)
    assert {call for call, _, _ in fake.calls} == {"thin event", "report", "sensitive"}
    assert {each.get("Stripe-Account") for each in fake.headers} == {account}


@pytest.mark.parametrize("about", ["/v1/events", "/v1/accounts", "acct_1"])
def test_nor_are_lists(about, desk, fake) -> None:
    fake.accounts = ["acct_1"]
    api = StripeApi(KEY, base=fake.url)
    reconciler = Reconciler(api, desk.inbox, livemode=False, list_accounts=True)
    for answer, _ in ROWS:
        fault = fake.fault = Fault("list", RESTRICTED_KEY, about, answer)
        found = reconciler.round()
        assert (found.failed, found.gone, fault.struck) == ({}, [], 0)


@pytest.mark.parametrize(("call", "answer", "expected"), walk("list"))
def test_of_an_account(call, answer, expected, desk, fake, redis) -> None:
    inbox, key = Inbox(redis), KEY_OF[call]
    fake.accounts = ["acct_1", "acct_2"]
    for number, account in enumerate([None, *fake.accounts]):
        fake.session(number, account)
    reconciler = Reconciler(
        StripeApi(KEY, base=fake.url), inbox, livemode=False, list_accounts=True
    )
    fault = fake.fault = Fault(call, key, "acct_1", answer)
    found = reconciler.round()
    assert fault.struck == 1
    assert found.counts["new"] == 4, "of the others"
    word, alarmed = expected.rstrip("!"), expected.endswith("!")
    assert found.gone == (["acct_1"] if word == "gone" else [])
    assert list(found.failed) == (["acct_1"] if word == "next" else [])
    assert inbox.watermark() is not None
    assert inbox.watermark("acct_1") is None
    alarms = desk.logged("stripe_refuses_our_key")
    assert [line["account"] for line in alarms] == (["acct_1"] if alarmed else [])
    said = "account_gone" if word == "gone" else "reconcile_failed"
    assert [line["account"] for line in desk.logged(said)] == ["acct_1"]

    fake.fault = None
    again = reconciler.round()
    assert again.failed == {}
    assert again.counts["new"] == {"gone": 0}.get(word, 2)


def test_after_two_accounts_that_may_fail_like_all_no_other_is_asked(fake, redis) -> None:
    fake.accounts = [f"acct_{number}" for number in range(1, 7)]
    for number, account in enumerate(fake.accounts):
        fake.session(number, account)
    reconciler = Reconciler(
        StripeApi(KEY, base=fake.url), Inbox(redis), livemode=False, list_accounts=True
    )
    asked: list[str] = []
    plain, failing = fake.answer, {"acct_1", "acct_2"}

    def answering(path: str, query: Any, key: str, account: str) -> Any:
        if path == "/v1/events":
            asked.append(account)
            if account in failing:
                return Answer(429)
        return plain(path, query, key, account)

    fake.answer = answering
    seen: set[str] = set()
    for _ in range(20):
        asked.clear()
        assert len(reconciler.round().failed) <= 2
        order = list(dict.fromkeys(asked))
        assert len(order) == 7 or set(order[-2:]) == failing, "they failed one after the other"
        seen |= set(order)
    assert seen >= {"acct_3", "acct_4", "acct_5", "acct_6"}, "each comes before them at times"


WAYS: dict[str, Callable[[Reconciler], Pass]] = {
    "round": lambda reconciler: reconciler.round(),
    "by hand": lambda reconciler: reconciler.run(0),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (Answer(429), True),
        (Answer(401), True),
        (Answer(0, "(cut-off)"), True),
        (Answer(403), False),
        (Answer(403, "account_invalid"), False),
        (Answer(500), False),
    ],
    ids=str,
)
def test_what_of_two_accounts_ends_a_pass_and_what_does_not(answer, ends, way, fake, redis) -> None:
    fake.accounts = [f"acct_{number}" for number in range(1, 7)]
    asked: list[str] = []
    plain = fake.answer

    def answering(path: str, query: Any, key: str, account: str) -> Any:
        if path == "/v1/events":
            asked.append(account)
            return answer
        return plain(path, query, key, account)

    fake.answer = answering
    api = StripeApi(KEY, base=fake.url, retries=0)
    way(Reconciler(api, Inbox(redis), livemode=False, list_accounts=True))
    assert len(set(asked)) == len(asked) == (2 if ends else 7)


@pytest.mark.parametrize("answer", [{}, [], {"data": None}, "text"], ids=repr)
def test_a_list_of_another_form_ends_no_pass(answer, fake, redis) -> None:
    fake.accounts = ["acct_1"]
    fake.session(1, "acct_1")
    plain = fake.answer

    def answering(path: str, query: Any, key: str, account: str) -> Any:
        if path == "/v1/events" and not account:
            return answer
        return plain(path, query, key, account)

    fake.answer = answering
    reconciler = Reconciler(
        StripeApi(KEY, base=fake.url), Inbox(redis), livemode=False, list_accounts=True
    )
    found = reconciler.round()
    assert list(found.failed) == ["own"]
    assert found.counts["new"] == 2


class TestSensitive:
    NUMBER = "last_verification_report.document.number"

    @pytest.mark.parametrize("answer", [Answer(403), Answer(400, "parameter_unknown")], ids=str)
    def test_a_field_that_is_refused_concerns_only_whom_needs_it(
        self, answer, desk, fake, monkeypatch
    ) -> None:
        @on("*", needs=[self.NUMBER])
        def numbered(_: Verification) -> None:
            raise AssertionError

        def reads(name: str, need: Need) -> Callable[[Verification], None]:
            def handle(v: Verification) -> None:
                getattr(v.sensitive, need.rpartition(".")[2])  # raises what was not fetched

            handle.__name__ = name
            return on("*", needs=[need])(handle)

        before, after = (
            reads("before", "verified_outputs.dob"),
            reads("after", "verified_outputs.sex"),
        )
        bench = Bench(desk, fake, "sensitive", more=[before, numbered, after])
        plain = fake.answer

        def answering(path: str, query: dict[str, list[str]], key: str, account: str) -> Any:
            expanded = [value for values in query.values() for value in values]
            if self.NUMBER in expanded:
                return answer
            return plain(path, query, key, account)

        monkeypatch.setattr(fake, "answer", answering)
        bench.turn()
        state, handlers = bench.state()
        others = {name: ended for name, ended in handlers.items() if name != "numbered"}
        assert others == dict.fromkeys(["plain", "needy", "before", "after"], ("done", 1))
        assert handlers["numbered"] == ("retry" if answer.status == 403 else "dead", 0)
        assert state == ("pending" if answer.status == 403 else "dead")

    @pytest.mark.parametrize("status", [401, 500])
    def test_what_is_refused_to_all_is_waited_for_by_each_that_needs_something(
        self, status, desk, fake
    ) -> None:
        @on("*", needs=["verified_outputs.sex"])
        def other(v: Verification) -> None:
            assert v.sensitive.sex is None

        bench = Bench(desk, fake, "sensitive", more=[other])
        fake.fault = Fault("sensitive", RESTRICTED_KEY, bench.about, Answer(status))
        bench.turn()
        waiting = {"plain": ("done", 1), "needy": ("retry", 0), "other": ("retry", 0)}
        assert bench.state() == ("pending", waiting)
        reasons = {p.reason for p in desk.record(bench.event).handlers.values() if not p.over}
        assert len(reasons) == 1
        named = [line["handler"] for line in bench.alarms()]
        assert named == (["p.needy, p.other"] if status == 401 else [])
        fake.fault = None
        bench.pass_time(1)
        assert bench.state() == ("done", BOTH_DONE | {"other": ("done", 1)})

    @pytest.mark.parametrize(("hours", "state"), [(47, "pending"), (49, "dead")])
    def test_or_from_the_event_where_there_is_no_report(self, hours, state, desk, fake) -> None:
        bench = Bench(desk, fake, "session")
        fake.fault = Fault("sensitive", RESTRICTED_KEY, bench.about, Answer(403))
        created = int(time.time()) - hours * 3600
        assert desk.redis.hset(f"iw:evt:{bench.event.key}", "created", created) == 0, "it has one"
        bench.turn()
        assert bench.state()[0] == state

    def test_the_48_hours_count_from_the_result(self, desk, fake) -> None:
        bench = Bench(desk, fake, "sensitive")
        fake.fault = Fault("sensitive", RESTRICTED_KEY, bench.about, Answer(403))
        fake.sessions["vs_1"]["last_verification_report"]["created"] -= RESULTS_SHOWN_FOR + 1
        bench.turn()
        record = desk.record(bench.event)
        assert record.state == "dead"
        assert record.reason.startswith(
            "p.needy: stripe: sensitive: forbidden 403: sensitive_expired"
        )
        assert bench.runs.count(("plain", "vs_1", 1)) == 1

    @pytest.mark.parametrize("need", [each for each in SENSITIVE if each.endswith(("dob", "date"))])
    def test_a_date_of_which_a_part_is_missing_is_none(self, need, fake) -> None:
        *outer, last = need.split(".")
        event = Event("evt_1", "verified", "snapshot", fake.session(1), 0, livemode=False)
        api = StripeApi(RESTRICTED_KEY, base=fake.url)

        def fetched(**parts: int | None) -> Any:
            place = fake.sessions["vs_1"]
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = {"year": 1990, "month": 7, "day": 17} | parts
            (found,) = api.fetch_sensitive(event, [need]).values()
            return found

        assert fetched() == date(1990, 7, 17)
        for part in ("year", "month", "day"):
            assert fetched(**{part: None}) is None
        with pytest.raises(StripeFailure, match="broken"):
            fetched(month=13)

    def test_of_a_redacted_session_nothing_is_asked(self, desk, fake) -> None:
        bench = Bench(desk, fake, "sensitive")
        fake.sessions["vs_1"]["redaction"] = {"status": "redacted"}
        bench.turn()
        assert bench.state() == ("done", BOTH_DONE)
        assert ("sensitive", RESTRICTED_KEY, "vs_1") not in fake.calls


class TestConnectedAccounts:
    def test_after_a_wipe_one_period_brings_back_what_stripe_still_shows(
        self, fake, redis, server, processes
    ) -> None:
        """With the periodic process itself; the account in the middle was deauthorized."""
        inbox = Inbox(redis)
        accounts = fake.accounts = ["acct_1", "acct_2", "acct_3"]
        for number, account in enumerate([None, *accounts]):
            fake.session(number, account)
        _, log = processes.python(
            *("-m", "workers", "periodic"),
            env={
                "REDIS_URL": server.url,
                "STRIPE_API_KEY": KEY,
                "STRIPE_API_BASE": fake.url,
                "STRIPE_CONNECTED_ACCOUNTS": "1",
            },
        )

        def logged(name: str) -> list[dict[str, Any]]:
            # The last may not be whole yet.
            lines = map(json.loads, log.read_text().split("\n")[:-1])
            return [line for line in lines if line["event"] == name]

        wait_until(lambda: len(logged("reconciled")) == 1)
        before = {record.key for record in inbox.records("all", 100)}
        assert len(before) == 2 * (1 + len(accounts))
        fake.fault = Fault("list", KEY, "acct_2", Answer(403, "account_invalid"))
        redis.flushall()  # and with it whose turn it is and when the next period begins
        wait_until(lambda: len(logged("reconciled")) == 2)

        missing = before - {record.key for record in inbox.records("all", 100)}
        assert missing == {"acct_2-evt_created2", "acct_2-evt_verified2"}
        (said,) = logged("account_gone")
        assert (said["level"], said["account"]) == ("warning", "acct_2")
        assert "Stripe shows nothing of it any more" in said["hint"]
        (round_,) = logged("reconciled")[1:]
        assert (round_["counts"], round_["level"]) == ({"new": 6}, "warning")
        assert logged("stripe_refuses_our_key") == [], "nothing is wrong with our key"
        assert inbox.accounts() == ["acct_1", "acct_3"]

    def test_all_of_them_are_asked_for_however_many_pages_they_are_on(self, desk, fake) -> None:
        fake.accounts = [f"acct_{number}" for number in range(2 * PAGE + 1)]
        plain = fake.answer

        def answering(path: str, query: Any, key: str, account: str) -> Any:
            if path != "/v1/accounts":
                return plain(path, query, key, account)
            after = query.get("starting_after", [""])[0]
            first = fake.accounts.index(after) + 1 if after else 0
            page = fake.accounts[first : first + PAGE]
            more = page[-1] != fake.accounts[-1]
            data = [{"id": each, "object": "account"} for each in page]
            return {"object": "list", "url": path, "has_more": more, "data": data}

        fake.answer = answering
        api = StripeApi(KEY, base=fake.url)
        assert list(api.connected_accounts()) == fake.accounts

    def test_when_they_cannot_be_listed_those_that_events_came_from_are_asked_for(
        self, desk, fake
    ) -> None:
        fake.accounts = ["acct_1", "acct_2"]
        for number, account in enumerate([None, *fake.accounts]):
            fake.session(number, account)
        desk.accept("created", "vs_9", account="acct_1")
        fake.fault = Fault("list", KEY, "/v1/accounts", Answer(403))
        api = StripeApi(KEY, base=fake.url)
        found = Reconciler(api, desk.inbox, livemode=False, list_accounts=True).round()
        assert list(found.failed) == ["connected accounts"]
        assert found.counts == {"new": 4}
        assert desk.inbox.accounts() == ["acct_1"]

        fake.fault, fake.accounts = None, ["acct_2"]
        fake.calls.clear()
        Reconciler(api, desk.inbox, livemode=False, list_accounts=True).round()
        asked = {about for call, _, about in fake.calls if call == "list"}
        assert asked >= {"/v1/events", "acct_1", "acct_2"}, "what is listed, and what was known"

    def test_without_the_setting_they_are_those_that_events_came_from(self, desk, fake) -> None:
        fake.accounts = ["acct_1", "acct_2"]
        for number, account in enumerate(fake.accounts):
            fake.session(number, account)
        desk.accept("created", "vs_0", account="acct_1")
        Reconciler(StripeApi(KEY, base=fake.url), desk.inbox, livemode=False).round()
        assert desk.inbox.accounts() == ["acct_1"]
        assert "/v1/accounts" not in {about for _, _, about in fake.calls}

    def test_an_organizations_key_names_the_account_in_its_context(self, desk, fake) -> None:
        fake.session(1, "acct_1")
        desk.accept("created", "vs_1", account="acct_1")
        api = StripeApi("sk_org_test_table", base=fake.url)
        Reconciler(api, desk.inbox, livemode=False).round()
        assert desk.inbox.watermark("acct_1") is not None
        assert desk.inbox.watermark() is None, "it has no account of its own"
        api.retrieve_session("vs_1", account="acct_1")
        assert {headers.get("Stripe-Context") for headers in fake.headers} == {"acct_1"}
        assert not any("Stripe-Account" in headers for headers in fake.headers)

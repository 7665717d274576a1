"""`service.status`: each state of things has its problem, by the name of its alert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import Mock

import pytest

from service import findings, status
from service.findings import Finding
from service.processes import Process, Seen
from service.settings import Settings
from service.signature import Secret
from service.status import Problem, Status, in_time, in_words, problems_of
from service.survey import BUSY, NOT_LISTED, Reconciled, Survey

SETTINGS = Settings(inbox_limit=100)


def process(role: Any, age: float = 1, **more: Any) -> Seen:
    return Seen(role, age, Process(role=role, pid=1, started=1, **more))


WELL = Survey(
    now=1e9,
    clock_ahead=0.0,
    pending=3,
    queued=1,
    dead=0,
    overdue=0.1,
    oldest=5.0,
    waits={},
    deaths=Counter(),
    running=[process("web"), process("worker", slots=20, busy=2), process("periodic")],
    paused=None,
    reconciled={"": Reconciled(10**9 - 10)},
    through={"": 100.0},
    memory=10,
    memory_limit=100,
    room=100,
    seen={"verified_with|default": 5.0, "deliveries|new": 5.0},
)
STATES: list[tuple[str, dict[str, Any], str]] = [
    ("InboxFull", {"pending": 100}, "100 events are pending"),
    ("InboxFull", {"pending": 81}, "81 events are pending; from 100 on"),
    ("RedisMemoryShort", {"memory": 76}, "Redis uses 76% of its memory; from 80% on"),
    ("NoWorker", {"running": [process("periodic")]}, "no worker lives: 3 events wait"),
    ("NoWorker", {"running": [process("worker", 60), process("periodic")]}, "no worker lives"),
    (
        "NoWorker",
        {"running": [process("worker", ended=True), process("periodic")]},
        "no worker lives",
    ),
    (
        "HandlersDiffer",
        {
            "running": [
                process("worker", handlers=("a.b", "c.d"), host="one"),
                process("worker", handlers=("a.b",), host="two"),
                process("periodic"),
            ]
        },
        "of two has no c.d, as others have",
    ),
    ("NoPeriodic", {"running": [process("worker", slots=1)]}, "no periodic process lives"),
    ("StripeRefusesKey", {"paused": ("stripe: key 401", 50.0)}, "no event is claimed for 50 s"),
    ("StripeRefusesKey", {"paused": ("stripe: thin event: key 401", 50.0)}, "key 401"),
    ("Paused", {"paused": ("stripe: limited 429", 5.0)}, "limited 429"),
    ("Paused", {"paused": ("clock set", 5.0)}, "clock set"),
    ("Behind", {"overdue": 61.0, "queued": 90}, "90 events wait, the first for 61 s; 2 of 20"),
    ("SignatureRefused", {"seen": {"refusals|signature_mismatch": 1.0}}, "their signature"),
    ("SignatureRefused", {"seen": {"refusals|signature_expired": 1.0}}, "their signature"),
    ("SignatureRefused", {"seen": {"refusals|malformed_header": 1.0}}, "without a usable"),
    ("WrongMode", {"seen": {"deliveries|other_mode": 1.0}}, "the other mode"),
    ("WrongEvents", {"seen": {"deliveries|ignored": 1.0}}, "other types"),
    ("WrongPath", {"seen": {"unknown_paths|POST": 1.0}}, "a path that does not exist"),
    ("DeadEvents", {"deaths": Counter({("a.b", "timeout"): 2})}, "2 dead: a.b: timeout"),
    ("DeadEvents", {"deaths": Counter({("", "stripe missing"): 2})}, "2 dead: stripe missing"),
    ("DeadEvents", {"deaths": Counter({("", ""): 2})}, "2 dead: no reason is noted"),
    ("DeadEvents", {"deaths": Counter({("", NOT_LISTED): 2})}, "2 dead: not listed"),
    ("HandlerFails", {"waits": {"a.b: failed: KeyError": 2}}, "2: a.b: failed: KeyError"),
    ("StripeFails", {"waits": {"stripe: broken 500": 2}}, "2: stripe: broken 500"),
    ("StripeRefusesKey", {"waits": {"a.b: stripe: sensitive: forbidden 403": 1}}, "forbidden"),
    ("EventsWait", {"waits": {"worker stopped": 2}}, "worker stopped"),
    ("EventsWait", {"oldest": 3601.0}, "the oldest of 3 events is 60 min old; no reason is noted"),
    ("EventsWait", {"oldest": 3601.0, "waits": {BUSY: 2}}, "2: for their session"),
    ("EventsWait", {"waits": {"stripe: missing 404 resource_missing": 2}}, "missing 404"),
    ("EventsWait", {"waits": {"a.b: stripe: sensitive: account 403": 2}}, "account 403"),
    ("Paused", {"waits": {"account paused: by ann": 2}}, "2: account paused: by ann"),
    ("StripeFails", {"waits": {"account paused: stripe: limited 429": 2}}, "limited 429"),
    (
        "NotReconciled",
        {"reconciled": {"": Reconciled(10**9 - 60, failed="list: forbidden 403", hint="do this")}},
        "reconciliation of one's own account failed 60 s ago: list: forbidden 403",
    ),
    (
        "NotReconciled",
        {"reconciled": {"": Reconciled(1), "acct_1": Reconciled(10**9 - 60, failed="list: x")}},
        "reconciliation of acct_1 failed 60 s ago: list: x",
    ),
    ("NotReconciled", {"through": {"": 1000.0}}, "reconciliation last had a whole pass 17 min ago"),
    ("DeliveriesMissed", {"seen": {"reconcile_missed": 60.0}}, "were found 60 s ago"),
    ("ClockSetBack", {"clock_ahead": 60.0}, "60 s are not made up yet"),
]


def problems(**changed: Any) -> list[Problem]:
    if "waits" in changed:
        changed.setdefault("oldest", 3600.0)
    return list(problems_of(replace(WELL, **changed), SETTINGS))


def test_nothing_is_wrong_when_nothing_is() -> None:
    assert problems() == []


@pytest.mark.parametrize(("alert", "changed", "said"), STATES)
def test_each_state_has_its_problem_and_no_other(alert, changed, said) -> None:
    (problem,) = problems(**changed)
    assert problem.alert == alert
    assert said in problem.text
    assert problem.cure


SEEN = [(alert, changed["seen"]) for alert, changed, _ in STATES if "seen" in changed]


@pytest.mark.parametrize(("alert", "seen"), SEEN)
def test_what_was_seen_long_ago_is_no_news_and_hides_none(alert, seen) -> None:
    before = {name: 1e6 for _, each in SEEN for name in each}
    assert problems(seen=before) == []
    (problem,) = problems(seen=before | seen)
    assert problem.alert == alert


LIMITS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Behind", {"overdue": 60.0}, {"overdue": 61.0}),
    ("EventsWait", {"oldest": 3600.0}, {"oldest": 3601.0}),
    ("EventsWait", {"oldest": 3600.0, "waits": {BUSY: 2}}, {"oldest": 3601.0, "waits": {BUSY: 2}}),
    ("NotReconciled", {"through": {"": 900.0}}, {"through": {"": 901.0}}),
    *(
        (alert, {"oldest": 60.0, "waits": {why: 2}}, {"oldest": 61.0, "waits": {why: 2}})
        for alert, why in [("HandlerFails", "a.b: failed: x"), ("StripeFails", "stripe: broken")]
    ),
    *(
        (alert, {"seen": dict.fromkeys(seen, 901.0)}, {"seen": dict.fromkeys(seen, 899.0)})
        for alert, seen in SEEN
    ),
]


@pytest.mark.parametrize(("alert", "well", "wrong"), LIMITS)
def test_a_problem_begins_where_its_alert_does(alert, well, wrong) -> None:
    assert problems(**well) == []
    assert [each.alert for each in problems(**wrong)] == [alert]


CURES = [
    ({"paused": ("stripe: key 401", 50.0)}, "put a valid one in its place"),
    ({"paused": ("stripe: limited 429", 5.0)}, "lower STRIPE_API_RATE; it goes on by itself"),
    ({"paused": ("by ann", 50.0)}, "events resume ends it at once"),
    ({"paused": ("clock set", 5.0)}, "it goes on by itself"),
    ({"waits": {"stripe: missing 404 resource_missing": 2}}, "is STRIPE_API_KEY of the account"),
    ({"waits": {"stripe: account 403": 2}}, "is STRIPE_API_KEY of the account"),
    ({"waits": {"stripe: forbidden 403": 2}}, "python -m workers doctor"),
    ({"waits": {"stripe: broken 500": 2}}, "look its request_ids"),
    ({"waits": {"a.b: failed: KeyError": 2}}, "`handler_failed` in the log"),
    ({"waits": {"account paused: by ann": 2}}, "events resume --account ends the pause"),
    ({"waits": {"worker stopped": 2}}, "look for `event_released`"),
    ({"oldest": 3601.0}, "python -m service events list --state pending"),
    ({"pending": 100}, "start workers; deliveries are answered 503 meanwhile"),
    ({"pending": 81}, "start workers, or look why events wait"),
    ({"deaths": Counter({("", NOT_LISTED): 2})}, "python -m service events causes"),
    ({"reconciled": {"": Reconciled(1, failed="list: x", hint="do this")}}, "do this"),
    ({"reconciled": {"": Reconciled(1, failed="list: x")}}, "python -m workers reconcile"),
    ({"through": {"": 1000.0}}, "python -m workers reconcile"),
    ({"seen": {"reconcile_missed": 60.0}}, "python -m workers reconcile --deep"),
    ({"seen": {"refusals|signature_expired": 1.0}}, "and look at the clock"),
    ({"seen": {"deliveries|other_mode": 1.0}}, "else change STRIPE_LIVEMODE and the keys"),
]


@pytest.mark.parametrize(("changed", "words"), CURES)
def test_what_to_do_is_said(changed, words) -> None:
    (problem,) = problems(**changed)
    assert words in problem.cure


@pytest.mark.parametrize(
    ("changed", "alerts"),
    [
        ({"overdue": 61.0, "running": [process("periodic")]}, ["NoWorker"]),
        ({"overdue": 61.0, "paused": ("by ann", 50.0)}, ["Paused"]),
        (
            {"reconciled": {"acct_1": Reconciled(1, failed="x")}, "through": {"": 1000.0}},
            ["NotReconciled"],
        ),
        ({"through": {"": 100.0, "acct_1": 1e6}}, []),
        ({"through": {}}, []),
        ({"oldest": 7200.0, "waits": {BUSY: 9, "a.b: failed: x": 1}}, ["HandlerFails"]),
        ({"seen": {"unknown_paths|GET": 1.0}}, []),
        ({"pending": 100, "memory": 76}, ["InboxFull", "RedisMemoryShort"]),
        ({"running": []}, ["NoWorker", "NoPeriodic"]),
    ],
)
def test_what_another_problem_explains_or_hides_nothing_is_none(changed, alerts) -> None:
    assert [each.alert for each in problems(**changed)] == alerts


def test_of_each_kind_of_wait_the_most_frequent_is_told() -> None:
    waits = {"a.b: failed: x": 2, "a.b: timeout": 5, "c.d: failed: x": 4, "worker stopped": 1}
    found = problems(waits=waits, pending=30, queued=4, oldest=120.0)
    assert [(each.alert, each.text) for each in found] == [
        ("HandlerFails", "24 events wait, the oldest is 2 min old; 5: a.b: timeout"),
        ("EventsWait", "24 events wait, the oldest is 2 min old; 1: worker stopped"),
    ]


def test_the_three_most_frequent_causes_of_death_are_told_and_the_rest_counted() -> None:
    deaths = Counter({("a.b", f"failed {number}"): number for number in (2, 5, 1, 4, 3)})
    *told, rest = problems(dead=15, deaths=deaths)
    assert [each.text for each in told] == [f"{n} dead: a.b: failed {n}" for n in (5, 4, 3)]
    assert (rest.alert, rest.text) == ("DeadEvents", "3 dead of 2 other causes")
    assert rest.cure == "python -m service events causes"
    three = Counter(dict(deaths.most_common(3)))
    assert problems(dead=12, deaths=three) == told


def test_of_two_signatures_that_are_refused_the_later_one_is_told() -> None:
    for ages in ((30.0, 40.0), (40.0, 30.0)):
        names = ("refusals|signature_mismatch", "refusals|signature_expired")
        (problem,) = problems(seen=dict(zip(names, ages, strict=True)))
        assert problem.text.endswith("the last one 30 s ago")


def test_what_stops_everything_is_told_first() -> None:
    everything = {
        "pending": 100,
        "memory": 76,
        "running": [],
        "paused": ("by ann", 50.0),
        "seen": {name: 1.0 for _, each in SEEN for name in each},
        "deaths": Counter({("a.b", "timeout"): 2}),
        "waits": {"a.b: failed: x": 2},
        "through": {"": 1000.0},
        "clock_ahead": 60.0,
    }
    assert [each.alert for each in problems(**everything)] == [
        *("InboxFull", "RedisMemoryShort", "NoWorker", "NoPeriodic", "Paused"),
        *("SignatureRefused", "WrongMode", "WrongEvents", "WrongPath"),
        *("DeadEvents", "HandlerFails", "NotReconciled", "DeliveriesMissed", "ClockSetBack"),
    ]


@pytest.mark.parametrize("old", [0, 1])
def test_in_a_rolling_deploy_handlers_may_differ(old: int) -> None:
    begun = [round((WELL.now - 500) * 1000)] * 2
    begun[old] = 1
    both = [
        Seen(str(at), 1, Process(role="worker", pid=1, started=at, handlers=names))
        for at, names in zip(begun, [("a.b",), ("a.b", "c.d")], strict=True)
    ]
    assert problems(running=[*both, process("periodic")]) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"pending": 80},
        {"memory": 75},
        {"memory": 80},  # a finding about Redis says so, or that somebody vouches for it
        {"memory": 76, "memory_limit": 0},
        {"memory": 76, "memory_limit": None},
        {"memory": None},
    ],
)
def test_there_is_room_below_the_shares_of_the_alerts(changed) -> None:
    assert problems(**changed) == []


@pytest.mark.parametrize(
    ("handler", "cause", "options"),
    [
        ("p.a", "failed KeyError", "--handler p.a --reason 'failed KeyError'"),
        ("p.a", "", "--handler p.a"),
        ("", "quarantined", "--reason quarantined"),
    ],
)
def test_the_cure_of_dead_events_is_for_those_alone(handler, cause, options) -> None:
    (problem,) = problems(dead=2, deaths=Counter({(handler, cause): 2}))
    listed, mended = problem.cure.split("; mend it, then: ")
    assert listed == f"python -m service events list --state dead {options}"
    assert mended == f"python -m service events replay --state dead {options}"


@pytest.mark.parametrize("name", ["refusals|signature_mismatch", "refusals|signature_expired"])
@pytest.mark.parametrize("accepted", [5.0, 20.0])
def test_a_signature_that_is_refused_is_news_also_while_others_are_accepted(name, accepted) -> None:
    """Only one of two endpoints may sign with a wrong secret."""
    (problem,) = problems(seen={name: 9.0, "verified_with|default": accepted})
    assert problem.alert == "SignatureRefused"


@pytest.mark.parametrize("name", ["refusals|malformed_header", "unknown_paths|POST"])
def test_what_anybody_may_send_is_no_news_while_deliveries_come(name) -> None:
    assert problems(seen={name: 9.0, "verified_with|default": 5.0}) == []
    assert problems(seen={name: 9.0, "verified_with|default": 20.0})


@pytest.mark.parametrize(
    ("used", "said"),
    [
        ({"new": 5.0, "old": 8 * 86_400.0}, ["old was last used 8 d ago"]),
        ({"old": 5.0}, []),  # the new one has just been put in
        ({"new": 5.0, "old": 86_400.0}, []),
        ({"new": 2 * 86_400.0, "old": 9 * 86_400.0}, []),  # then it is not the rotation
        ({"new": 86_399.0, "old": 7 * 86_400.0 + 1}, ["old was last used 7 d ago"]),
        ({"new": 5.0, "old": 7 * 86_400.0}, []),
        (
            {"new": 5.0, "old": 8 * 86_400.0, "older": 9 * 86_400.0},
            ["old was last used 8 d ago", "older was last used 9 d ago"],
        ),
        ({}, []),
    ],
)
def test_a_secret_that_no_delivery_is_signed_with(used, said) -> None:
    settings = Settings(
        stripe_webhook_secret=(*map(Secret, ("new", "old", "older"), (b"x", b"y", b"z")),)
    )
    seen = replace(WELL, seen={f"verified_with|{name}": age for name, age in used.items()})
    found = [each for each in problems_of(seen, settings) if each.alert == "SecretUnused"]
    assert len(found) == len(said)
    assert all(words in each.text for each, words in zip(found, said, strict=True))


def test_a_screen_shows_every_problem_first_and_then_the_rest() -> None:
    deaths = Counter({("a.b", "timeout"): 2, ("", "stripe missing"): 1})
    found = problems(deaths=deaths, waits={"a.b: failed: KeyError": 3})
    status = Status(found, accepting=True, pending=3, waits={"a.b: failed": 3})
    lines = in_words(status).splitlines()
    assert lines[0] == f"NOT WELL: {len(found)} problems"
    assert [line.split(":")[0].strip() for line in lines[1 : 2 * len(found) : 2]] == [
        each.alert for each in found
    ]
    assert "3 x a.b: failed" in in_words(status)
    told = in_words(replace(status, secrets={"old": 5.0, "new": None}))
    assert "secrets      old 5 s ago, new never" in told
    assert in_words(Status([], accepting=True, pending=0)).startswith("well\n")


FULL = replace(
    WELL,
    pending=30,
    queued=4,
    dead=14,
    overdue=11.0,
    oldest=50.0,
    waits={"a.b: x": 2, "a.c: x": 6, "a.d: x": 1, "a.e: x": 3},
    deaths=Counter({("a.b", "timeout"): 2, ("", "stripe missing"): 9, ("", ""): 3}),
    running=[
        *(process("web"), process("web"), process("web"), process("periodic")),
        *(process("worker", slots=20, busy=2), process("worker", slots=5, busy=5)),
        process("worker", 60, slots=9, busy=9),
    ],
    through={"": 100.0, "acct_1": 300.0, "acct_2": 200.0, "acct_3": 50.0},
    memory=3 << 20,
    memory_limit=10 << 20,
    seen={"verified_with|new": 5.0, "verified_with|gone": 900.0, "deliveries|new": 7.0},
)
Take = Callable[..., Status]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Take the status where Redis would be found so, and the inbox so."""

    def take(seen: Survey, *found: Finding, **settings: Any) -> Status:
        look = findings.Look({}, [], list(found))
        monkeypatch.setattr(findings, "look", lambda *_: look)
        monkeypatch.setattr(status, "survey", lambda _: seen)
        return status.take(Mock(), Settings(**{"inbox_limit": 100} | settings))

    return take


def test_a_status_has_all_of_a_look_under_its_own_name(take: Take) -> None:
    secrets = tuple(Secret(name, b"x") for name in ("old", "new"))
    taken = asdict(take(FULL, stripe_webhook_secret=secrets))
    assert [each["alert"] for each in taken.pop("problems")] == ["DeadEvents"] * 3
    assert taken == {
        "accepting": True,
        "last_delivery": 7.0,
        "processing": True,
        "processes": {"web": 3, "worker": 2, "periodic": 1},
        "slots": 25,
        "in_flight": 7,
        "pending": 30,
        "queued": 4,
        "waiting": 19,
        "dead": 14,
        "overdue": 11.0,
        "oldest": 50.0,
        "waits": {"a.b: x": 2, "a.c: x": 6, "a.d: x": 1, "a.e: x": 3},
        "died": {"stripe missing": 9, "no reason is noted": 3, "a.b: timeout": 2},
        "reconciled": {"own": 100.0, "acct_1": 300.0, "acct_2": 200.0, "acct_3": 50.0},
        "memory": 3 << 20,
        "memory_limit": 10 << 20,
        "secrets": {"old": None, "new": 5.0},
    }
    assert list(taken["died"].values()) == [9, 3, 2], "the most frequent first"
    without = take(replace(FULL, seen={"verified_with|gone": 9.0, "deliveries|done": 1.0}))
    assert (without.secrets, without.last_delivery) == ({"gone": 9.0}, None)


def test_a_screen_has_all_of_a_status(take: Take) -> None:
    secrets = tuple(Secret(name, b"x") for name in ("old", "new"))
    screen = in_words(take(FULL, stripe_webhook_secret=secrets))
    assert screen.partition("\n\n")[2].splitlines() == [
        "accepting    yes, last event 7 s ago",
        "processing   yes, 3 web, 2 worker, 1 periodic; 7 of 25 slots busy",
        "behind       30 pending, oldest 50 s: 4 in the queue, first for 11 s; 19 wait",
        *("             6 x a.c: x", "             3 x a.e: x", "             2 x a.b: x"),
        "dead         14",
        "             9 x stripe missing",
        "             3 x no reason is noted",
        "             2 x a.b: timeout",
        "reconciled   acct_1 5 min ago, acct_2 3 min ago, own 100 s ago",
        "memory       3 MB of 10 MB",
        "secrets      new 5 s ago, old never",
    ]
    nothing = replace(FULL, through={}, seen={}, memory_limit=0, waits={}, running=[])
    lines = in_words(take(replace(nothing, deaths=Counter()))).partition("\n\n")[2].splitlines()
    assert lines == [
        "accepting    yes",
        "processing   NO, 0 web, 0 worker, 0 periodic; 0 of 0 slots busy",
        "behind       30 pending, oldest 50 s: 4 in the queue, first for 11 s; 26 wait",
        "dead         14",
        "reconciled   not yet",
        "memory       3 MB of no limit",
        "secrets      none was used yet",
    ]
    just_now = Status([], accepting=False, last_delivery=0.0)
    assert in_words(just_now) == "well\n\naccepting    NO, last event 0 s ago"


@pytest.mark.parametrize(
    ("name", "alert"),
    [
        ("memory", "RedisMemoryShort"),
        *((name, "RedisRefuses") for name in ("append-only", "accepting", "version")),
    ],
)
def test_what_is_wrong_with_redis_comes_first_and_only_faults_do(take: Take, name, alert) -> None:
    found = [Finding("eviction", "good", "fine"), Finding(name, "bad", "it is so")]
    taken = take(replace(FULL, running=[]), *found)
    assert not taken.accepting
    assert taken.problems[0] == Problem(alert, "it is so", "python -m service check")
    assert [each.alert for each in taken.problems[1:3]] == ["NoWorker", "NoPeriodic"]
    vouched = take(WELL, replace(found[1], vouched=True))
    assert (vouched.accepting, vouched.problems) == (True, [])


@pytest.mark.parametrize(
    ("limit", "room", "accepting"), [(None, 4, True), (None, 3, False), (4, 3, True), (3, 4, False)]
)
def test_deliveries_are_accepted_up_to_the_limit_that_is_set_or_else_fits(
    take: Take, limit, room, accepting
) -> None:
    taken = take(replace(WELL, room=room), inbox_limit=limit)
    assert taken.accepting == accepting
    (problem,) = taken.problems if not accepting else [None]
    assert accepting or problem.text.endswith("3 events are pending")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")),
        *((172_799, "48 h"), (172_800, "2 d"), (864_000, "10 d")),
    ],
)
def test_a_time_is_told_in_the_largest_unit_of_which_there_are_two(seconds, words) -> None:
    assert in_time(seconds) == words

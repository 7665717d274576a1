"""`service.status`: each state of things has its problem, by the name of its alert."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from service.processes import Process, Seen
from service.settings import Settings
from service.signature import Secret
from service.status import Problem, Status, in_words, problems_of
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


def test_what_ends_a_wait_is_said() -> None:
    (paused,) = problems(paused=("by ann", 50.0))
    assert "events resume" in paused.cure
    (missing,) = problems(waits={"stripe: missing 404 resource_missing": 2})
    assert "STRIPE_API_KEY" in missing.cure


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
        ({}, []),
    ],
)
def test_a_secret_that_no_delivery_is_signed_with(used, said) -> None:
    settings = Settings(stripe_webhook_secret=(Secret("new", b"x"), Secret("old", b"y")))
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

"""The tables of failures: that they are whole, and that the page shows them."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from service.receiver import _HINTS
from service.settings import Settings
from tests.failure_table import PAGE, render
from workers.failures import KEYS, RULES, Call, FailureKind, StripeFailure, alarm


def test_every_call_has_a_rule_for_every_kind() -> None:
    kinds = set(get_args(FailureKind))
    assert set(RULES) == set(get_args(Call))
    for call, rules in RULES.items():
        # Only a session can be older than its event.
        assert set(rules) == (kinds if call == "session" else kinds - {"stale"})


def test_whoever_is_given_up_is_told_why_in_words() -> None:
    for rules in RULES.values():
        for rule in rules.values():
            assert rule.then or rule.lasts == float("inf")
            assert "|" not in rule.then


def test_what_people_are_told_spells_names_as_they_can_be_found() -> None:
    told = {rule.then for rules in RULES.values() for rule in rules.values()} | set(_HINTS.values())
    names = {*(each.upper() for each in Settings.model_fields), "Stripe", "Redis", "Procfile"}
    for words in told:
        for name in names:
            for found in re.findall(rf"(?i)\b{name}\b", words):
                assert found == name, words


def test_the_page_shows_what_the_code_reads() -> None:
    assert render() in PAGE.read_text(), "run `python -m tests.failure_table`"


DASHBOARD = "which the request's log in Stripe's Dashboard names: give it"
# (the call, what failed): the hint
HINTS: dict[tuple[Call, FailureKind], str] = {
    ("session", "key"): "STRIPE_API_KEY is revoked, expired or mistyped: put a valid one",
    ("sensitive", "key"): "STRIPE_RESTRICTED_KEY is revoked, expired or mistyped: put a valid one",
    ("session", "forbidden"): f"STRIPE_API_KEY lacks the right, {DASHBOARD}",
    ("thin event", "forbidden"): f"STRIPE_API_KEY lacks the right, {DASHBOARD}",
    ("sensitive", "forbidden"): f"STRIPE_RESTRICTED_KEY lacks the right, {DASHBOARD}",
    ("list", "forbidden"): f"STRIPE_API_KEY lacks read access to Events, {DASHBOARD}",
}


@pytest.mark.parametrize(("call", "kind"), HINTS)
def test_an_alarm_says_which_key_lacks_what_and_of_whom(call, kind, said) -> None:
    failure = StripeFailure(kind, status=403, code="x", request_id="req_1", call=call)
    alarm(failure, ["p.a", "p.b"], account="acct_1")
    (line,) = said()
    assert line.pop("hint").startswith(HINTS[call, kind])
    assert line == {
        "event": "stripe_refuses_our_key",
        "level": "error",
        "key_name": KEYS[call],
        "call": call,
        "handler": "p.a, p.b",
        "account": "acct_1",
        "status": 403,
        "code": "x",
        "request_id": "req_1",
    }

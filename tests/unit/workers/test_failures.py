"""The tables of failures: that they are whole, and that the page shows them."""

from __future__ import annotations

import re
from typing import get_args

from service.receiver import _HINTS
from service.settings import Settings
from tests.failure_table import PAGE, render
from workers.failures import RULES, Call, FailureKind


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

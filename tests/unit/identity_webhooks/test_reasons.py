"""`identity_webhooks.reasons`: what people are told."""

from __future__ import annotations

import pytest

from identity_webhooks import NEUTRAL, REASONS, SENTENCES, sentence_for
from identity_webhooks.testing import verification


def test_every_reason_has_a_sentence_and_nothing_else_has() -> None:
    assert SENTENCES.keys() == set(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_it_invites_to_try_again_where_that_may_help(reason) -> None:
    words = ("again", "another", "valid", "continue", "new one", "use one")
    invites = any(word in SENTENCES[reason] for word in words)
    assert invites == verification(reason).outcome.user_can_retry


@pytest.mark.parametrize("reason", ["a_code_of_tomorrow", "", None])
def test_an_unknown_reason_gets_a_neutral_one(reason) -> None:
    assert sentence_for(reason) == NEUTRAL


def test_a_translation_is_a_mapping() -> None:
    german = {"document_expired": "Ihr Ausweis ist abgelaufen."}
    assert sentence_for("document_expired", german, "Bitte erneut.") == german["document_expired"]
    assert sentence_for("abandoned", german, "Bitte erneut.") == "Bitte erneut."

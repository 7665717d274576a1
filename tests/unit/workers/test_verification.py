"""`workers.verification`: the superseded rule, and what is masked."""

from __future__ import annotations

from datetime import date
from typing import get_args

import pytest
from stripe.identity import VerificationSession

from identity_webhooks.event import KINDS
from identity_webhooks.verification import Outcome, OutcomeKind, Sensitive
from workers.verification import Facts, freshness, personal_values, without_placeholders

# Rows: what the event tells. Columns: where the session stands now.
TABLE = """
                created    processing needs_input verified   canceled
created         current    superseded superseded  superseded superseded
processing      stale      current    superseded  superseded superseded
requires_input  current    stale      current     stale      superseded
verified        stale      stale      stale       current    superseded
canceled        stale      stale      stale       superseded current
redacted        stale      stale      stale       stale      stale
"""
HEAD, *ROWS = (line.split() for line in TABLE.strip().split("\n"))
CELLS = [
    (row[0], now, expected) for row in ROWS for now, expected in zip(HEAD, row[1:], strict=True)
]


class TestFreshness:
    def test_the_table_is_whole(self) -> None:
        # A session has a status, and beside that is redacted or not.
        statuses = set(get_args(OutcomeKind)) - {"redacted"}
        assert {(event, now) for event, now, _ in CELLS} == {
            (event, now) for event in KINDS for now in statuses
        }

    @pytest.mark.parametrize(("event", "now", "expected"), CELLS)
    def test_each_cell(self, event, now, expected) -> None:
        assert freshness(event, now) == expected

    @pytest.mark.parametrize(("event", "now", "expected"), CELLS)
    def test_redaction_makes_redacted_events_current_and_changes_no_other(
        self, event, now, expected
    ) -> None:
        shown = freshness(event, now, redacted=True)
        assert shown == ("current" if event == "redacted" else expected)


class TestWithoutPlaceholders:
    def test_what_stripe_puts_where_data_was(self) -> None:
        redacted = {
            "id": "vs_1",
            "metadata": {},
            "verified_outputs": {
                "first_name": "[redacted]",
                "dob": {"year": 1, "month": 1, "day": 1},
                "address": {"line1": "[redacted]", "country": "US"},
                "id_number": None,
            },
            "last_verification_report": {"document": {"files": ["[redacted]"], "type": "id_card"}},
        }
        assert without_placeholders(redacted) == {
            "id": "vs_1",
            "metadata": {},
            "verified_outputs": {
                "first_name": None,
                "dob": None,
                "address": {"line1": None, "country": "US"},
                "id_number": None,
            },
            "last_verification_report": {"document": {"files": [], "type": "id_card"}},
        }


REPORT = {
    "id": "vr_1",
    "type": "document",
    "document": {
        "status": "verified",
        "type": "passport",
        "issuing_country": "Atlantis",
        "first_name": "Jenny",
        "address": {"line1": "1 Main St", "line2": None, "city": "Springfield", "country": "US"},
        "number": "D123",
        "dob": {"day": 17, "month": 7, "year": 1990},
        "files": ["file_1", "file_2"],
        "error": {"code": "document_expired", "reason": "The document is expired."},
    },
    "id_number": {"status": "verified", "id_number": "4321", "id_number_type": "us_ssn"},
    "email": {"status": "verified", "email": "jenny@example.com"},
    "phone": {"status": "verified", "phone": "+15555550100"},
    "selfie": {"status": "verified", "selfie": "file_9"},
}


class TestPersonalValues:
    def test_everything_personal_or_secret_and_no_word_of_stripes(self) -> None:
        found = personal_values(
            {
                "id": "vs_1",
                "status": "verified",
                "client_secret": "vs_1_secret_x",
                "url": "https://verify.stripe.com/start/x",
                "provided_details": {"email": "given@example.com", "phone": None},
                "metadata": {"user_id": "42"},
                "verified_outputs": {
                    "first_name": "Jenny",
                    "last_name": "Rosen",
                    "id_number_type": "us_ssn",
                    "dob": {"day": 7, "month": 7, "year": 1990},
                },
                "last_verification_report": REPORT,
            }
        )
        assert found == {
            *("vs_1_secret_x", "https://verify.stripe.com/start/x", "given@example.com"),
            *("Jenny", "Rosen", "1990-07-07", "1990-07-17", "1 Main St", "Springfield", "D123"),
            *("4321", "jenny@example.com", "+15555550100", "file_1", "file_2", "Atlantis"),
        }

    def test_a_report_that_is_only_an_id_holds_nothing(self) -> None:
        assert personal_values({"last_verification_report": "vr_1"}) == set()

    def test_a_date_with_gaps_is_none(self) -> None:
        outputs = {"dob": {"day": None, "month": 7, "year": 1990}}
        assert personal_values({"verified_outputs": outputs}) == set()

    def test_facts_add_the_sensitive_fields_that_have_a_value(self) -> None:
        facts = Facts(
            VerificationSession.construct_from(
                {"verified_outputs": {"first_name": "Jenny"}}, "sk_test_x"
            ),
            None,
            Outcome("verified"),
            superseded=False,
            sensitive=Sensitive({"dob": date(1990, 7, 17), "sex": None, "id_number": "1234"}),
        )
        assert facts.personal_values() == {"Jenny", "1990-07-17", "1234"}

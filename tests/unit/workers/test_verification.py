"""`workers.verification`: the superseded rule, and what is masked."""

from __future__ import annotations

from datetime import date
from typing import get_args

import pytest
from stripe.identity import VerificationSession

from identity_webhooks.event import KINDS
from identity_webhooks.verification import Outcome, OutcomeKind, Sensitive
from workers.verification import Facts, personal_values, standing

# Rows: what the event tells. Columns: where the session stands now.
TABLE = """
                created    processing needs_input verified   canceled   redacted
created         current    superseded superseded  superseded superseded superseded
processing      stale      current    superseded  superseded superseded superseded
requires_input  stale      superseded current     superseded superseded superseded
verified        stale      stale      stale       current    superseded superseded
canceled        stale      stale      stale       superseded current    superseded
redacted        stale      stale      stale       stale      stale      current
"""
HEAD, *ROWS = (line.split() for line in TABLE.strip().split("\n"))
CELLS = [
    (row[0], now, expected) for row in ROWS for now, expected in zip(HEAD, row[1:], strict=True)
]


class TestStanding:
    def test_the_table_is_whole(self) -> None:
        assert {(event, now) for event, now, _ in CELLS} == {
            (event, now) for event in KINDS for now in get_args(OutcomeKind)
        }

    @pytest.mark.parametrize(("event", "now", "expected"), CELLS)
    def test_each_cell(self, event, now, expected) -> None:
        assert standing(event, now) == expected


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
        facts.sensitive = None
        assert facts.personal_values() == {"Jenny"}

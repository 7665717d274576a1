"""`workers.verification`: the outcome in a word, the superseded rule, what is kept from view."""

from __future__ import annotations

import copy
from datetime import date
from typing import Any, get_args

import pytest
import structlog
from stripe.identity import VerificationSession

from service.event import KINDS, Event
from workers.verification import (
    SENSITIVE,
    Facts,
    Outcome,
    OutcomeKind,
    Sensitive,
    Verification,
    personal_values,
    standing,
)

# Every code of the API's schema (2026-10-28.endive).
CODES = (
    *("abandoned", "consent_declined", "country_not_supported", "device_not_supported"),
    *("document_expired", "document_type_not_supported", "document_unverified_other"),
    *("email_unverified_other", "email_verification_declined"),
    *("id_number_insufficient_document_data", "id_number_mismatch", "id_number_unverified_other"),
    *("phone_unverified_other", "phone_verification_declined"),
    *("selfie_document_missing_photo", "selfie_face_mismatch", "selfie_manipulated"),
    *("selfie_unverified_other", "under_supported_age"),
)
FINAL = {"under_supported_age", "country_not_supported"}


def session(**fields: Any) -> VerificationSession:
    """Return a session as the SDK makes it from an answer; what Stripe requires is there."""
    required = {
        "id": "vs_1",
        "object": "identity.verification_session",
        "created": 1_790_000_000,
        "livemode": False,
        "metadata": {},
        "status": "requires_input",
    }
    return VerificationSession.construct_from(required | fields, "sk_test_x")


NO_ERROR = [{"last_error": None}, {}, {"last_error": {"code": None, "reason": None}}]
ERRORS = [{"last_error": {"code": code, "reason": "Stripe's sentence."}} for code in CODES]


class TestOutcome:
    @pytest.mark.parametrize("error", NO_ERROR, ids=repr)
    def test_before_the_first_attempt(self, error) -> None:
        assert Outcome.of(session(**error)) == Outcome("created", None, user_can_retry=True)

    @pytest.mark.parametrize("code", CODES)
    def test_after_a_failed_attempt_the_code_is_the_reason(self, code) -> None:
        failed = session(last_error={"code": code, "reason": "Stripe's sentence."})
        expected = Outcome("needs_input", code, user_can_retry=code not in FINAL)
        assert Outcome.of(failed) == expected

    @pytest.mark.parametrize("error", NO_ERROR + ERRORS[:3], ids=repr)
    @pytest.mark.parametrize("status", ["processing", "verified", "canceled"])
    def test_any_other_status_is_the_outcome_whatever_failed_before(self, status, error) -> None:
        assert Outcome.of(session(status=status, **error)) == Outcome(status)

    def test_a_status_that_stripe_adds_is_not_final(self) -> None:
        assert Outcome.of(session(status="under_review")) == Outcome("processing")

    @pytest.mark.parametrize("error", NO_ERROR + ERRORS[:3], ids=repr)
    @pytest.mark.parametrize("status", ["requires_input", "processing", "verified", "canceled"])
    @pytest.mark.parametrize("redaction", ["redacted", "validated"])
    def test_redacted_goes_before_everything(self, redaction, status, error) -> None:
        found = Outcome.of(session(status=status, redaction={"status": redaction}, **error))
        assert found == Outcome("redacted")

    @pytest.mark.parametrize("error", NO_ERROR + ERRORS, ids=repr)
    @pytest.mark.parametrize("status", ["requires_input", "processing", "verified", "canceled"])
    @pytest.mark.parametrize("redaction", [None, {"status": "processing"}], ids=repr)
    def test_a_redaction_under_way_changes_nothing(self, redaction, status, error) -> None:
        plain = session(status=status, **error)
        assert Outcome.of(session(status=status, redaction=redaction, **error)) == Outcome.of(plain)


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


class TestSensitive:
    DOB = date(1990, 7, 17)

    def test_declared_fields_are_attributes(self) -> None:
        sensitive = Sensitive({"dob": self.DOB, "sex": None})
        assert sensitive.dob == self.DOB
        assert sensitive.sex is None

    @pytest.mark.parametrize(("need", "attribute"), SENSITIVE.items())
    def test_an_undeclared_one_says_what_to_declare(self, need, attribute) -> None:
        with pytest.raises(AttributeError) as caught:
            getattr(Sensitive({}), attribute)
        assert str(caught.value) == f"{attribute} was not fetched: declare needs=['{need}']"

    def test_an_unknown_one_says_so(self) -> None:
        with pytest.raises(AttributeError, match="there is no sensitive field 'shoe_size'"):
            _ = Sensitive({}).shoe_size

    def test_repr_shows_names_only(self, canary) -> None:
        sensitive = Sensitive({"dob": self.DOB, "id_number": canary})
        assert repr(sensitive) == str(sensitive) == "<Sensitive: dob, id_number>"
        assert repr(Sensitive({})) == "<Sensitive: nothing declared>"

    def test_it_can_be_copied(self) -> None:
        sensitive = Sensitive({"dob": self.DOB})
        assert copy.deepcopy(sensitive).dob == self.DOB
        assert copy.copy(sensitive).dob == self.DOB

    def test_only_gives_what_these_needs_name(self) -> None:
        sensitive = Sensitive({"dob": self.DOB, "id_number": "1234"})
        part = sensitive.only(frozenset({"verified_outputs.dob"}))
        assert part.dob == self.DOB
        with pytest.raises(AttributeError, match="declare needs"):
            _ = part.id_number
        assert sensitive.id_number == "1234"


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
            session(verified_outputs={"first_name": "Jenny"}),
            None,
            Outcome("verified"),
            superseded=False,
            sensitive=Sensitive({"dob": date(1990, 7, 17), "sex": None, "id_number": "1234"}),
        )
        assert facts.personal_values() == {"Jenny", "1990-07-17", "1234"}
        facts.sensitive = None
        assert facts.personal_values() == {"Jenny"}


class TestVerification:
    def make(self, **fields: Any) -> Verification:
        return Verification(
            event=Event("evt_1", "verified", "snapshot", "vs_1", 1_790_000_000, livemode=False),
            session=session(**fields),
            report=None,
            outcome=Outcome("verified"),
            sensitive=Sensitive({}),
            idempotency_key="evt_1:p.handle",
            attempt=1,
            superseded=False,
            log=structlog.stdlib.get_logger(),
        )

    def test_repr_shows_no_session(self, canary) -> None:
        verification = self.make(verified_outputs={"first_name": canary})
        assert canary not in repr(verification)
        assert "evt_1" in repr(verification)

    def test_it_cannot_be_changed_for_the_next_handler(self) -> None:
        with pytest.raises(AttributeError):
            self.make().attempt = 2

    @pytest.mark.parametrize(
        ("fields", "subject"),
        [
            ({"client_reference_id": "u-1", "metadata": {"user_id": "u-2"}}, "u-1"),
            ({"client_reference_id": None, "metadata": {"user_id": "u-2"}}, "u-2"),
            ({"metadata": {"user_id": "u-2"}}, "u-2"),
            ({"client_reference_id": "", "metadata": {}}, None),
        ],
        ids=["reference", "metadata", "no reference", "neither"],
    )
    def test_the_subject(self, fields, subject) -> None:
        assert self.make(**fields).subject == subject

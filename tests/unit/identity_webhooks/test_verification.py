"""`identity_webhooks.verification`: what a handler gets, and what is kept from view."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
import yaml
from stripe.identity import VerificationSession

from identity_webhooks.event import KINDS, Event
from identity_webhooks.testing import verification
from identity_webhooks.verification import SENSITIVE, Need, Outcome, Sensitive, Verification

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

    @pytest.mark.parametrize(
        "other",
        [
            Outcome("canceled", "abandoned", user_can_retry=True),
            Outcome("needs_input", "consent_declined", user_can_retry=True),
            Outcome("needs_input", None, user_can_retry=True),
            Outcome("needs_input", "abandoned", user_can_retry=False),
            None,
            ("needs_input", "abandoned", True),
        ],
        ids=repr,
    )
    def test_outcomes_that_differ_in_anything_are_not_equal(self, other) -> None:
        outcome = Outcome("needs_input", "abandoned", user_can_retry=True)
        assert outcome != other
        assert outcome == Outcome("needs_input", "abandoned", user_can_retry=True)

    def test_a_status_that_stripe_adds_is_not_final(self) -> None:
        assert Outcome.of(session(status="under_review")) == Outcome("processing")

    @pytest.mark.parametrize("error", NO_ERROR + ERRORS[:3], ids=repr)
    @pytest.mark.parametrize("status", ["requires_input", "processing", "verified", "canceled"])
    @pytest.mark.parametrize("redaction", ["redacted", "validated"])
    def test_redaction_is_told_to_handlers_of_redacted_and_changes_no_status(
        self, redaction, status, error
    ) -> None:
        plain = session(status=status, **error)
        redacted = session(status=status, redaction={"status": redaction}, **error)
        assert Outcome.of(redacted, "redacted") == Outcome("redacted")
        for event in (None, *KINDS):
            if event != "redacted":
                assert Outcome.of(redacted, event) == Outcome.of(plain, event)

    @pytest.mark.parametrize("error", NO_ERROR, ids=repr)
    @pytest.mark.parametrize("event", KINDS)
    def test_only_its_own_event_calls_a_session_created(self, event, error) -> None:
        kind = "created" if event == "created" else "needs_input"
        assert Outcome.of(session(**error), event) == Outcome(kind, user_can_retry=True)

    @pytest.mark.parametrize("error", NO_ERROR + ERRORS, ids=repr)
    @pytest.mark.parametrize("status", ["requires_input", "processing", "verified", "canceled"])
    @pytest.mark.parametrize("redaction", [None, {"status": "processing"}], ids=repr)
    def test_a_redaction_under_way_changes_nothing(self, redaction, status, error) -> None:
        plain = session(status=status, **error)
        assert Outcome.of(session(status=status, redaction=redaction, **error)) == Outcome.of(plain)


ROOT = Path(__file__).parents[3]
STRIPES = ROOT.parent / "shared" / "reference" / "openapi" / "identity-closed.yml"
NAMES = {
    "verified_outputs": "verified_outputs",
    "last_verification_report.document": "document_part",
    "last_verification_report.id_number": "id_number_part",
}


def left_out(schemas: dict[str, Any], names: dict[str, str]) -> set[str]:
    """Return the fields that an object has and that the description does not require of it."""
    return {
        f"{path}.{field}"
        for path, name in names.items()
        for field in schemas[name]["properties"].keys() - set(schemas[name]["required"])
    }


class TestSensitive:
    DOB = date(1990, 7, 17)

    def test_declared_fields_are_attributes(self) -> None:
        sensitive = Sensitive({"dob": self.DOB, "sex": None})
        assert sensitive.dob == self.DOB
        assert sensitive.sex is None

    def test_the_type_names_every_field(self) -> None:
        assert get_args(Need) == tuple(SENSITIVE)

    def test_they_are_those_that_the_api_leaves_out_unless_they_are_expanded(self) -> None:
        document = yaml.safe_load((ROOT / "stripe_identity_sandbox" / "openapi.yaml").read_text())
        assert set(SENSITIVE) == left_out(document["components"]["schemas"], NAMES)

    @pytest.mark.skipif(not STRIPES.exists(), reason="Stripe's own description is not at hand")
    def test_and_hold_all_that_stripes_older_description_knows(self) -> None:
        schemas = yaml.safe_load(STRIPES.read_text())["components"]["schemas"]
        names = {
            "verified_outputs": "gelato_verified_outputs",
            "last_verification_report.document": "gelato_document_report",
            "last_verification_report.id_number": "gelato_id_number_report",
        }
        personal = ("dob", "id_number", "number", "expiration_date")
        found = {
            f"{path}.{field}"
            for path, schema in names.items()
            for field in schemas[schema]["properties"]
            if field in personal
        }
        assert found <= set(SENSITIVE)
        assert len(found) == 7

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

    @pytest.mark.parametrize("shown", [repr, str, "{}".format])
    def test_neither_does_that_of_a_verification_show_a_person(self, shown, canary) -> None:
        v = verification("verified", first_name=canary, dob=self.DOB, metadata={"note": canary})
        assert v.report
        assert canary in str(v.report.to_dict())
        for personal in (canary, str(self.DOB), repr(self.DOB)):
            assert personal not in shown(v)

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

    @pytest.mark.parametrize(
        ("redaction", "redacted"),
        [(None, False), ("processing", False), ("redacted", True), ("validated", True)],
    )
    def test_it_says_whether_the_data_is_gone(self, redaction, redacted) -> None:
        shown = self.make(redaction=redaction and {"status": redaction})
        assert shown.redacted is redacted
        assert self.make().redacted is False

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
            ({"metadata": {"user_id": ""}}, None),
            ({"metadata": None}, None),
        ],
        ids=["reference", "metadata", "no reference", "neither", "empty", "no metadata"],
    )
    def test_the_subject(self, fields, subject) -> None:
        assert self.make(**fields).subject == subject

    def test_metadata_is_a_mapping_that_cannot_be_changed(self) -> None:
        metadata = self.make(metadata={"user_id": "u-1", "plan": "pro"}).metadata
        assert dict(metadata) == {"user_id": "u-1", "plan": "pro"}
        assert metadata.get("none") is None
        with pytest.raises(TypeError):
            metadata["plan"] = "free"
        assert dict(self.make(metadata=None).metadata) == {}

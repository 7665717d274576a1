"""What a verification attempt finds: the outcomes there are, and the report each one leaves.

Every personal string invented here contains the marker the sandbox was started with, so that a
test can plant a word and search for it wherever personal data must not be.
"""

from typing import Any

VERIFIED = "verified"

#: Every ``last_error.code`` of the API (2026-10-28.endive) and the reason the session gives.
#: Two reasons are on record ("The document is invalid.", "The document is expired."); the others
#: are ours, in the same tone: Stripe publishes no list of them.
LAST_ERRORS = {
    "abandoned": "The user left before finishing the verification.",
    "consent_declined": "The user declined to be verified.",
    "country_not_supported": "The document's country is not supported.",
    "device_not_supported": "The user's device has no supported camera.",
    "document_expired": "The document is expired.",
    "document_type_not_supported": "The document type is not supported.",
    "document_unverified_other": "The document is invalid.",
    "email_unverified_other": "The email address could not be verified.",
    "email_verification_declined": "The user declined to verify the email address.",
    "id_number_insufficient_document_data": "The document lacks data to check the ID number.",
    "id_number_mismatch": "The ID number does not match the name and date of birth.",
    "id_number_unverified_other": "The ID number could not be verified.",
    "phone_unverified_other": "The phone number could not be verified.",
    "phone_verification_declined": "The user declined to verify the phone number.",
    "selfie_document_missing_photo": "The document has no photo of a face.",
    "selfie_face_mismatch": "The selfie does not match the photo on the document.",
    "selfie_manipulated": "The selfie was manipulated.",
    "selfie_unverified_other": "The selfie could not be verified.",
    "under_supported_age": "The user is under the supported age.",
}
OUTCOMES = (VERIFIED, *LAST_ERRORS)

#: The attempt ended before any check, so its report has no parts: a part that is unverified has an
#: error of its own (docs.stripe.com/api/identity/verification_reports/object), and these codes are
#: none of those. Whether Stripe makes a report at all then is not on record.
NOTHING_CHECKED = (
    "abandoned",
    "consent_declined",
    "country_not_supported",
    "device_not_supported",
    "under_supported_age",
)

PARTS = ("document", "id_number", "selfie", "email", "phone")
REDACTED = "[redacted]"

Json = dict[str, Any]


def failed_part(outcome: str) -> str | None:
    """Say which part of the report fails, or None where the code belongs to the whole session."""
    return next((part for part in PARTS if outcome.startswith(f"{part}_")), None)


def parts_of(session_type: str | None, options: Json, outcome: str) -> list[str]:
    """List the parts of the report: what the options ask for, and the one that failed.

    A code whose part was not asked for (a selfie error without a selfie) cannot happen at Stripe.
    It is allowed here, because a handler's author wants every code with the least set-up.
    """
    document = options.get("document") or {}
    asked = {
        "document": session_type != "id_number",
        "id_number": session_type == "id_number" or document.get("require_id_number"),
        "selfie": document.get("require_matching_selfie"),
        "email": (options.get("email") or {}).get("require_verification"),
        "phone": (options.get("phone") or {}).get("require_verification"),
    }
    return [part for part in PARTS if asked[part] or part == failed_part(outcome)]


def attempt(
    session_type: str | None,
    options: Json,
    provided: Json | None,
    outcome: str,
    *,
    marker: str,
    file_id: Any,
) -> dict[str, Json]:
    """Return the parts of the report one attempt leaves, with everything Stripe would store.

    ``file_id`` is called for the id of each image the user is said to have uploaded.
    """
    if outcome in NOTHING_CHECKED:
        return {}
    person = invent(marker, provided or {})
    found: dict[str, Json] = {}
    for part in parts_of(session_type, options, outcome):
        # Parts that come after the failed one are still reported as verified: the codes are of
        # one part each, and a report that fails in two would have no single last_error.
        failed = failed_part(outcome) == part
        error = {"code": outcome, "reason": LAST_ERRORS[outcome]} if failed else None
        status = "unverified" if failed else "verified"
        found[part] = {"status": status, "error": error} | _data(part, person, options, file_id)
    return found


def invent(marker: str, provided: Json) -> Json:
    """Make up the person who is verified; what the caller provided is kept as it is."""

    def tagged(text: str) -> str:
        return f"{text} {marker}" if marker else text

    mark = marker or "0000"
    return {
        "first_name": tagged("Jenny"),
        "last_name": tagged("Rosen"),
        "address": {
            "line1": tagged("1234 Main St."),
            "line2": tagged("Apt 5") if marker else None,
            "city": tagged("San Francisco"),
            "state": tagged("CA"),
            "postal_code": tagged("94111"),
            "country": "US",
        },
        "dob": {"day": 17, "month": 7, "year": 1990},
        "number": tagged("D1234567"),
        # Of a US social security number Stripe keeps the last four digits only.
        "id_number": mark,
        "sex": "female",
        "unparsed_sex": tagged("F"),
        "unparsed_place_of_birth": tagged("Springfield, Illinois, USA"),
        "email": provided.get("email") or f"jenny.{marker or 'rosen'}@example.com",
        "phone": provided.get("phone") or tagged("+15555550100"),
    }


DOCUMENT_PERSONAL = (
    "first_name",
    "last_name",
    "address",
    "dob",
    "number",
    "sex",
    "unparsed_place_of_birth",
    "unparsed_sex",
)
ID_NUMBER_PERSONAL = ("first_name", "last_name", "dob", "id_number")


def _data(part: str, person: Json, options: Json, file_id: Any) -> Json:
    match part:
        case "document":
            allowed = (options.get("document") or {}).get("allowed_types")
            return {name: person[name] for name in DOCUMENT_PERSONAL} | {
                "type": allowed[0] if allowed else "driving_license",
                "issuing_country": "US",
                "issued_date": {"day": 1, "month": 5, "year": 2020},
                "expiration_date": {"day": 1, "month": 12, "year": 2035},
                "files": [file_id(), file_id()],
            }
        case "id_number":
            return {name: person[name] for name in ID_NUMBER_PERSONAL} | {
                "id_number_type": "us_ssn"
            }
        case "selfie":
            return {"document": file_id(), "selfie": file_id()}
        case _:
            return {part: person[part]}


def redact_part(part: Json) -> Json:
    """Put Stripe's placeholders where personal data was; what was null stays null.

    On record: names, address and ``dob``, with the country kept. By analogy: numbers, the other
    dates, e-mail, phone, sex, and that file ids are kept while the files' content is gone.
    """
    return {name: _placeholder(name, value) for name, value in part.items()}


def _placeholder(name: str, value: Any) -> Any:
    if value is None or name in KEPT:
        return value
    if name == "address":
        return {key: kept if key == "country" else _mask(kept) for key, kept in value.items()}
    if name == "dob" or name.endswith("_date"):
        return {"day": 1, "month": 1, "year": 1}
    return _mask(value)


def _mask(value: Any) -> str | None:
    return None if value is None else REDACTED


KEPT = (
    "status",
    "error",
    "type",
    "issuing_country",
    "id_number_type",
    "files",
    "document",
    "selfie",
)

"""Make a `Verification` as a worker would, from sessions and reports shaped as Stripe's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, cast, get_args

import structlog

from identity_webhooks.event import KINDS, Event, Kind
from identity_webhooks.reasons import REASONS
from identity_webhooks.verification import (
    SENSITIVE,
    Outcome,
    OutcomeKind,
    Sensitive,
    Verification,
)

if TYPE_CHECKING:
    from stripe.identity import VerificationReport, VerificationSession

SESSION, REPORT, EVENT = "vs_1TestSession", "vr_1TestReport", "evt_1TestEvent"
CREATED = 1_790_000_000
"""Unix seconds, 2026-09-21."""


_PARTS = ("document", "id_number", "selfie", "email", "phone")


def verification(  # noqa: PLR0913 (each may be said by its name)
    outcome: OutcomeKind | str = "verified",
    *,
    reference: str | None = "user-1",
    metadata: Mapping[str, str] | None = None,
    first_name: str = "Jenny",
    last_name: str = "Rosen",
    attempt: int = 1,
    last_attempt: bool = False,
    superseded: bool = False,
    account: str | None = None,
    kind: Kind | None = None,
    key: str | None = None,
    order: int = 0,
    **sensitive: date | str | None,
) -> Verification:
    """Return what a handler would get.

    Args:
        outcome: where the session stands: a word of `Outcome.kind`, or the code of a failed attempt
            (`document_expired`; an unknown one, too), which stands for `needs_input`.
        reference: the session's `client_reference_id`.
        metadata: of the session.
        first_name, last_name: in `verified_outputs` and the report.
        attempt, last_attempt, superseded: as in `Verification`.
        account: the connected account, `acct_...`.
        kind: of the event; by default the one that tells of this outcome.
        key: the idempotency key; by default one of this event.
        order: as in `Verification`.
        sensitive: fields of `Verification.sensitive`, such as `dob=date(1990, 7, 17)`. `run` shows
            a handler those that it declares in `needs=`.

    Raises:
        TypeError: there is no such sensitive field or kind of event, or the outcome is nearly a
            word of `Outcome.kind`.
    """
    words = get_args(OutcomeKind)
    # Any other word is a reason that Stripe may have by now.
    meant = "needs_input" if outcome == "requires_input" else _nearly(outcome, words)
    if meant and outcome not in words:
        raise TypeError(f"no outcome {outcome!r}: perhaps {meant!r}; or write a reason")
    if kind is not None and kind not in KINDS:
        raise TypeError(f"no kind of event {kind!r}: {', '.join(KINDS)}")
    if unknown := set(sensitive) - set(SENSITIVE.values()):
        raise TypeError(f"no sensitive field {min(unknown)!r}: {', '.join(SENSITIVE.values())}")
    reason = None if outcome in words else outcome
    if outcome == "needs_input":
        reason = "document_expired"
    word = cast("OutcomeKind", "needs_input" if reason else outcome)
    names: dict[str, str | None] = {"first_name": first_name, "last_name": last_name}
    if word == "redacted":  # what was personal is None
        names = dict.fromkeys(names)
    report = _report(word, reason, reference, names)
    session = _session(word, reason, reference, dict(metadata or {}), names, report)
    told: Kind = "requires_input" if word == "needs_input" else word
    event = Event(
        EVENT, kind or told, "snapshot", SESSION, CREATED, livemode=False, account=account
    )
    return Verification(
        event=event,
        session=session,
        report=report,
        outcome=Outcome.of(session, event.kind),
        sensitive=Sensitive(sensitive),
        idempotency_key=key or f"{event.key}:test.handler",
        attempt=attempt,
        superseded=superseded,
        log=structlog.stdlib.get_logger("handler"),
        last_attempt=last_attempt,
        order=order,
    )


def _nearly(word: str, words: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.8)), "")


def _session(
    word: OutcomeKind,
    reason: str | None,
    reference: str | None,
    metadata: dict[str, str],
    names: dict[str, str | None],
    report: VerificationReport | None,
) -> VerificationSession:
    from stripe.identity import VerificationSession  # noqa: PLC0415 (slow, and only for tests)

    open_, redacted = word in {"created", "needs_input"}, word == "redacted"
    status = {"created": "requires_input", "needs_input": "requires_input", "redacted": "verified"}
    fields: dict[str, Any] = {
        "id": SESSION,
        "object": "identity.verification_session",
        "client_reference_id": reference,
        "client_secret": f"{SESSION}_secret_test_1" if open_ else None,
        "created": CREATED,
        "last_error": _error(reason),
        "last_verification_report": report.to_dict() if report else None,
        "livemode": False,
        "metadata": {} if redacted else metadata,
        "options": {_type_of(reason): {}},
        "redaction": {"status": "redacted"} if redacted else None,
        "related_customer": None,
        "related_customer_account": None,
        "status": status.get(word, word),
        "type": _type_of(reason),
        "url": "https://verify.stripe.com/start/test_1" if open_ else None,
        "verified_outputs": None,
    }
    if word in {"verified", "redacted"}:
        fields["verified_outputs"] = {
            "address": _address(redacted),
            "email": None,
            "id_number_type": None,
            "phone": None,
            **names,
        }
    return VerificationSession.construct_from(fields, None)


def _report(
    word: OutcomeKind, reason: str | None, reference: str | None, names: dict[str, str | None]
) -> VerificationReport | None:
    if word not in {"verified", "needs_input", "redacted"}:
        return None
    from stripe.identity import VerificationReport  # noqa: PLC0415

    kind = _type_of(reason)
    failed = next((part for part in _PARTS if (reason or "").startswith(f"{part}_")), None)
    fields: dict[str, Any] = {
        "id": REPORT,
        "object": "identity.verification_report",
        "client_reference_id": reference,
        "created": CREATED,
        "livemode": False,
        "options": {kind: {}},
        "type": kind,
        "verification_session": SESSION,
    }
    # Parts that were not checked are absent: all of them where the failure is of none.
    parts = {kind} if failed or reason is None else set[str]()
    for part in parts | ({failed} if failed else set()):
        status = "unverified" if part == failed else "verified"
        error = _error(reason) if part == failed else None
        data = _data(part, names, word == "redacted")
        fields[part] = {"status": status, "error": error, **data}
    return VerificationReport.construct_from(fields, None)


def _type_of(reason: str | None) -> str:
    return "id_number" if reason and reason.startswith("id_number") else "document"


def _error(reason: str | None) -> dict[str, str] | None:
    text = "A sentence of Stripe's." if reason in REASONS else "A sentence about a newer code."
    return {"code": reason, "reason": text} if reason else None


def _address(redacted: bool) -> dict[str, str | None]:
    lines = {"line1": "1234 Main St.", "city": "San Francisco", "state": "CA"}
    lines |= {"postal_code": "94111"}
    shown = {name: None if redacted else line for name, line in lines.items()}
    return {**shown, "line2": None, "country": "US"}


def _data(part: str, names: dict[str, str | None], redacted: bool) -> dict[str, Any]:
    """Return the fields of a part of a report, but its status and error."""
    match part:
        case "document":
            return {
                **names,
                "address": _address(redacted),
                "type": "driving_license",
                "issuing_country": "US",
                "issued_date": None if redacted else {"day": 1, "month": 5, "year": 2020},
                "files": ["file_1Front", "file_1Back"],
            }
        case "selfie":
            return {"document": "file_1Front", "selfie": "file_1Selfie"}
        case "id_number":
            return {**names, "id_number_type": "us_ssn"}
        case "email":
            return {"email": "jenny@example.com"}
        case _:
            return {"phone": "+15550100"}

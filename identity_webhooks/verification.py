"""What a handler gets: the event, and what Stripe says of the session now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from structlog.stdlib import BoundLogger

from identity_webhooks.event import Event

if TYPE_CHECKING:
    from stripe.identity import VerificationReport, VerificationSession

OutcomeKind = Literal["created", "processing", "needs_input", "verified", "canceled", "redacted"]

Need = Literal[
    "verified_outputs.dob",
    "verified_outputs.id_number",
    "verified_outputs.sex",
    "last_verification_report.document.number",
    "last_verification_report.document.dob",
    "last_verification_report.document.expiration_date",
]
"""What `needs=` may name."""

SENSITIVE: dict[str, str] = {
    "verified_outputs.dob": "dob",
    "verified_outputs.id_number": "id_number",
    "verified_outputs.sex": "sex",
    "last_verification_report.document.number": "document_number",
    "last_verification_report.document.dob": "document_dob",
    "last_verification_report.document.expiration_date": "document_expiration_date",
}
"""Each `Need`, and the attribute of `Verification.sensitive` it becomes. Stripe shows
these only to a restricted key, each expanded by name
(https://docs.stripe.com/identity/access-verification-results)."""

# Codes that another attempt of the same user will not cure. [inferred from the descriptions in
# https://docs.stripe.com/identity/handle-verification-outcomes]
_FINAL_CODES = frozenset({"under_supported_age", "country_not_supported"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the session stands now, in a word.

    Attributes:
        kind: `created`, `processing`, `needs_input`, `verified`, `canceled`, `redacted`.
        reason: for `needs_input`, the code of `last_error`, such as `document_expired`.
        user_can_retry: whether another attempt of the same user may succeed.
    """

    kind: OutcomeKind
    reason: str | None = None
    user_can_retry: bool = False

    @classmethod
    def of(cls, session: VerificationSession) -> Outcome:
        """Read it off a session."""
        # Stripe's schema requires neither `redaction` nor `last_error` to be there.
        redaction = getattr(session, "redaction", None)
        # Redaction takes up to four days; only then are the data gone. Its third status,
        # `validated`, is undocumented, and taken for one that comes after.
        if redaction is not None and redaction.status != "processing":
            return cls("redacted")
        if session.status != "requires_input":
            kinds: dict[str, OutcomeKind] = {"verified": "verified", "canceled": "canceled"}
            # Stripe may add statuses; one we do not know is not final.
            return cls(kinds.get(session.status, "processing"))
        # The first and the failed status have one name; `last_error` tells them apart.
        error = getattr(session, "last_error", None)
        if error is None or not error.code:
            return cls("created", user_can_retry=True)
        return cls("needs_input", error.code, user_can_retry=error.code not in _FINAL_CODES)


class Sensitive:
    """The sensitive fields that a handler declared in `needs=`; others raise AttributeError.

    `repr` shows names only. Dates are `datetime.date`, or None where Stripe has none.
    """

    if TYPE_CHECKING:
        dob: date | None
        id_number: str | None
        sex: str | None
        document_number: str | None
        document_dob: date | None
        document_expiration_date: date | None

    else:

        def __getattr__(self, name: str) -> Any:
            # Not `self._values`, which an instance that is being copied does not have yet.
            values = object.__getattribute__(self, "_values")
            if name in values:
                return values[name]
            for need, attribute in SENSITIVE.items():
                if attribute == name:
                    raise AttributeError(f"{name} was not fetched: declare needs=[{need!r}]")
            raise AttributeError(f"there is no sensitive field {name!r}")

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"<Sensitive: {', '.join(self._values) or 'nothing declared'}>"

    def values(self) -> list[Any]:
        """Return the values themselves, for masking."""
        return list(self._values.values())

    def only(self, needs: frozenset[str]) -> Sensitive:
        """Return the part that these needs name."""
        names = {SENSITIVE[need] for need in needs}
        return Sensitive({name: v for name, v in self._values.items() if name in names})


@dataclass(frozen=True, slots=True)
class Verification:
    """One event, as a handler sees it. `repr` shows no personal data.

    Attributes:
        event: what happened: id, kind, session id, account, time.
        session: the session as it is *now*, with `verified_outputs` where there are any.
        report: the last report, if there was an attempt.
        outcome: where the session stands now, in a word.
        sensitive: the fields declared in `needs=`.
        idempotency_key: the same for every run of this handler for this event: commit it together
            with the effect, and the effect happens once.
        attempt: 1 for the first run.
        superseded: a later state has overtaken the event (only with `superseded=True`).
        log: a logger bound to event and handler.
    """

    event: Event
    session: VerificationSession = field(repr=False)
    report: VerificationReport | None = field(repr=False)
    outcome: Outcome
    sensitive: Sensitive
    idempotency_key: str
    attempt: int
    superseded: bool
    log: BoundLogger = field(repr=False)

    @property
    def subject(self) -> str | None:
        """Whom it concerns, in your words: `client_reference_id`, else `metadata.user_id`.

        Redaction empties the metadata; `client_reference_id` is the safer place.
        """
        reference = getattr(self.session, "client_reference_id", None)
        return reference or self.session.metadata.to_dict().get("user_id")

"""The fetched session of an event: its outcome, its freshness, and its personal values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from identity_webhooks.event import Kind
from identity_webhooks.verification import Outcome, OutcomeKind, Sensitive

if TYPE_CHECKING:
    from stripe import StripeObject
    from stripe.identity import VerificationReport, VerificationSession

    from workers.failures import Verdict
    from workers.router import Handler

Copied = TypeVar("Copied", bound="StripeObject")

_OUTCOME_OF_EVENT: dict[Kind, OutcomeKind] = {
    "created": "created",
    "processing": "processing",
    "requires_input": "needs_input",
    "verified": "verified",
    "canceled": "canceled",
    "redacted": "redacted",
}

_EVENT_OF_OUTCOME = {outcome: kind for kind, outcome in _OUTCOME_OF_EVENT.items()}

# How a session may have looked just before each event. Where the same look may also come after it,
# and usually does, it is not in here: `processing` is followed by `requires_input` within seconds.
_LOOKS_BEFORE: dict[Kind, frozenset[OutcomeKind]] = {
    "created": frozenset(),
    "processing": frozenset({"created"}),
    # Verified, too: a person can set a session back in the Dashboard
    # (https://docs.stripe.com/identity/review-tools).
    "requires_input": frozenset({"processing", "verified"}),
    "verified": frozenset({"created", "processing", "needs_input"}),
    "canceled": frozenset({"created", "processing", "needs_input"}),
}

Freshness = Literal["current", "superseded", "stale"]


def freshness(event: Kind, now: OutcomeKind, *, redacted: bool = False) -> Freshness:
    """Say how an event relates to where its session stands now.

    `current`: it still holds. `superseded`: a later state has overtaken it. `stale`: the session
    looks as it may have looked *before* the event, so that the read may have been too early. It
    may as well have gone back since, so that a read is repeated for a short while only.

    Args:
        event: what the event tells.
        now: the outcome of the session, read without regard to the event.
        redacted: whether the session is redacted, which changes no status.
    """
    if event == "redacted":
        return "current" if redacted else "stale"
    # Without `last_error`, requires_input looks like created: the event knows better.
    knows_better = event == "requires_input" and now == "created"
    if knows_better or _OUTCOME_OF_EVENT[event] == now:
        return "current"
    return "stale" if now in _LOOKS_BEFORE[event] else "superseded"


def event_kind(outcome: OutcomeKind) -> Kind:
    """Return the kind of event that tells of this outcome."""
    return _EVENT_OF_OUTCOME[outcome]


@dataclass(slots=True)
class Facts:
    """What Stripe answered about the session of an event: fetched once, for all its handlers.

    Attributes:
        session: as it is now, its report expanded; None in place of what was redacted.
        report: the last report, if there was an attempt.
        outcome: where the session stands now, in a word.
        superseded: whether a later state has overtaken the event.
        sensitive: what handlers asked for with `needs=`.
        withheld: by the name of a handler that does not get what it needs, what that means for it.
    """

    session: VerificationSession = field(repr=False)
    report: VerificationReport | None = field(repr=False)
    outcome: Outcome
    superseded: bool
    sensitive: Sensitive = field(default_factory=lambda: Sensitive({}))
    withheld: dict[str, Verdict] = field(default_factory=dict)

    @property
    def outcome_and_reason(self) -> tuple[str, str]:
        """Outcome and reason, in the words that handlers were told, for the record."""
        kind, reason = self.outcome.kind, self.outcome.reason or ""
        return ("superseded", "") if self.superseded else (kind, reason)

    def skips(self, handler: Handler) -> Literal["superseded", "skipped"] | None:
        """Say why this handler need not run for the event, if so."""
        if self.superseded and not handler.superseded:
            return "superseded"
        if handler.reasons and self.outcome.reason not in handler.reasons:
            return "skipped"
        return None

    def copy(self) -> Facts:
        """Return the same with a session and a report of its own, for a handler to change."""
        report = _copy(self.report) if self.report else None
        return replace(self, session=_copy(self.session), report=report)

    def personal_values(self) -> set[str]:
        """Return every personal or secret text in it, to be masked in logs and reasons."""
        shown = personal_values(self.session.to_dict())
        return shown | {str(value) for value in self.sensitive.values() if value}


def without_placeholders(value: Any) -> Any:
    """Return a redacted object with None in place of what Stripe puts where data was.

    That is "[redacted]", and the first day of the year 1
    (https://docs.stripe.com/identity/verification-sessions#redact).
    """
    if isinstance(value, dict):
        if value == {"year": 1, "month": 1, "day": 1}:
            return None
        return {name: without_placeholders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [each for each in map(without_placeholders, value) if each is not None]
    return None if value == "[redacted]" else value


def _copy(copied: Copied) -> Copied:
    # Not `copy.deepcopy`, which makes a plain StripeObject of it.
    return type(copied).construct_from(copied.to_dict(), None)


def personal_values(session: dict[str, Any]) -> set[str]:
    """Return every personal or secret text in a session (report expanded), to be masked in logs."""
    found: set[str] = set()
    for name in ("verified_outputs", "provided_details", "client_secret", "url"):
        found.update(_texts(session.get(name)))
    report = session.get("last_verification_report")
    if isinstance(report, dict):
        for name in ("document", "id_number", "email", "phone"):
            found.update(_texts(report.get(name)))
    return found


# Stripe's own words, not personal data: masking them would make logs useless.
_NOT_PERSONAL = frozenset({"status", "type", "id_number_type", "code", "reason", "country"})


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        if {"year", "month", "day"} <= value.keys() and all(value.values()):
            yield f"{value['year']:04}-{value['month']:02}-{value['day']:02}"
        for name, item in value.items():
            if name not in _NOT_PERSONAL:
                yield from _texts(item)

"""What Stripe said of an event's session: where it stands now, and what in it is personal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from identity_webhooks.event import Kind
from identity_webhooks.verification import Outcome, OutcomeKind, Sensitive

if TYPE_CHECKING:
    from stripe.identity import VerificationReport, VerificationSession

_OUTCOME_OF_EVENT: dict[Kind, OutcomeKind] = {
    "created": "created",
    "processing": "processing",
    "requires_input": "needs_input",
    "verified": "verified",
    "canceled": "canceled",
    "redacted": "redacted",
}

_EVENT_OF_OUTCOME = {outcome: kind for kind, outcome in _OUTCOME_OF_EVENT.items()}

# How far along a session is. Users go to and fro between the two of level 1; nothing leads back
# from a higher level to a lower one (https://docs.stripe.com/identity/how-sessions-work).
_LEVEL: dict[OutcomeKind, int] = {
    "created": 0,
    "processing": 1,
    "needs_input": 1,
    "verified": 2,
    "canceled": 2,
    "redacted": 3,
}

SENSITIVE_WINDOW = 48 * 3600
"""Seconds after which a restricted key without an IP allow-list is refused the fields of `needs=`
(https://docs.stripe.com/identity/access-verification-results)."""


def standing(event: Kind, now: OutcomeKind) -> Literal["current", "superseded", "stale"]:
    """Say how an event relates to where its session stands now.

    `superseded`: a later state has overtaken it. `stale`: the session looks as it was *before*
    the event, so the read was too early and should be repeated.
    """
    told = _OUTCOME_OF_EVENT[event]
    if told == now:
        return "current"
    return "stale" if _LEVEL[now] < _LEVEL[told] else "superseded"


def event_kind(outcome: OutcomeKind) -> Kind:
    """Return the kind of event that tells of this outcome."""
    return _EVENT_OF_OUTCOME[outcome]


@dataclass(slots=True)
class Facts:
    """What Stripe answered about the session of an event: fetched once, for all its handlers.

    `sensitive` is None when Stripe shows those fields no more (`SENSITIVE_WINDOW`).
    """

    session: VerificationSession = field(repr=False)
    report: VerificationReport | None = field(repr=False)
    outcome: Outcome
    superseded: bool
    sensitive: Sensitive | None = field(default_factory=lambda: Sensitive({}))

    def personal_values(self) -> set[str]:
        """Return every personal or secret text in it, to be masked in logs and reasons."""
        sensitive = self.sensitive.values() if self.sensitive else []
        return personal_values(self.session.to_dict()) | {str(v) for v in sensitive if v}


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


# Words of Stripe's, not of the person; masking them would only blind the log.
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

"""What a handler author imports.

from identity_webhooks import Verification, on

@on("verified", needs=["verified_outputs.dob"])
def grant_access(v: Verification) -> None:
    accounts.mark_verified(v.subject, born=v.sensitive.dob, key=v.idempotency_key)

It imports nothing of the service and of third parties only structlog, does no I/O and reads no
clock.
"""

from identity_webhooks.event import KINDS, Event, Form, Kind
from identity_webhooks.handlers import Discard, Retry, on
from identity_webhooks.verification import Need, Outcome, OutcomeKind, Sensitive, Verification

__all__ = [
    "KINDS",
    "Discard",
    "Event",
    "Form",
    "Kind",
    "Need",
    "Outcome",
    "OutcomeKind",
    "Retry",
    "Sensitive",
    "Verification",
    "on",
]

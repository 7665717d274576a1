"""Log one line per event. Also the shortest example of a handler."""

from identity_webhooks import Verification, on


@on("*", superseded=True)
def log_event(v: Verification) -> None:
    """Log which session came to which state, and why. No personal data is in it."""
    v.log.info(
        "identity_event",
        outcome=v.outcome.kind,
        reason=v.outcome.reason,
        subject=v.subject,
        state="superseded" if v.superseded else "current",
    )

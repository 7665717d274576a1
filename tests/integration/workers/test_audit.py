"""The line of the built-in handler: how each verification ends, and nothing of the person."""

from __future__ import annotations

import pytest

from workers.handlers import audit


@pytest.mark.parametrize(
    ("ending", "kind", "outcome", "reason", "state"),
    [
        ("verified", "verified", "verified", None, "current"),
        ("verified", "processing", "verified", None, "superseded"),
        ("document_expired", "requires_input", "needs_input", "document_expired", "current"),
        ("consent_declined", "requires_input", "needs_input", "consent_declined", "current"),
        (None, "created", "created", None, "current"),
    ],
)
def test_how_a_verification_ends(desk, ending, kind, outcome, reason, state) -> None:
    event = desk.accept(kind, desk.sandbox.session(ending, metadata={"user_id": "u-1"}))
    desk.settle(desk.processor(audit.log_event), event)
    (line,) = desk.logged("identity_event")
    shown = ("level", "event_id", "outcome", "reason", "subject", "state")
    assert {name: line.get(name) for name in shown} == {
        "level": "info",
        "event_id": event.id,
        "outcome": outcome,
        "reason": reason,
        "subject": "u-1",
        "state": state,
    }

"""What a session that was just read means for each kind of event."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import stripe

from identity_webhooks.event import Event, Kind
from service.inbox import Claim
from workers.failures import StripeFailure
from workers.fetching import Fetcher

NOW = 1_790_000_000_000

SESSIONS: dict[str, dict[str, Any]] = {
    "new": {"status": "requires_input", "last_error": None},
    "processing": {"status": "processing"},
    "verified": {"status": "verified"},
    "refused": {"status": "requires_input", "last_error": {"code": "document_expired"}},
    "canceled": {"status": "canceled"},
    "redacting": {"status": "verified", "redaction": {"status": "processing"}},
    "redacted": {"status": "verified", "redaction": {"status": "redacted"}},
}
"""How a session may look."""

HOLDS: dict[Kind, str] = {
    "created": "new",
    "processing": "processing",
    "requires_input": "new refused",
    "verified": "verified redacting redacted",
    "canceled": "canceled",
    "redacted": "redacted",
}
"""With which looks an event still holds."""

READ_TOO_EARLY: dict[Kind, str] = {
    "created": "",
    "processing": "new",
    "requires_input": "processing verified redacting redacted",
    "verified": "new processing refused",
    "canceled": "new processing refused",
    "redacted": "new processing verified refused canceled redacting",
}
"""How the session may have looked just before the event. With any other look a later state has
overtaken it."""


class Api:
    """Stripe, which shows one session."""

    def __init__(self, look: str) -> None:
        self._session = {"id": "vs_1", "object": "identity.verification_session", **SESSIONS[look]}

    def fetch(self, _: Event) -> tuple[Any, None]:
        session = stripe.identity.VerificationSession.construct_from(self._session, None)
        return session, None


class Counts:
    """Takes what is counted."""

    def count(self, *_: object) -> None:
        """Forget it."""


@pytest.mark.parametrize("look", SESSIONS)
@pytest.mark.parametrize("kind", get_args(Kind))
def test_it_holds_or_is_read_again_or_is_overtaken(kind: Kind, look: str) -> None:
    event = Event("evt_1", kind, "snapshot", "vs_1", NOW // 1000, livemode=False)
    claim = Claim(event, "1", {}, faults=0, lapses=0, now=NOW, since=NOW)
    none: Any = None
    parts: Any = (Api(look), none, none, Counts())
    fetcher = Fetcher(none, *parts)
    if look in READ_TOO_EARLY[kind].split():
        with pytest.raises(StripeFailure, match="stale"):
            fetcher.fetch(claim)
    else:
        assert fetcher.fetch(claim).superseded == (look not in HOLDS[kind].split())

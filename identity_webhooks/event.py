"""One event of Stripe Identity, reduced to identifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["created", "processing", "requires_input", "verified", "canceled", "redacted"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Form = Literal["snapshot", "thin"]

TYPE_PREFIX = "identity.verification_session."
"""What Stripe puts before the kind in an event's type."""


@dataclass(frozen=True, slots=True)
class Event:
    """An `identity.verification_session.*` event: its ids, and the session it is about.

    Attributes:
        id: `evt_...`.
        kind: the last word of the type, such as `verified`.
        form: how it was delivered.
        session: `vs_...`.
        created: unix seconds at which Stripe made it. Whole seconds only: not an order.
        livemode: live or test mode.
        account: the connected account it belongs to; None for one's own.
    """

    id: str
    kind: Kind
    form: Form
    session: str
    created: int
    livemode: bool
    account: str | None = None

    @property
    def key(self) -> str:
        """The key under which it is stored: the account is part of it.

        Made of `[A-Za-z0-9_-]` only, which is what RQ allows in a job id.
        """
        return f"{self.account.replace('/', '-')}-{self.id}" if self.account else self.id

    @property
    def type(self) -> str:
        """Stripe's name of the type, in the snapshot spelling whichever form it came in."""
        return TYPE_PREFIX + self.kind

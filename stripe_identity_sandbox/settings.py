"""How a sandbox behaves, and who caused a change."""

from dataclasses import dataclass
from typing import NamedTuple

from stripe_identity_sandbox import lifetimes


class Origin(NamedTuple):
    """The request that caused a change; empty when Stripe itself did."""

    request: str | None = None
    idempotency_key: str | None = None


STRIPE = Origin()
#: The key of the sandbox's own commands: faults strike the app, not whoever sets them.
COMMAND_LINE_KEY = "sk_test_sandbox_command_line"


@dataclass(frozen=True)
class Settings:
    """How a world behaves; durations in seconds."""

    #: Where hosted pages are served.
    base_url: str = "http://127.0.0.1:12111"
    #: A text all invented personal data contains.
    marker: str = ""
    #: The ``api_version`` of events.
    api_version: str = "2026-10-28.endive"
    redaction_time: float = lifetimes.REDACTION
    #: The waits between the tries of a delivery.
    retries: tuple[float, ...] = lifetimes.RETRIES["test"]

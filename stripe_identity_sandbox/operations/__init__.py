"""The operations of Stripe's API that the sandbox has. Importing a module adds its own."""

from stripe_identity_sandbox.operations import destinations, endpoints, events, reports, sessions
from stripe_identity_sandbox.operations.base import OPERATIONS

__all__ = ["OPERATIONS", "destinations", "endpoints", "events", "reports", "sessions"]

"""What tests of databases use."""

from identity_webhooks.testing.stack import stack
from tests.postgres import postgres

__all__ = ["postgres", "stack"]

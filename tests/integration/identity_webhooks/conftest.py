"""What tests of databases and of the fixture `stack` use."""

from __future__ import annotations

import pytest

from identity_webhooks.testing.stack import stack
from tests.postgres import postgres

__all__ = ["postgres", "stack"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a busy machine time: what `stack` waits for starts several processes."""
    monkeypatch.setattr("identity_webhooks.testing.stack.LIMIT", 120)

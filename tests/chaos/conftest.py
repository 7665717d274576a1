"""A sandbox for the tests of this suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.system import Sandbox
from tests.conftest import Processes
from tests.postgres import postgres

__all__ = ["postgres"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest test begin first: of several at once it would be the last to end."""
    items.sort(key=lambda item: item.path.name != "test_storm.py")


@pytest.fixture(scope="session")
def sandbox(session_processes: Processes) -> Iterator[Sandbox]:
    """A sandbox that delivers every change in both forms, to the tests' own collector."""
    sandbox = Sandbox(session_processes, ("snapshot", "thin"))
    yield sandbox
    sandbox.close()

"""A sandbox for the tests of this house."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.system import Sandbox
from tests.conftest import Processes


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "walk: too long for `make test`; `make chaos` runs it")


@pytest.fixture(scope="session")
def sandbox(session_processes: Processes) -> Iterator[Sandbox]:
    """A sandbox that delivers every change in both forms, to the tests' own collector."""
    sandbox = Sandbox(session_processes, ("snapshot", "thin"))
    yield sandbox
    sandbox.close()

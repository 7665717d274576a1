"""What the suite asks of each test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.logs import logging_undone, said  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail when a thread outlives its test, other than Python's and those of a test's servers.

    Those of the service would write into the database of a later test, and open connections while
    that looks at what its process has opened. All of them have names.
    """
    before = set(threading.enumerate())
    yield

    def left() -> list[threading.Thread]:
        started = (each for each in threading.enumerate() if each not in before)
        return [each for each in started if not each.name.startswith(("Thread-", "Dummy-"))]

    wait_until(lambda: not left(), within=30)


@pytest.fixture
def within_an_hour() -> None:
    """Begin with the next hour, and day, where this one ends soon: keys are named after them."""
    if (left := 3600 - time.time() % 3600) < 30:
        time.sleep(left)

"""A plugin of pytest, `-p tests.mutants.selecting`: run the tests of a list, and no others.

Where a row of a parametrized test is not there, all rows of that test run: the fault has changed
their ids.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FILE = "SELECTED_TESTS"
"""The variable that names the file of the list: an id in each line."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those of the list."""
    listed = set(Path(os.environ[FILE]).read_text().splitlines())
    gone = {_function(each) for each in listed - {item.nodeid for item in items}}
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        is_asked = item.nodeid in listed or _function(item.nodeid) in gone
        (kept if is_asked else others).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=others)


def _function(test: str) -> str:
    return test.partition("[")[0]

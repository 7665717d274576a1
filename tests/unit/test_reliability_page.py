"""The fault matrix names tests that exist, and leaves no fault out."""

from __future__ import annotations

import ast
import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (F\d+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)


def test_every_fault_is_there_once_and_in_order() -> None:
    assert [name for name, _ in ROWS] == [f"F{number}" for number in range(1, 40)]


def test_every_row_names_a_test() -> None:
    assert [name for name, shown_by in ROWS if "::" not in shown_by] == []


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 32
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in found, f"{file} has no {function}"


def test_every_file_that_is_named_exists() -> None:
    for file in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / file).is_file(), file

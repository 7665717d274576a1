"""Which lines stand for the one that a mutant changes."""

from __future__ import annotations

import pytest

from tests.mutants.covering import Covering

CODE = """LIMIT = 3

def f(a,
      b=1):
    if a:
        return g(a,
                 b)
    return 0
"""
RUN = {1: [], 3: [], 5: [0, 1], 6: [1], 8: [0]}


@pytest.mark.parametrize(
    ("line", "tests"),
    [(1, []), (4, [1, 0]), (5, [1, 0]), (7, [1]), (8, [0]), (2, [])],
    ids=["a constant", "a head", "a condition", "within a statement", "a statement", "nothing"],
)
def test_a_mutant_gets_the_tests_of_its_statement_the_quickest_first(line, tests) -> None:
    lines = {"m.py": {str(number): run for number, run in RUN.items()}}
    covering = Covering(lines, ["slow", "quick"], [2.0, 1.0])
    assert covering.of("m.py", line, CODE) == tests
    assert covering.of("m.lua", line, "not Python") == []

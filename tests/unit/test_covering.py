"""Which lines stand for the one that a mutant changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.inbox.scripts import sources
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
    [(1, [1, 0]), (4, [1, 0]), (5, [1, 0]), (7, [1]), (8, [0]), (2, [1, 0])],
    ids=["a constant", "a head", "a condition", "within a statement", "a statement", "nothing"],
)
@pytest.mark.parametrize("code", [CODE, CODE.replace("def", "async def")], ids=["", "async"])
def test_a_mutant_gets_the_tests_of_its_statement(code, line, tests) -> None:
    lines = {"m.py": {str(number): run for number, run in RUN.items()}}
    covering = Covering(lines, ["slow", "quick"], [2.0, 1.0])
    assert covering.of("m.py", line, code) == tests
    assert covering.of("other.py", line, code) == []


WAKING = {"accept", "claim", "discard", "finish", "link", "release", "replay", "retry", "sweep"}


@pytest.mark.parametrize(
    ("file", "text", "scripts"),
    [
        ("finish.lua", "", {"finish"}),
        ("lib.lua", "  redis.call('HSET', RECORD .. key, 'wake'", WAKING),
        ("once.lua", "local answer", set(sources()) - {"accept", "report"}),
    ],
    ids=["a script", "a function that some need", "what stands behind almost all"],
)
def test_a_mutant_in_lua_gets_the_tests_that_call_its_scripts(file, text, scripts) -> None:
    folder = Path(__file__).parents[2] / "service" / "inbox"
    code = (folder / "lua" / file).read_text()
    calls = (folder / "pipeline.py").read_text().splitlines()
    of_line = {str(line): [line] for line in range(len(calls))}
    covering = Covering({"service/inbox/pipeline.py": of_line}, calls, [0.0] * len(calls))
    line = code[: code.index(text)].count("\n") + 1
    found = [calls[each - 1] for each in covering.of(f"service/inbox/lua/{file}", line, code)]
    assert len(found) == len(scripts)
    assert all(any(f'"{name}"' in call for call in found) for name in scripts)


def test_the_quickest_of_each_file_come_first() -> None:
    tests = ["a.py::slow", "a.py::quick", "a.py::quicker", "b.py::slowest"]
    covering = Covering({"m.py": {"8": [0, 1, 2, 3]}}, tests, [3.0, 2.0, 1.0, 9.0])
    order = [tests[each] for each in covering.of("m.py", 8, CODE)]
    assert order == ["a.py::quicker", "b.py::slowest", "a.py::quick", "a.py::slow"]

"""What is changed in a Lua script to see whether tests notice."""

from __future__ import annotations

import pytest

from tests.mutants.mutate_lua import mutants

CHANGES = {
    "a comparison": ("if a == b then\n", {"if a ~= b then\n"}),
    "a bound": ("if a <= b then\n", {"if a < b then\n"}),
    "a connective": ("x = a and b\n", {"x = a or b\n"}),
    "a negation": ("if not a then\n", {"if a then\n"}),
    "a sign": ("x = a + b\n", {"x = a - b\n"}),
    "a constant": ("x = 5\n", {"x = 6\n"}),
    "an argument": ("x = f(a, 'b', c)\n", {"x = f(a, c)\n", "x = f(a, 'b')\n"}),
    "a call": ("f(a)\ng(b)\n", {"g(b)\n", "f(a)\n"}),
    "a call of several lines": ("f('HSET',\n  a)\nx = y\n", {"x = y\n"}),
    "nothing in a comment": ("-- a == 5 and b\n", set()),
    "nothing in a string": ("x = 'a5'\n", set()),
    "no definition": ("local function f(a)\n", set()),
}


@pytest.mark.parametrize(("code", "changed"), CHANGES.values(), ids=CHANGES)
def test_what_is_changed(code: str, changed: set[str]) -> None:
    assert {mutant for _, mutant in mutants(code)} == changed

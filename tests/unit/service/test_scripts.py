"""Scripts are put together of what they need, and of nothing else."""

from __future__ import annotations

import re

import pytest

from service.inbox import keys, scripts

SOURCES = scripts.sources()
LIB = scripts._read("lib")
DEFINED = re.findall(r"^local (?:function )?(\w+)", LIB, re.MULTILINE)


def words(code: str) -> list[str]:
    return re.findall(r"(?<![.\w])[A-Za-z_]\w*", re.sub(r"--.*", "", code))


def test_the_library_consists_of_parts_and_comments_alone() -> None:
    rest = LIB
    for part in scripts._PART.findall(LIB):
        rest = rest.replace(part, "", 1)
    assert [line for line in rest.splitlines() if line and not line.startswith("--")] == []
    assert len(scripts._PART.findall(LIB)) == len(DEFINED) > 30


@pytest.mark.parametrize("name", SOURCES)
def test_a_script_has_what_it_needs_and_no_more(name) -> None:
    source, constants = SOURCES[name], scripts.constants(keys.KEEP)
    found = re.findall(r"^local (?:function )?(\w+)", source, re.MULTILINE)
    shared = [each for each in found if each in DEFINED]
    assert len(shared) == len(set(shared))
    for part in DEFINED:
        used = words(source).count(part)
        assert used != 1, f"{part} is there and not used, or used and not there"
        assert (used > 1) == (part in shared)
    assert not set(words(source)) & set(constants), "no constant is left by its name"


def test_every_part_is_needed_by_a_script() -> None:
    for part in DEFINED:
        assert any(f"{part}(" in s or f"{part}[" in s or part == "ahead" for s in SOURCES.values())

"""Mutants of a Lua script: a call or an argument dropped, a comparison or a constant changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

SWAPPED = dict(
    [
        *[("==", "~="), ("~=", "=="), ("<", "<="), ("<=", "<"), (">", ">="), (">=", ">")],
        *[("and", "or"), ("or", "and"), ("+", "-"), ("-", "+"), ("*", "/"), ("/", "*")],
        *[("true", "false"), ("false", "true"), ("not ", "")],
    ]
)
_OPERATOR = re.compile(r"(?<= )(?:==|~=|<=|>=|<|>|\+|-|\*|/)(?= )|\b(?:and|or|true|false)\b|\bnot ")
_NUMBER = re.compile(r"(?<![\w.%'])\d+(?![\w.'])")
_ARGUMENT = re.compile(r", (?:'[^']*'|[\w.]+)(?=[,)])")
_CALL = re.compile(r"^ *[\w.]+\(")


def mutants(code: str) -> Iterator[tuple[int, str]]:
    """Yield the number of a changed line and the whole script with that change."""
    lines = code.splitlines(keepends=True)
    for number, line in enumerate(lines):
        for changed in _changed(line):
            yield number + 1, "".join([*lines[:number], changed, *lines[number + 1 :]])
        end = _end_of_call(lines, number)
        if end:
            yield number + 1, "".join([*lines[:number], *lines[end:]])


def _changed(line: str) -> Iterator[str]:
    code, comment = _without_comment(line)
    for match in _OPERATOR.finditer(code):
        yield _with(code, match, SWAPPED[match[0]]) + comment
    for match in _NUMBER.finditer(code):
        yield _with(code, match, str(int(match[0]) + 1)) + comment
    for match in _ARGUMENT.finditer(code):
        yield _with(code, match, "") + comment


def _without_comment(line: str) -> tuple[str, str]:
    start = re.search(r"(?:^|\s)--", line)
    return (line[: start.start()], line[start.start() :]) if start else (line, "")


def _with(code: str, match: re.Match[str], text: str) -> str:
    return code[: match.start()] + text + code[match.end() :]


def _end_of_call(lines: list[str], number: int) -> int:
    """Return the line after a statement that is a call, 0 where none begins."""
    if not _CALL.match(lines[number]) or "local function" in lines[number]:
        return 0
    depth = 0
    for end in range(number, len(lines)):
        code = _without_comment(lines[end])[0]
        depth += code.count("(") - code.count(")")
        if depth <= 0:
            return end + 1
    return 0

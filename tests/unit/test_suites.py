"""The rules of the suites (tests/README.md) that a test can check."""

from __future__ import annotations

import ast
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
OURS = {"identity_webhooks", "service", "workers", "stripe_identity_sandbox", "tests"}


def test_a_unit_test_cannot_open_a_socket() -> None:
    with pytest.raises(pytest.fail.Exception, match="opened a socket"):
        socket.create_connection(("127.0.0.1", 9))


def imported(source: str) -> Iterator[str]:
    """Yield the first part of every module imported; `.` for a relative import."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield module.partition(".")[0]
            case ast.ImportFrom():
                yield "."
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module" | "importorskip"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module.partition(".")[0]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import service.app as app", {"service"}),
        ("def f():\n    from workers.jobs import process_event", {"workers"}),
        ("from .. import sandbox", {"."}),
        ("importlib.import_module('service.inbox')", {"service"}),
    ],
    ids=["import", "from", "relative", "call"],
)
def test_each_kind_of_import_is_seen(source: str, found: set[str]) -> None:
    assert set(imported(source)) == found


def test_e2e_tests_import_nothing_of_ours() -> None:
    files = [TESTS / "conftest.py", *TESTS.glob("e2e/**/*.py")]
    guilty = {
        path.relative_to(TESTS).as_posix(): ours
        for path in files
        if (ours := (OURS | {"."}) & set(imported(path.read_text(encoding="utf-8"))))
    }
    assert not guilty

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


def read_when_called(source: str) -> set[str]:
    """Return the names, and `module.name`, that functions read when they run.

    The defaults of their arguments are not among them: those were read before.
    """
    pending: list[ast.AST] = [
        statement
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in node.body
    ]
    found = set()
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                node.args.defaults, node.args.kw_defaults = [], []
            case ast.Name(id=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                found.add(f"{module}.{name}")
        pending.extend(ast.iter_child_nodes(node))
    return found


def set_in_vain(test: str, read: dict[str, set[str]]) -> set[str]:
    """Return the constants that a test sets in a module, and no function reads there.

    `read` is by module what `read_when_called` found.
    """
    tree = ast.parse(test)
    modules = {
        name.asname or name.name: f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    elsewhere = set().union(*read.values())
    vain = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="setattr"),
                args=[ast.Name(id=alias), ast.Constant(value=str(name)), _],
            ) if name.isupper():
                module = modules[alias]
                as_others_call_it = f"{module.rpartition('.')[2]}.{name}"
                if name not in read.get(module, ()) and as_others_call_it not in elsewhere:
                    vain.add(as_others_call_it)
    return vain


@pytest.mark.parametrize(
    ("code", "vain"),
    [
        ("def f(x=WAIT): pass", {"pool.WAIT"}),
        ("def f():\n    def g(*, x=WAIT): pass", {"pool.WAIT"}),
        ("KEPT = 2 * WAIT", {"pool.WAIT"}),
        ("def f(): return WAIT", set()),
        ("def f(x=1): return [WAIT for _ in x]", set()),
    ],
    ids=["default", "inner-default", "at-import", "read", "read-within"],
)
def test_what_is_set_in_vain_is_seen(code: str, vain: set[str]) -> None:
    test = 'from service import pool\nmonkeypatch.setattr(pool, "WAIT", 30)'
    read = {"service.pool": read_when_called(code)}
    assert set_in_vain(test, read) == vain
    read["service.user"] = read_when_called("def f(): return pool.WAIT")
    assert set_in_vain(test, read) == set()


def test_no_test_sets_a_constant_in_vain() -> None:
    files = [path for folder in OURS | {"dev"} for path in (TESTS.parent / folder).rglob("*.py")]
    read = {
        ".".join(path.relative_to(TESTS.parent).with_suffix("").parts).removesuffix(".__init__"): (
            read_when_called(path.read_text(encoding="utf-8"))
        )
        for path in files
        if not path.name.startswith("test_")
    }
    guilty = {
        path.relative_to(TESTS).as_posix(): vain
        for path in TESTS.rglob("test_*.py")
        if "setattr(" in (source := path.read_text(encoding="utf-8"))
        and (vain := set_in_vain(source, read))
    }
    assert not guilty

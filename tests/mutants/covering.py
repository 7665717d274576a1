"""Which tests run which line, measured once: a mutant gets those alone, the quickest first.

This is also the plugin of pytest that measures it, under coverage: `-p tests.mutants.covering`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import coverage
import pytest

from service.inbox.scripts import sources
from tests.mutants.processes import Processes

SUITES = (
    *("tests/unit/service", "tests/unit/workers", "tests/unit/identity_webhooks"),
    "tests/integration",
)
"""Those whose tests run the code in their own process."""

_ROOT = Path(__file__).parents[2]
_PIPELINE = "service/inbox/pipeline.py"
"""Where each script in Lua is called, by a statement of its own."""

_SECONDS = "COVERING_SECONDS"
"""The variable that names the file for the seconds that each test took."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

_took: dict[str, float] = {}
_failed: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Count the lines that run from now on, in any thread, as this test's."""
    if measured := coverage.Coverage.current():
        measured.switch_context(item.nodeid)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how long a test took, all phases of it, and whether one failed."""
    _took[report.nodeid] = _took.get(report.nodeid, 0.0) + report.duration
    if report.failed:
        _failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what passed, in the process that all reports come to."""
    if not hasattr(session.config, "workerinput"):
        passed = {test: took for test, took in _took.items() if test not in _failed}
        Path(os.environ[_SECONDS]).write_text(json.dumps(passed))


@dataclass(frozen=True)
class Covering:
    """What was measured.

    Attributes:
        lines: of each file, the numbers of the tests that run each line.
        tests: the tests' ids, by number.
        seconds: how long each took, by number.
    """

    lines: dict[str, dict[str, list[int]]]
    tests: list[str]
    seconds: list[float]

    def of(self, file: str, line: int, code: str) -> list[int]:
        """Return the tests that run the statement at this line of the code.

        Of each file of tests the quickest comes first, then of each the second: those that are
        about the line stand in one file, and it is not known in which.

        A line in Lua is run by those that call a script which holds it; a line that runs at import
        by those that run any function of its file.
        """
        lines: Iterable[int] = _lines_of(code, line)
        if file.endswith(".lua"):
            file, lines = _PIPELINE, _calls_of(_scripts_with(file, line, code))
        elif runs_at_import(code, line):
            lines = _lines_in_functions(code)
        known = self.lines.get(file, {})
        found = {test for each in lines for test in known.get(str(each), ())}
        place: Counter[str] = Counter()
        order = {}
        for test in sorted(found, key=lambda test: self.seconds[test]):
            place[file_of_test := self.tests[test].partition("::")[0]] += 1
            order[test] = place[file_of_test], self.seconds[test]
        return sorted(order, key=order.__getitem__)


def measure(tree: Path, kept: Path, processes: Processes) -> Covering:
    """Run the suites in a copy of the repository, or take what was measured of the same files.

    A test that fails without a fault tells nothing of mutants, and is left out: so it is said what
    failed. Raises RuntimeError when no test can be run.
    """
    state = hashlib.sha256()
    for path in sorted(each for each in tree.rglob("*") if each.suffix in {".py", ".lua", ".toml"}):
        state.update(f"{path.relative_to(tree)}\n".encode() + path.read_bytes())
    if kept.exists() and (found := json.loads(kept.read_text()))["state"] == state.hexdigest():
        return Covering(found["lines"], found["tests"], found["seconds"])
    click.echo(f"measuring which tests run which line, which is kept once all are through: {kept}")
    seconds, data = tree / "covering.json", tree / ".coverage"
    # Only this core sees a line again in the next test.
    environment = {**os.environ, _SECONDS: str(seconds), "COVERAGE_CORE": "ctrace"}
    plugin = ("-p", "no:cacheprovider", "-p", "tests.mutants.covering")
    suite = ("-m", "pytest", "-q", "--no-header", "-n", "6", "-m", "not walk", *plugin, *SUITES)
    for arguments in (("erase",), ("run", *suite), ("combine", "-q")):
        command = [sys.executable, "-m", "coverage", *arguments]
        code = processes.run(command, cwd=tree, env=environment)
        if code != 0 and not (arguments[0] == "run" and code == pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"without any fault this fails: {' '.join(command)}")
    took: dict[str, float] = json.loads(seconds.read_text())
    tests = list(took)
    numbers = {test: number for number, test in enumerate(tests)}
    measured = coverage.CoverageData(str(data))
    measured.read()
    lines = {
        str(Path(file).relative_to(tree)): {
            str(line): [numbers[each] for each in contexts if each in numbers]
            for line, contexts in measured.contexts_by_lineno(file).items()
        }
        for file in measured.measured_files()
    }
    found = {
        "state": state.hexdigest(),
        "lines": lines,
        "tests": tests,
        "seconds": [*took.values()],
    }
    kept.write_text(json.dumps(found))
    return Covering(lines, tests, found["seconds"])


def runs_at_import(code: str, line: int) -> bool:
    """Whether a line of Python stands in no function."""
    return line not in _lines_in_functions(code)


def _scripts_with(file: str, line: int, code: str) -> set[str]:
    """Return the scripts that hold a line of a file in Lua; of a shared one, by what it defines."""
    if (name := Path(file).stem) in sources():
        return {name}
    before = "".join(code.splitlines(keepends=True)[:line])
    *_, defined = re.findall(r"^local (?:function )?(\w+)", before, re.MULTILINE)
    definition = re.compile(rf"^local (?:function )?{defined}\b", re.MULTILINE)
    return {name for name, source in sources().items() if definition.search(source)}


def _calls_of(scripts: set[str]) -> Iterator[int]:
    """Yield the lines that name these scripts where they are called."""
    for node in ast.walk(ast.parse((_ROOT / _PIPELINE).read_text())):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="_add"), args=[_, ast.Constant(value=name), *_]
            ) if name in scripts:
                yield node.lineno


def _lines_in_functions(code: str) -> set[int]:
    """Return the lines of all functions; the others run at import."""
    return {
        line
        for node in ast.walk(ast.parse(code))
        if isinstance(node, _FUNCTIONS)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def _lines_of(code: str, line: int) -> Iterator[int]:
    """Yield the lines of the statement at a line; of a function's head, those of the function."""
    inner: ast.stmt | None = None
    for node in ast.walk(ast.parse(code)):  # outer ones come first
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            inner = node
    if inner is None:
        return
    last = inner.end_lineno or inner.lineno
    body = getattr(inner, "body", None)
    if body and not isinstance(inner, _FUNCTIONS):
        last = body[0].lineno - 1
    yield from range(inner.lineno, last + 1)

"""The command that puts faults in: what it draws, runs, keeps and counts."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import state, wait_until
from tests.mutants import __main__ as mutants
from tests.mutants import selecting
from tests.mutants.__main__ import Result, main
from tests.mutants.processes import Processes

ROOT = Path(__file__).parents[2]


def test_a_commit_that_git_does_not_find_is_said() -> None:
    done = CliRunner().invoke(main, ["--since", "no-such-commit", "--list"])
    assert done.exit_code == 2
    assert "Invalid value for --since: fatal: " in done.output


def explained() -> Iterator[tuple[str, str]]:
    entries = tomllib.loads((ROOT / "tests/mutants/equivalent.toml").read_text())["equivalent"]
    for entry in entries:
        yield from ((entry["file"], old[1:]) for old in entry["diff"].split("\n") if old[:1] == "-")


def test_each_explained_change_is_of_one_line_that_is_there() -> None:
    """A second line of the same text would be explained by accident."""
    found = list(explained())
    assert found
    for file, line in found:
        assert (ROOT / file).read_text().splitlines().count(line) == 1, (file, line)


TESTS = """import pytest
@pytest.mark.parametrize("row", [{rows}])
def test_rows(row):
    assert row != {failing}
def test_other():
    pass
def test_third():
    assert False
"""


@pytest.mark.parametrize(
    ("rows", "failing", "listed", "code", "ran"),
    [
        ("1, 2", 0, ["test_rows[1]", "test_other"], 0, "2 passed, 2 deselected"),
        ("1, 2", 1, ["test_rows[1]"], 1, "1 failed, 3 deselected"),
        ("1, 2", 2, ["test_rows[1]"], 0, "1 passed, 3 deselected"),
        ("8, 9", 9, ["test_rows[1]", "test_other"], 1, "1 failed, 2 passed, 1 deselected"),
        ("8, 9", 0, ["test_rows[1]"], 0, "2 passed, 2 deselected"),
        ("1, 2", 0, ["test_gone"], 5, "4 deselected"),
    ],
    ids=["listed", "fails", "not-listed", "rows-renamed", "renamed-and-pass", "none-there"],
)
def test_the_listed_tests_run_and_no_others(tmp_path, rows, failing, listed, code, ran) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(rows=rows, failing=failing))
    (tmp_path / "list").write_text("\n".join(f"test_it.py::{each}" for each in listed))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir"]
    done = subprocess.run(
        [*command, ".", "-p", "tests.mutants.selecting", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), selecting.FILE: "list"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert ran in done.stdout


def test_a_result_holds_while_its_test_is_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    path = tmp_path / "tests" / "test_it.py"
    path.parent.mkdir()
    path.write_text("one")
    by = "tests/test_it.py::test_a[x::y]"

    def result(by: str, test: str) -> Result:
        return Result("name", "file", 1, "diff", by, 1.0, test)

    noticed = result(by, mutants._hash_of_test(by))
    assert noticed.holds
    assert result("mypy", "").holds
    assert not result("", "").holds
    assert not Result(**json.loads(json.dumps({**vars(noticed), "test": ""}))).holds
    path.write_text("another")
    assert not noticed.holds
    path.unlink()
    assert not noticed.holds


@pytest.mark.parametrize("end", ["end", "limit", "stop"])
def test_what_a_process_started_ends_with_it(tmp_path, end) -> None:
    processes, log = Processes(), tmp_path / "log"
    command = ["sh", "-c", f"sleep 600 & echo $!; exec sleep {0 if end == 'end' else 600}"]

    def started() -> int:
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        return int(log.read_text())

    if end == "stop":
        threading.Thread(target=lambda: (started(), setattr(processes, "is_stopped", True))).start()
    limit = {"end": math.inf, "limit": 5, "stop": 300}[end]
    with log.open("wb") as output:
        code = processes.run(command, limit=limit, stdout=output, stderr=output)
    assert code == (0 if end == "end" else None)
    pid = started()
    wait_until(lambda: state(pid) == "Z")
    if end == "stop":
        assert processes.run(command) is None


def test_a_request_to_end_is_taken_as_ctrl_c(monkeypatch) -> None:
    before = [(each, signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(mutants, "_draw", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        done = CliRunner().invoke(main, [])
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    assert done.exit_code == 1
    assert "Aborted" in done.output

"""`python -m tests.mutants`: put faults into the code, one at a time, and see whether tests notice.

A mutant gets the tests that run its line, or call a script with its line, in their own process
(`covering.py`); those of its own suite come first. What passes, or has none, gets the checks of
`make test`: the tests of the repository, mypy and ruff. What passes these gets the suites that
`targets.py` names for its file, one after another: all of them when no test runs the line, too many
do, or it runs at import, else those that start processes. All without the walks, as in `make test`.

A mutant is noticed when one of these fails, a test takes more than a minute, or all together more
than five times as long as without a fault; how many took too long is said. Results are kept in
var/mutants, so that an interrupted run goes on where it was. Tested again are those that survived,
as a test may have been written since, and those whose test has changed since it noticed them.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import click
import pytest

from tests.mutants import covering, mutate_lua, selecting
from tests.mutants.processes import Processes
from tests.mutants.targets import TARGETS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "var" / "mutants"
HERE = Path(__file__).parent
PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-x", "--no-header"),
    *("-p", "no:cacheprovider", "-m", "not walk", "--timeout", "60"),
)
_TYPE = re.compile(r"\w+ = Literal\[")
MUTMUT = "mutmut==3.8.1"
"""Its list of mutations is not public: another release may move it."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the line, and the whole text with the change."""

    file: str
    line: int
    code: str

    @property
    def diff(self) -> str:
        """The change, without lines around it."""
        before = (ROOT / self.file).read_text().splitlines()
        lines = difflib.unified_diff(before, self.code.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in list(lines)[2:] if not line.startswith("@@"))

    @property
    def name(self) -> str:
        """The same for the same change of the same text."""
        return hashlib.sha256(f"{self.file}\n{self.code}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Attributes:
        by: the test or the check that noticed it, or what took too long; empty when none did.
        test: the hash of that test's file.
    """

    name: str
    file: str
    line: int
    diff: str
    by: str
    seconds: float
    test: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was noticed, by a test that is still the same."""
        return bool(self.by) and self.test == _hash_of_test(self.by)


def _hash_of_test(by: str) -> str:
    path = ROOT / by.partition("::")[0]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""


@dataclass(frozen=True)
class Stage:
    """Tests or a check, and after how many seconds they take too long.

    Attributes:
        selected: the ids of the tests to run; all that the command finds, if there are none.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    selected: tuple[str, ...] = ()

    @classmethod
    def of_tests(cls, name: str, tests: Iterable[str], limit: float) -> Stage:
        """Return one of files or folders of tests."""
        return cls(name, (*PYTEST, *tests), limit)

    @classmethod
    def of_ids(cls, name: str, ids: list[str], limit: float) -> Stage:
        """Return one of single tests, file by file."""
        files = dict.fromkeys(each.partition("::")[0] for each in ids)
        return cls(name, (*PYTEST, "-p", "tests.mutants.selecting", *files), limit, tuple(ids))


_REPOSITORY = sorted(str(each.relative_to(ROOT)) for each in ROOT.glob("tests/unit/test_*.py"))
CHECKS = (
    Stage.of_tests("the repository", _REPOSITORY, 300),
    Stage("mypy", (sys.executable, "-m", "mypy"), 300),
    Stage("ruff", (sys.executable, "-m", "ruff", "check"), 300),
)
"""What else `make test` runs; a few seconds."""
TOO_LONG = "more than"
"""How the name of what was not at its end in time begins."""
SECONDS = 150.0
"""What the tests of one mutant take together, at most: some lines are run by a thousand. Where that
leaves some out, the suites are asked as well."""


class Trees:
    """Copies of the repository, one for each job."""

    def __init__(self, jobs: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        self.processes = Processes()
        self.first = CACHE / "tree-0"
        tracked = _lines("git", "ls-files")
        for number in range(jobs):
            tree = CACHE / f"tree-{number}"
            shutil.rmtree(tree, ignore_errors=True)
            for name in tracked:
                if (ROOT / name).is_file():
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, tree / name)
            for command in (("init", "-q"), ("add", "-A")):  # tests ask which files are tracked
                subprocess.run(["git", *command], check=True, cwd=tree)
            self._free.put(tree)

    def notice(self, mutant: Mutant | None, stages: Iterable[Stage]) -> str:
        """Return the first test that fails with the mutant (None: as it is), or nothing."""
        tree = self._free.get()
        try:
            if mutant:
                (tree / mutant.file).write_text(mutant.code)
            return next(filter(None, (self._failing(tree, stage) for stage in stages)), "")
        finally:
            if mutant:
                shutil.copy2(ROOT / mutant.file, tree / mutant.file)
            self._free.put(tree)

    def _failing(self, tree: Path, stage: Stage) -> str:
        """Run a stage in a tree, and return what fails."""
        (tree / "selected.txt").write_text("\n".join(stage.selected))
        environment = {
            **os.environ,
            "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / ".hypothesis"),
            selecting.FILE: str(tree / "selected.txt"),
        }
        log_path = tree / "stage.log"
        with log_path.open("wb") as log:
            code = self.processes.run(
                stage.command, limit=stage.limit, cwd=tree, env=environment, stdout=log, stderr=log
            )
        if code is None:
            return f"{TOO_LONG} {stage.limit:.0f} s: {stage.name}"
        if code == 0 or (stage.selected and code == pytest.ExitCode.NO_TESTS_COLLECTED):
            return ""
        said = log_path.read_text(errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.*?)(?: - |$)", said, re.MULTILINE)
        return failed[1] if failed else stage.name


@click.command()
@click.option(
    "--count",
    default=300,
    show_default=True,
    help="How many mutants are drawn: of each file its share, and at least one.",
)
@click.option("--seed", default=1, show_default=True, help="Which ones.")
@click.option("--jobs", default=4, show_default=True, help="How many are tested at a time.")
@click.option("--file", "pattern", default="*", help="Only files of this pattern.")
@click.option("--since", metavar="COMMIT", help="Only lines changed since this commit.")
@click.option("--list", "only_list", is_flag=True, help="Print the changes, test nothing.")
def main(
    count: int, seed: int, jobs: int, pattern: str, since: str | None, only_list: bool
) -> None:
    """Judge the tests by faults put in on purpose.

    Exit code 1: a mutant survived that tests/mutants/equivalent.toml does not explain.
    """
    for each in (signal.SIGTERM, signal.SIGINT):  # a shell's background ignores the latter
        signal.signal(each, signal.default_int_handler)
    CACHE.mkdir(parents=True, exist_ok=True)
    drawn = _draw(count, seed, pattern, since)
    if only_list:
        for mutant in drawn:
            click.echo(f"{mutant.name} {mutant.file}:{mutant.line}\n{mutant.diff}\n")
        return
    if not drawn:
        click.echo("no file that is mutated has changed")
        return
    reasons = _reasons()
    explained = [each for each in drawn if (each.file, each.diff) in reasons]
    results = _run([each for each in drawn if each not in explained], jobs)
    for mutant in explained:
        reason = reasons[mutant.file, mutant.diff]
        click.echo(f"\nequivalent {mutant.file}:{mutant.line}: {reason}\n{mutant.diff}")
    raise SystemExit(_report(results))


def _reasons() -> dict[tuple[str, str], str]:
    """Return why a change of a file changes nothing, by the file and the change."""
    entries = tomllib.loads((HERE / "equivalent.toml").read_text())["equivalent"]
    return {(each["file"], each["diff"].strip()): each["reason"] for each in entries}


def _draw(count: int, seed: int, pattern: str, since: str | None) -> list[Mutant]:
    """Return mutants, of each file its share of all.

    Those of a file do not depend on the others, so that a change of one leaves what is known of
    the rest.
    """
    files = [f for f in _lines("git", "ls-files") if _suites(f) and fnmatch.fnmatch(f, pattern)]
    changed = _changed_lines(since) if since else {}
    if since:
        files = [file for file in files if file in changed]
    counts = _counts(files)
    if since:
        numbers = {file: list(range(many)) for file, many in counts.items()}
        made = [m for m in _make(numbers) if m.line in changed[m.file]]
        return random.Random(seed).sample(made, min(count, len(made)))
    share = min(1.0, count / max(1, sum(counts.values())))
    return list(
        _make(
            {
                file: random.Random(f"{seed} {file}").sample(range(many), math.ceil(share * many))
                for file, many in counts.items()
            }
        )
    )


def _counts(files: list[str]) -> dict[str, int]:
    """Return how many mutants there are of each file."""
    python = [file for file in files if file.endswith(".py")]
    counts: dict[str, int] = json.loads(_mutmut(*python)) if python else {}
    return counts | {f: len(_lua_mutants(f)) for f in files if f.endswith(".lua")}


def _make(numbers: dict[str, list[int]]) -> Iterator[Mutant]:
    """Yield the mutants with these numbers of these files, those of mere types left out."""
    python = {file: each for file, each in numbers.items() if file.endswith(".py")}
    for line in _mutmut("--make", stdin=json.dumps(python)).splitlines():
        mutant = Mutant(**json.loads(line))
        if not _TYPE.match(mutant.code.splitlines()[mutant.line - 1]):
            yield mutant
    for file in sorted(numbers.keys() - python.keys()):
        of_file = _lua_mutants(file)
        for number in numbers[file]:
            yield Mutant(file, *of_file[number])


def _mutmut(*arguments: str, stdin: str = "") -> str:
    python = CACHE / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", MUTMUT], check=True)
    command = [str(python), str(HERE / "mutate_python.py"), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, check=True, input=stdin, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


def _lua_mutants(file: str) -> list[tuple[int, str]]:
    return list(mutate_lua.mutants((ROOT / file).read_text()))


def _suites(file: str) -> tuple[str, ...]:
    return next((s for pattern, s in TARGETS.items() if fnmatch.fnmatch(file, pattern)), ())


class Stages:
    """What a mutant has to pass: the tests that run it, checks, and suites.

    Raises ClickException where these fail without a fault.
    """

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._suites: dict[str, Stage] = {}
        self._lock = threading.Lock()
        if failed := trees.notice(None, CHECKS):
            raise click.ClickException(f"without any fault this fails: {failed}")
        try:
            self._covering = covering.measure(trees.first, CACHE / "covering.json", trees.processes)
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None

    def tests(self, mutant: Mutant) -> list[int]:
        """Return the numbers of the tests that run it."""
        return self._covering.of(mutant.file, mutant.line, (ROOT / mutant.file).read_text())

    def quick(self, mutant: Mutant) -> list[Stage]:
        """Return the tests that run it, if any, those of its own suite first, and the checks."""
        known = self._covering
        if not (tests := self.tests(mutant)):
            return [*CHECKS]
        own = tuple(_suites(mutant.file)[0].split())
        tests.sort(key=lambda test: not known.tests[test].startswith(own))
        left, chosen = SECONDS, []
        for test in tests:
            if (left := left - known.seconds[test]) < 0:
                break
            chosen.append(known.tests[test])
        names = chosen or [known.tests[tests[0]]]
        return [Stage.of_ids("those that run it", names, 30 + 5 * SECONDS), *CHECKS]

    def suites(self, mutant: Mutant) -> Iterator[Stage]:
        """Yield the suites for its file, each after it has passed without a fault."""
        # Were all that run the line asked? What runs at import is read by tests that call nothing.
        tests = self.tests(mutant)
        asked = 0 < sum(self._covering.seconds[test] for test in tests) <= SECONDS
        if asked and mutant.file.endswith(".py"):
            asked = not covering.runs_at_import((ROOT / mutant.file).read_text(), mutant.line)
        for name in _suites(mutant.file):
            if name.startswith("tests/e2e") or not asked:
                with self._lock:
                    suite = self._suite(name)
                yield suite

    def _suite(self, name: str) -> Stage:
        """Run suites without a fault, once, for how long they may take."""
        if name not in self._suites:
            start = time.monotonic()
            stage = Stage.of_tests(name, name.split(), 900)
            if failed := self._trees.notice(None, [stage]):
                raise click.ClickException(f"without any fault this fails: {failed}")
            took = time.monotonic() - start
            click.echo(f"without a fault {took:.0f} s: pytest {name}")
            self._suites[name] = replace(stage, limit=30 + 5 * took)
        return self._suites[name]


def _run(mutants: list[Mutant], jobs: int) -> list[Result]:
    """Test the mutants that are not tested yet; say how far it is."""
    kept = CACHE / "results.jsonl"
    known = {}
    if kept.exists():
        results = (Result(**json.loads(line)) for line in kept.read_text().splitlines())
        known = {result.name: result for result in results if result.holds}
    todo = [mutant for mutant in mutants if mutant.name not in known]
    if todo:
        trees = Trees(jobs)
        stages = Stages(trees)
        todo.sort(key=lambda mutant: not stages.tests(mutant))  # suites take longest
        lock, began = threading.Lock(), time.monotonic()

        def test(mutant: Mutant) -> None:
            start = time.monotonic()
            by = trees.notice(mutant, stages.quick(mutant))
            if not by:
                # One call for each: measuring the next suite takes a tree, too.
                found = (trees.notice(mutant, [suite]) for suite in stages.suites(mutant))
                by = next(filter(None, found), "")
            if trees.processes.is_stopped:
                return
            took = time.monotonic() - start
            result = Result(
                *(mutant.name, mutant.file, mutant.line, mutant.diff),
                *(by, round(took, 1), _hash_of_test(by)),
            )
            with lock, kept.open("a") as file:
                known[mutant.name] = result
                file.write(json.dumps(asdict(result)) + "\n")
                tested = sum(m.name in known for m in todo)
                left = (time.monotonic() - began) / tested * (len(todo) - tested) / 60
                click.echo(
                    f"{tested}/{len(todo)}, {left:.0f} min left: {mutant.file}:{mutant.line}"
                    f" {f'noticed by {by}' if by else 'SURVIVED'} in {took:.0f} s"
                )

        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(test, todo))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                trees.processes.is_stopped = True
                raise
    return [known[mutant.name] for mutant in mutants]


def _report(results: list[Result]) -> int:
    """Print the score of each file and the survivors; return the exit code."""
    tested, noticed = Counter(r.file for r in results), Counter(r.file for r in results if r.by)
    survived = [result for result in results if not result.by]
    for result in survived:
        click.echo(f"\nSURVIVED {result.file}:{result.line}\n{result.diff}")
    for file, count in sorted(tested.items()):
        click.echo(f"{noticed[file]:4} of {count:4}  {file}")
    share = 100 * noticed.total() / max(1, len(results))
    late = sum(result.by.startswith(TOO_LONG) for result in results)
    click.echo(
        f"{noticed.total()} of {len(results)} noticed ({share:.1f} %), {late} as they took too long"
    )
    return 1 if survived else 0


def _changed_lines(since: str) -> dict[str, set[int]]:
    changed: dict[str, set[int]] = {}
    file = ""
    try:
        lines = _lines("git", "diff", "-U0", since, "--", "*.py", "*.lua")
    except subprocess.CalledProcessError as error:
        raise click.BadParameter(error.stderr.strip(), param_hint="--since") from error
    for line in lines:
        if line.startswith("+++ "):
            file = line[6:]
        elif line.startswith("@@"):
            start, _, count = line.split("+")[1].split(" ")[0].partition(",")
            first = int(start)
            changed.setdefault(file, set()).update(range(first, first + int(count or 1)))
    return changed


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()

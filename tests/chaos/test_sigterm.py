"""Deploys under load: SIGTERM again and again, and nothing shows it but the logs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.inbox import Inbox
from tests.chaos.system import (
    CHAOS,
    HANDLERS,
    Change,
    Sandbox,
    environment,
    keep_reconciliation_out,
    read_ledger,
    tally,
)
from tests.conftest import ROOT, Processes, Server, children, wait_until

EXIT_WITHIN = 30
"""Seconds at which platforms kill."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.walk)])
def test_sigterm_under_load_costs_nothing(
    count: int,
    sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    dice = random.Random(count)
    redis = new_server()
    env = environment(
        redis.url, sandbox.url, tmp_path / "ledger", LEDGER_FLAKY="0", WORKER_CONCURRENCY="4"
    )
    with redis.client() as client:
        keep_reconciliation_out(client)
    processes.python("-m", "workers", "periodic", env=env)
    workers = [Worker(processes, env) for _ in range(3)]
    changes: set[Change] = set()
    exits: list[float] = []
    with redis.client() as client:
        while len(exits) < count:
            if client.zcard("iw:due") < 60:
                for each in sandbox.changes(sessions=20):
                    changes.add(each.change)
                    Inbox(client).accept(each.event)
            exits += [took for worker in workers if (took := worker.deploy(dice)) is not None]
            time.sleep(0.01)
        wait_until(lambda: client.zcard("iw:due") == 0)
        records = list(Inbox(client).records("all", 100_000))

    assert max(exits) < EXIT_WITHIN
    effects = read_ledger(tmp_path / "ledger")
    for handler in HANDLERS:
        counted = tally(changes, effects, handler)
        assert counted.kept, (handler, counted)
        assert counted.repeats == 0, (handler, counted)
    assert {record.state for record in records} == {"done"}
    assert {p.attempts for record in records for p in record.handlers.values()} == {1}
    print(f"\n{count} SIGTERMs, {len(changes)} changes; longest exit {max(exits):.2f} s")  # noqa: T201


class Worker:
    """A worker that is deployed again soon after it began to work."""

    def __init__(self, processes: Processes, env: dict[str, str]) -> None:
        self._processes, self._env = processes, env
        self._start()

    def _start(self) -> None:
        self.process: subprocess.Popen[bytes]
        self.process, self._log = self._processes.python("-m", "workers", env=self._env)
        self._term_at = self._told_at = 0.0

    def deploy(self, dice: random.Random) -> float | None:
        """Take the next step; the seconds that the exit took, when there was one."""
        now = time.monotonic()
        if self._told_at:
            if self.process.poll() is None:
                return None
            assert self.process.returncode == 0
            took = now - self._told_at
            self._start()
            return took
        if not self._term_at:
            if "event_settled" in self._log.read_text():
                self._term_at = now + dice.uniform(0.02, 0.25)
        elif now > self._term_at:
            # Docker tells the first process alone, Heroku all of them.
            for pid in [*dice.choice(([], children(self.process.pid))), self.process.pid]:
                os.kill(pid, signal.SIGTERM)
            self._told_at = now
        return None


def moments() -> list[pytest.ParameterSet]:
    beside = ("fork", "forked", "boot", "import", "start", "handler", "helper", "dies", "answer")
    return [
        *(pytest.param("thread", moment) for moment in ("handler", "helper")),
        *(
            pytest.param("suspect", moment, marks=() if number % 2 == 0 else pytest.mark.walk)
            for number, moment in enumerate(beside)
        ),
        *(pytest.param("own", moment, marks=pytest.mark.walk) for moment in beside),
    ]


@pytest.mark.parametrize(("where", "moment"), moments())
def test_sigterm_to_all_processes_costs_an_event_nothing(
    where: str,
    moment: str,
    sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    """Whatever its handler is at, there or in a process beside the worker."""
    reached, passed = tmp_path / "reached", tmp_path / "pass"
    redis = new_server()
    event = sandbox.changes(sessions=1)[0].event
    env = environment(
        redis.url,
        sandbox.url,
        tmp_path / "ledger",
        HANDLERS="held",
        AUDIT="0",
        PYTHONPATH=f"{CHAOS / 'gates'}:{CHAOS / 'handlers'}:{ROOT}",
        REACHED=str(reached),
        PASS=str(passed),
    )
    with redis.client() as client:
        inbox = Inbox(client)
        keep_reconciliation_out(client)
        inbox.accept(event)
        if where == "suspect":
            client.hset(f"iw:evt:{event.key}", "suspect", 1)
        armed = env | {"GATE": f"{where}:{moment}"}
        worker, log = processes.python("-m", "workers", env=armed, own_group=True)
        wait_until(reached.exists)
        os.killpg(worker.pid, signal.SIGTERM)
        time.sleep(0.3)
        passed.touch()
        assert worker.wait(EXIT_WITHIN) == 0

        fields = {name.decode() for name in client.hkeys(f"iw:evt:{event.key}")}
        assert fields.isdisjoint({"lease", "lapses", "faults"}), fields
        assert ("suspect" in fields) <= (where == "suspect")
        if (where, moment) != ("thread", "helper") and moment != "dies":
            assert inbox.find(event.key).state == "done", "what runs may end"
        processes.python("-m", "workers", env=env | {"GATE": f"{where}:"})
        wait_until(lambda: client.zcard("iw:due") == 0)
        record = inbox.find(event.key)

    assert record.state == "done", (record, log.read_text())
    assert {p.attempts for p in record.handlers.values()} == {1}
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1

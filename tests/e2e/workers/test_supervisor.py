"""The process that keeps a worker running: its children, its signals, and what others leave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

AS_THE_FIRST = """
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us
sys.argv = ["workers"]
runpy.run_module("workers", run_name="__main__")
"""
IMPATIENT = """
import runpy, sys
from workers import supervisor
supervisor.STALLED, supervisor.KILL_AFTER = 4.0, 2.0
sys.argv = ["workers"]
runpy.run_module("workers", run_name="__main__")
"""
KEEPING = """
import ctypes, re, time
from identity_webhooks import on

def spin():
    end = time.monotonic() + 8
    while time.monotonic() < end:
        pass

DO = {
    "keep": lambda: ctypes.PyDLL(None).sleep(1000),  # keeps the interpreter's lock
    "match": lambda: re.match("(a+)+$", "a" * 60 + "b"),  # so does this, for years
    "spin": spin,
    "sleep": lambda: time.sleep(8),
    "call": lambda: ctypes.CDLL(None).sleep(8),
}

@on("verified", timeout=20, retries=0)
def handle(v):
    DO.get(v.metadata.get("behave"), int)()
"""
DEAF = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what a signal without a handler is to process 1
os.execv(sys.executable, [sys.executable, "-m", "workers"])
"""


def test_web_and_worker_are_a_whole_deployment(system) -> None:
    running = system(BEHAVIOUR="retry")
    event = running.settled(running.verify())
    assert event["state"] == "done", "the retry was woken by the worker's own periodic process"
    # By these names commands and the console tell a handler from a misspelt one.
    with running.redis.client() as client:
        known = {name.decode() for name in client.hkeys("iw:handlers")}
    assert known >= {handler["name"] for handler in event["handlers"]}


def test_the_periodic_child_is_started_again_and_can_be_left_out(system, children) -> None:
    running = system()
    parent = running.workers[0][0].pid
    running.wait_until(lambda: len(running.lines("periodic_started")) == 1)
    periodic = running.lines("periodic_started")[0]["pid"]
    assert periodic in children(parent)
    os.kill(periodic, signal.SIGKILL)
    running.wait_until(lambda: len(running.lines("periodic_started")) == 2)
    assert [line["exit_code"] for line in running.lines("periodic_died")] == [-9]
    assert running.lines("worker_died") == []

    process, log = running.processes.python(
        "-m", "workers", "--no-periodic", env=running.environment
    )
    running.wait_until(lambda: len(children(process.pid)) == 1)
    process.terminate()
    assert process.wait(120) == 0
    assert "periodic_started" not in log.read_text()


def test_hooks_are_stopped_after_the_last_event(system, tmp_path) -> None:
    """What they close, a handler that still runs would miss."""
    noted = tmp_path / "noted"
    (tmp_path / "closing.py").write_text(f"""
import time
from pathlib import Path
from identity_webhooks import on, on_stop

def note(word):
    with Path({str(noted)!r}).open("a") as file:
        file.write(word + "\\n")

@on("verified")
def handle(v):
    note("begun")
    time.sleep(2)
    note("ended")

@on_stop
def close():
    note("closed")
""")
    running = system(HANDLERS="closing", PYTHONPATH=str(tmp_path))
    running.verify()
    running.wait_until(noted.exists)
    running.workers[0][0].terminate()
    assert running.workers[0][0].wait(120) == 0
    assert noted.read_text().split() == ["begun", "ended", "closed"]


def test_what_a_dead_worker_leaves_behind_is_reaped(system, children, state) -> None:
    running = system(HANDLERS="alone")
    running.workers[0][0].terminate()
    assert running.workers[0][0].wait(120) == 0
    process, log = running.processes.python("-c", AS_THE_FIRST, env=running.environment)
    running.workers.append((process, log))

    def with_the_process_of_a_handler() -> list[int]:
        return [child for child in children(process.pid) if children(child)]

    def dead() -> list[int]:
        return [child for child in children(process.pid) if state(child) == "Z"]

    for _ in range(3):
        running.verify()
        running.wait_until(with_the_process_of_a_handler)
        (worker,) = with_the_process_of_a_handler()
        os.kill(worker, signal.SIGKILL)
        running.wait_until(lambda worker=worker: worker not in children(process.pid))
    running.wait_until(lambda: len(children(process.pid)) == 2 and not dead())


def test_a_stop_while_it_still_imports_is_heeded(system, tmp_path) -> None:
    running = system()
    marker, first = tmp_path / "importing", tmp_path / "first"
    first.mkdir()
    (first / "sitecustomize.py").write_text(f"""
import sys, time
class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            open({str(marker)!r}, "w").close()
            time.sleep(300)
sys.meta_path.insert(0, Finder())
""")
    path = f"{first}:{running.environment['PYTHONPATH']}"
    environment = running.environment | {"PYTHONPATH": path}
    process, _ = running.processes.python("-c", DEAF, env=environment)
    running.wait_until(marker.exists)
    process.terminate()
    assert process.wait(120) == 128 + signal.SIGTERM


@pytest.mark.walk
def test_a_stop_while_plugins_are_loaded_is_heeded(system, tmp_path) -> None:
    running = system()
    marker, go = tmp_path / "loading", tmp_path / "go"
    (tmp_path / "slow_to_load.py").write_text(f"""
import time
from pathlib import Path
from identity_webhooks import on
Path({str(marker)!r}).touch()
while not Path({str(go)!r}).exists():
    time.sleep(0.01)
@on("*")
def handle(v): ...
""")
    path = f"{tmp_path}:{running.environment['PYTHONPATH']}"
    environment = running.environment | {"PYTHONPATH": path, "HANDLERS": "slow_to_load"}
    process, log = running.processes.python("-c", DEAF, env=environment)
    running.wait_until(marker.exists)
    process.terminate()
    go.touch()
    assert process.wait(120) == 0
    assert "worker_started" not in log.read_text()


def impatient(
    system: Any, children: Any, folder: Path, **extra: str
) -> tuple[Any, int, dict[str, int]]:
    """A service whose worker waits for 4 s where it waits for 30; its parent and its children."""
    (folder / "keeping.py").write_text(KEEPING)
    running = system(**extra)
    running.workers[0][0].terminate()
    assert running.workers[0][0].wait(120) == 0
    running.environment["PYTHONPATH"] += f":{folder}"
    running.environment["HANDLERS"] += ",keeping"
    running.workers = [running.processes.python("-c", IMPATIENT, env=running.environment)]
    parent = running.workers[0][0].pid
    running.wait_until(lambda: running.lines("periodic_started") and len(children(parent)) == 2)
    (periodic,) = (line["pid"] for line in running.lines("periodic_started"))
    (worker,) = set(children(parent)) - {periodic}
    return running, parent, {"worker": worker, "periodic": periodic}


@pytest.mark.walk
@pytest.mark.parametrize("how", ["keep", pytest.param("match", marks=pytest.mark.walk)])
def test_a_handler_that_keeps_the_interpreter_costs_one_process(
    system, children, tmp_path, how
) -> None:
    running, parent, before = impatient(system, children, tmp_path)
    poison = running.verify(behave=how)
    running.wait_until(lambda: running.lines("worker_stalled"))
    others = [running.verify() for _ in range(3)]
    for session in others:
        running.settled(session)
    event = running.settled(poison, state="dead", within=120)

    assert event["reason"] == "keeping.handle: failed: timeout", (
        "the second time, beside the worker"
    )
    (stalled,) = running.lines("worker_stalled")
    assert stalled["level"] == "error"
    assert stalled["running"] == ["keeping.handle"]
    assert stalled["in_hand"] == [event["id"]]
    assert stalled["pid"] == before["worker"]
    assert [line["exit_code"] for line in running.lines("worker_died")] == [-9]
    assert before["periodic"] in children(parent)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("role", "other"), [("worker", "periodic"), ("periodic", "worker")])
def test_a_child_that_is_stopped_is_replaced(system, children, tmp_path, role, other) -> None:
    running, parent, before = impatient(system, children, tmp_path)
    os.kill(before[role], signal.SIGSTOP)
    # Its first attempt ends in a retry: so it needs both children.
    running.settled(running.verify(behave="retry"))

    assert running.words("second") == ["started", "started", "done"]
    (stalled,) = running.lines(f"{role}_stalled")
    assert (stalled["pid"], stalled["level"]) == (before[role], "error")
    assert [line["exit_code"] for line in running.lines(f"{role}_died")] == [-9]
    assert running.lines(f"{other}_stalled") == running.lines(f"{other}_died") == []
    assert before[role] not in children(parent)
    assert before[other] in children(parent)


@pytest.mark.sample(1)
@pytest.mark.parametrize("role", ["worker", "periodic"])
def test_a_child_that_does_not_stop_is_killed_in_time(system, children, tmp_path, role) -> None:
    """Before the platform kills all of them: 3 s after what runs has to be through."""
    running, parent, before = impatient(system, children, tmp_path)
    os.kill(before[role], signal.SIGSTOP)
    process = running.workers[0][0]
    process.terminate()
    assert process.wait(60) == 0
    assert len(running.lines("worker_stopped")) == 1
    assert children(parent) == []
    assert running.lines(f"{role}_died") == [], "it was asked to stop"


@pytest.mark.walk
def test_a_child_that_is_busy_or_suspended_with_its_parent_is_left_alone(
    system, children, tmp_path
) -> None:
    running, parent, before = impatient(system, children, tmp_path, WORKER_CONCURRENCY="6")
    ways = ["spin", "spin", "spin", "sleep", "call", "call"]
    began = time.monotonic()
    sessions = [running.verify(behave=way) for way in ways]
    for session in sessions:
        running.settled(session)
    assert time.monotonic() - began > 8, "longer than it may stand still"

    pids = [parent, *before.values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    running.settled(running.verify(behave="retry"))
    assert set(children(parent)) == set(before.values())
    for name in ("worker_stalled", "periodic_stalled", "worker_died", "periodic_died"):
        assert running.lines(name) == []

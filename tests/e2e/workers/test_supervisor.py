"""The process that keeps a worker running: its children, its signals, and what others leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

AS_THE_FIRST = """
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us
sys.argv = ["workers"]
runpy.run_module("workers", run_name="__main__")
"""
DEAF = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what a signal without a handler is to process 1
os.execv(sys.executable, [sys.executable, "-m", "workers"])
"""


def children(pid: int) -> list[int]:
    # Of every thread: a handler's own process is started by the one that runs its event.
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in threads for child in each.read_text().split()]


def state(pid: int) -> str:
    """The letter of a process's state: Z is one that has ended and that nobody has reaped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("State:\t")[2][0]


def test_web_and_worker_are_a_whole_deployment(system) -> None:
    running = system(BEHAVIOUR="retry")
    event = running.settled(running.verify(), within=30)
    assert event["state"] == "done", "the retry was woken by the worker's own periodic process"


def test_the_periodic_child_is_started_again_and_can_be_left_out(system) -> None:
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
    assert process.wait(10) == 0
    assert "periodic_started" not in log.read_text()


def test_what_a_dead_worker_leaves_behind_is_reaped(system) -> None:
    running = system(HANDLERS="alone")
    running.workers[0][0].terminate()
    assert running.workers[0][0].wait(30) == 0
    process, log = running.processes.python("-c", AS_THE_FIRST, env=running.environment)
    running.workers.append((process, log))
    for _ in range(3):
        session = running.verify()
        running.settled(session)
        # The child that runs events has started the process of a handler.
        (worker,) = (child for child in children(process.pid) if children(child))
        os.kill(worker, signal.SIGKILL)
        running.wait_until(lambda worker=worker: worker not in children(process.pid))
    running.wait_until(lambda: len(children(process.pid)) == 2, within=20)
    assert {state(child) for child in children(process.pid)} <= {"R", "S", "D"}


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
            time.sleep(20)
sys.meta_path.insert(0, Finder())
""")
    path = f"{first}:{running.environment['PYTHONPATH']}"
    environment = running.environment | {"PYTHONPATH": path}
    process, _ = running.processes.python("-c", DEAF, env=environment)
    running.wait_until(marker.exists, within=20)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM


def test_a_stop_while_plugins_are_loaded_is_heeded(system, tmp_path) -> None:
    running = system()
    marker = tmp_path / "loading"
    (tmp_path / "slow_to_load.py").write_text(f"""
import time
from identity_webhooks import on
open({str(marker)!r}, "w").close()
time.sleep(2)
@on("*")
def handle(v): ...
""")
    path = f"{tmp_path}:{running.environment['PYTHONPATH']}"
    environment = running.environment | {"PYTHONPATH": path, "HANDLERS": "slow_to_load"}
    process, log = running.processes.python("-c", DEAF, env=environment)
    running.wait_until(marker.exists, within=20)
    process.terminate()
    assert process.wait(10) == 0
    assert "worker_started" not in log.read_text()

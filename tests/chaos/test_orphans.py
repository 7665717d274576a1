"""A worker's child whose parent was killed has nobody to stop or restart it: it leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.system import environment
from tests.conftest import Processes, Server, children, free_port, state, wait_until


@pytest.mark.parametrize("after", [0, 3], ids=["as it starts", "without any event so far"])
def test_no_child_outlives_its_parent(
    after: float, processes: Processes, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    env = environment(new_server().url, nowhere, tmp_path / "ledger")
    parent, _ = processes.python("-m", "workers", env=env)
    # One that runs events, and a periodic one.
    wait_until(lambda: len(children(parent.pid)) == 2)
    both = children(parent.pid)
    time.sleep(after)
    parent.kill()
    try:
        wait_until(lambda: not any(map(alive, both)))
    finally:
        for child in filter(alive, both):
            os.kill(child, signal.SIGKILL)


def alive(pid: int) -> bool:
    return state(pid) != "Z"

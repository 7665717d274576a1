"""`workers.own_process`: the process beside the worker, started for real."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from identity_webhooks.testing import verification
from service.settings import Settings
from tests.conftest import CANARY, ROOT, Processes, state, wait_until
from workers import plugins
from workers.own_process import IDLE, OwnProcess


def test_one_that_is_idle_ends_and_is_started_again(
    redis, server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whenever it is asked: also at the very moment at which it ends."""
    effects, idle = tmp_path / "effects", 0.5
    given = {
        "HANDLERS": "alone",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/data/handlers'}",
        "EFFECTS": str(effects),
        "REDIS_URL": server.url,
        "STRIPE_API_KEY": f"sk_test_{CANARY}{'0' * 20}",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(ROOT / "tests/data/handlers")
    router = plugins.load(Settings.load("worker"))
    (handler,) = (each for each in router.handlers if each.name == "alone.beside")
    own = OwnProcess([handler], idle=idle)
    runs = 12
    for number in range(runs):
        with own.turn() as is_its_turn:
            assert is_its_turn
            own.run(handler, verification("verified"), [])
        time.sleep(idle - 0.03 + number * 0.01)
    pids = [line.split()[2] for line in effects.read_text().splitlines()]
    assert len(pids) == runs, "each ran once"
    assert 1 < len(set(pids)) <= runs
    assert own._end(10) == IDLE


KEEPER = """
import os, re, sys
from pathlib import Path
from identity_webhooks import on

@on("verified", own_process=True, timeout=60)
def keep(v):
    Path(os.environ["EFFECTS"]).write_text(str(os.getpid()))
    re.match("(a+)+$", "a" * 60 + "b")  # keeps the interpreter's lock, for years
"""
WORKER = """
from identity_webhooks.testing import verification
from service.settings import Settings
from workers import plugins
from workers.own_process import OwnProcess

handlers = plugins.load(Settings.load("worker")).handlers
(handler,) = (each for each in handlers if each.name == "keeper.keep")
own = OwnProcess([handler])
with own.turn():
    own.run(handler, verification("verified"), [])
"""


def test_one_that_keeps_the_interpreter_ends_with_its_worker(
    server, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "keeper.py").write_text(KEEPER)
    effects = tmp_path / "effects"
    env = {
        "HANDLERS": "keeper",
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "EFFECTS": str(effects),
        "REDIS_URL": server.url,
        "STRIPE_API_KEY": f"sk_test_{CANARY}{'0' * 20}",
    }
    worker, _ = processes.python("-c", WORKER, env=env)
    wait_until(lambda: effects.exists() and effects.read_text())
    own = int(effects.read_text())
    worker.kill()
    worker.wait(120)
    wait_until(lambda: state(own) == "Z")

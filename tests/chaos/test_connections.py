"""Two web processes, five workers and a Redis that allows forty connections, as small plans do."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

import urllib3

from service import connection
from tests.chaos.system import Sandbox, deliver, environment, keep_reconciliation_out, read_ledger
from tests.conftest import free_port, wait_until

WEB, WORKERS, SESSIONS, LIMIT = 2, 5, 240, 40
IDLE = {"web": 2, "worker": 2, "periodic": 2}
"""Connections of a process with nothing to do (docs/reliability.md)."""


def test_forty_connections_are_enough(processes, new_server, tmp_path: Path) -> None:
    server = new_server("--maxclients", str(LIMIT))
    sandbox = Sandbox(processes, ("snapshot",))
    ledger, port = tmp_path / "ledger", free_port()
    env = environment(
        server.url, sandbox.url, ledger, LEDGER_FLAKY="0", LEDGER_SLOW="1.5", STRIPE_API_RATE="0"
    )
    with server.client() as client:
        keep_reconciliation_out(client)
        processes.python(
            *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", str(WEB)),
            *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
            env=env,
        )
        for _ in range(WORKERS):
            processes.python("-m", "workers", "--no-periodic", env=env)
        processes.python("-m", "workers", "periodic", env=env)
        receiver = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=8, timeout=5)
        ends = {each.event.session: each for each in sandbox.changes(SESSIONS, within=90)}
        sandbox.close()
        watcher = Watcher(port)
        wait_until(watcher.is_ready, within=30)
        watcher.start()

        deliver(ends.values(), receiver)
        wait_until(lambda: effects(ledger)["slow"] >= SESSIONS, within=60)
        wait_until(lambda: client.zcard("iw:due") == 0, within=30)
        time.sleep(1)  # what ran twice would be seen by now

        assert effects(ledger) == dict.fromkeys(("steady", "slow", "flaky"), SESSIONS)
        assert len({(e.session, e.handler) for e in read_ledger(ledger)}) == 3 * SESSIONS
        idle = 1 + WEB * IDLE["web"] + WORKERS * IDLE["worker"] + IDLE["periodic"]
        wait_until(lambda: connected(client) <= idle, within=60)
        watcher.stop()
        assert watcher.faults == []
        most = (
            WEB * (connection.WEB + connection.LINK)
            + WORKERS * (connection.RQ + connection.worker_connections(20))
            + connection.PERIODIC
        )
        assert most + connection.TOOL + 1 <= LIMIT
        assert client.info("stats")["rejected_connections"] == 0


def effects(ledger: Path) -> Counter[str]:
    return Counter(effect.handler for effect in read_ledger(ledger))


def connected(client) -> int:
    return client.info("clients")["connected_clients"]


class Watcher:
    """Asks all the time whether the receiver is ready."""

    def __init__(self, port: int) -> None:
        self._pool = urllib3.HTTPConnectionPool("127.0.0.1", port, timeout=10)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.faults: list[object] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(15)

    def is_ready(self) -> bool:
        try:
            answer = self._pool.request("GET", "/readyz", retries=False)
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            answer = self._pool.request("GET", "/readyz", retries=False)
            if answer.status != 200:
                self.faults.append(json.loads(answer.data))

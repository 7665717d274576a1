"""Two web processes, five workers and a Redis that allows forty connections, as small plans do."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import urllib3

from service import connection
from tests.chaos.system import (
    Sandbox,
    deliver,
    environment,
    keep_reconciliation_out,
    read_ledger,
)
from tests.conftest import children, free_port, wait_until

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
        gunicorn, _ = processes.python(
            *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", str(WEB)),
            *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
            env=env,
        )
        for _ in range(WORKERS):
            processes.python("-m", "workers", "--no-periodic", env=env)
        processes.python("-m", "workers", "periodic", env=env)
        receiver = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=8, timeout=120)
        ends = {each.event.session: each for each in sandbox.changes(SESSIONS, within=90)}
        sandbox.close()
        wait_until(lambda: len(children(gunicorn.pid)) == WEB)
        web = children(gunicorn.pid)
        watcher = Watcher(port, web)
        watcher.start()

        deliver(ends.values(), receiver)
        wait_until(lambda: effects(ledger)["slow"] >= SESSIONS)
        wait_until(lambda: client.zcard("iw:due") == 0)
        time.sleep(1)  # what ran twice would be seen by now

        assert effects(ledger) == dict.fromkeys(("steady", "slow", "flaky"), SESSIONS)
        assert len({(e.session, e.handler) for e in read_ledger(ledger)}) == 3 * SESSIONS
        idle = 1 + WEB * IDLE["web"] + WORKERS * IDLE["worker"] + IDLE["periodic"]
        wait_until(lambda: connected(client) <= idle)
        watcher.stop()
        assert watcher.faults == []
        assert all(watcher.asked[pid] > 20 for pid in web), "all the time"
        assert children(gunicorn.pid) == web
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
    """Asks each of the web processes all the time whether it is ready."""

    def __init__(self, port: int, web: list[int]) -> None:
        self._connections = {pid: connect(port, pid) for pid in web}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.asked: Counter[int] = Counter()
        self.faults: list[object] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        for each in self._connections.values():
            each.close()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            for pid, each in self._connections.items():
                try:
                    status, body = ask(each, "/readyz")
                except (OSError, http.client.HTTPException) as error:
                    self.faults.append(error)
                    return
                self.asked[pid] += 1
                if status != 200:
                    self.faults.append(json.loads(body))


def ask(client: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    client.request("GET", path)
    answer = client.getresponse()
    return answer.status, answer.read()


def connect(port: int, pid: int) -> http.client.HTTPConnection:
    """Return a connection that this one of the processes has taken, which share the port."""
    for _ in range(200):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        ask(client, "/healthz")
        if server_inode(port, client.sock.getsockname()[1]) in inodes(pid):
            return client
        client.close()
    raise AssertionError(f"{pid} takes no connection")


def server_inode(port: int, other: int) -> str:
    """Return the inode of the server's end of a connection (proc(5), net/tcp)."""
    ends = [f":{port:04X}", f":{other:04X}"]
    rows = map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
    return next(row[9] for row in rows if [row[1][-5:], row[2][-5:]] == ends)


def inodes(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(descriptor.readlink()))
    return {link.removeprefix("socket:[").removesuffix("]") for link in links}

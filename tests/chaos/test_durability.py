"""What Redis loses is lost by Redis alone: one pass of reconciliation brings it back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.inbox import Inbox
from tests.chaos.proxy import Proxy
from tests.chaos.system import (
    CHAOS,
    HANDLERS,
    Change,
    Delivery,
    Sandbox,
    environment,
    keep_reconciliation_out,
    read_ledger,
    tally,
)
from tests.conftest import ROOT, Processes, Server, redis_binary, wait_until


@pytest.fixture
def own_sandbox(processes: Processes) -> Iterator[Sandbox]:
    """A sandbox that lists no other test's events."""
    sandbox = Sandbox(processes, ("snapshot", "thin"))
    yield sandbox
    sandbox.close()


class Service:
    """A worker and a periodic process on a Redis that is about to lose something."""

    def __init__(self, redis_url: str, sandbox: Sandbox, processes: Processes, folder: Path):
        self._ledger = folder / "ledger"
        self._env = environment(
            redis_url, sandbox.url, self._ledger, LEDGER_FLAKY="0", KILLPOINT_TIMES="0.3"
        )
        for role in ([], ["periodic"]):
            processes.python("-m", "workers", *role, env=self._env)

    def reconcile(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "workers", "reconcile", "--deep"],
            cwd=ROOT,
            env=self._env,
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
        )

    def completed(self) -> int:
        return len(read_ledger(self._ledger))

    def require_kept(self, changes: set[Change]) -> None:
        effects = read_ledger(self._ledger)
        for handler in HANDLERS:
            counted = tally(changes, effects, handler)
            assert counted.kept, (handler, counted)


def halves(events: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
    """Two halves that share no session, so that both have changes of their own."""
    sessions = sorted({each.event.session for each in events})
    early = set(sessions[: len(sessions) // 2])
    first = [each for each in events if each.event.session in early]
    return first, [each for each in events if each.event.session not in early]


def accept(redis: Server, events: list[Delivery]) -> None:
    with redis.client() as client:
        inbox = Inbox(client)
        for each in events:
            inbox.accept(each.event)


def missing(redis: Server, events: list[Delivery]) -> int:
    with redis.client() as client:
        inbox = Inbox(client)
        return sum(inbox.find(each.event.key) is None for each in events)


def quiet(redis: Server) -> bool:
    with redis.client() as client:
        return client.zcard("iw:due") == 0


class Disk:
    """What of a server's files is on the disk for certain, and what a power cut takes."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def synced(self) -> dict[int, int]:
        """Return the size up to which each file was synced, by inode: files get renamed."""
        sizes: dict[int, int] = {}
        for inode, size in map(str.split, self._notes.read_text().splitlines()):
            sizes[int(inode)] = max(int(size), sizes.get(int(inode), 0))
        return sizes

    def cut_power(self, redis: Server, synced: dict[int, int] | None = None) -> None:
        """Kill the server, and cut its append-only files to the last byte that was synced.

        With `synced` to what was by an earlier moment: on a disk that has synced nothing since.
        """
        redis.process.kill()
        redis.process.wait()
        synced = self.synced() if synced is None else synced
        for file in redis.folder.glob("appendonlydir/*.aof"):
            os.truncate(file, synced.get(file.stat().st_ino, 0))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk of the server of this test, which notes each sync (synced.c)."""
    if shutil.which("cc") is None and not os.environ.get("CI"):
        pytest.skip("needs a C compiler, to note what the server syncs")
    notes, library, script = (tmp_path / name for name in ("synced", "synced.so", "server"))
    subprocess.run(
        ["cc", "-O", "-shared", "-fPIC", "-o", library, CHAOS / "synced.c"], check=True, timeout=120
    )
    script.write_text(
        f'#!/bin/sh\nexec env SYNCED="{notes}" LD_PRELOAD="{library}" "{redis_binary()}" "$@"\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("TEST_REDIS_SERVER", str(script))
    return Disk(notes)


def test_power_loss(
    own_sandbox: Sandbox,
    processes: Processes,
    disk: Disk,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = own_sandbox.changes(sessions=40)
    first, second = halves(events)
    redis = new_server("--appendfsync", "everysec")
    with redis.client() as client:
        keep_reconciliation_out(client)
    service = Service(redis.url, own_sandbox, processes, tmp_path)
    accept(redis, first)
    wait_until(lambda: service.completed() > 5)
    before = disk.synced()
    wait_until(lambda: disk.synced() != before)
    synced, done = disk.synced(), service.completed()
    accept(redis, second)
    wait_until(lambda: service.completed() > done)  # the worker goes on
    disk.cut_power(redis, synced)
    redis.start()
    assert missing(redis, events) > 10, "the power cut lost nothing: this test proves nothing"

    service.reconcile()
    wait_until(lambda: quiet(redis))
    service.require_kept({each.change for each in events})


def test_power_loss_with_a_sync_for_every_write(
    sandbox: Sandbox,
    processes: Processes,
    disk: Disk,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = sandbox.changes(sessions=10)
    first, second = halves(events)
    redis = new_server("--appendfsync", "always")
    with redis.client() as client:
        keep_reconciliation_out(client)
    service = Service(redis.url, sandbox, processes, tmp_path)
    accept(redis, first)
    wait_until(lambda: service.completed() > 5)
    accept(redis, second)
    disk.cut_power(redis)
    redis.start()
    assert missing(redis, events) == 0

    wait_until(lambda: quiet(redis))
    service.require_kept({each.change for each in events})


def test_failover_to_a_stale_replica(
    own_sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = own_sandbox.changes(sessions=20)
    first, second = halves(events)
    primary = new_server("--repl-diskless-sync-delay", "0")
    with Proxy(primary.port) as front, Proxy(primary.port) as link:
        with primary.client() as client:
            keep_reconciliation_out(client)
        replica = new_server("--replicaof", "127.0.0.1", str(link.port))
        service = Service(f"redis://127.0.0.1:{front.port}/0", own_sandbox, processes, tmp_path)
        accept(primary, first)
        wait_until(lambda: missing(replica, first) == 0)
        link.refusing = True
        link.cut()
        done = service.completed()
        accept(primary, second)
        wait_until(lambda: service.completed() > done)
        primary.process.kill()
        with replica.client() as client:
            client.replicaof("NO", "ONE")
        front.target = replica.port
        assert missing(replica, events) >= len(second), "nothing got lost: this test proves nothing"

        service.reconcile()
        wait_until(lambda: quiet(replica))
        service.require_kept({each.change for each in events})


@pytest.mark.walk
def test_redis_wiped(
    own_sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = own_sandbox.changes(sessions=20)
    redis = new_server()
    with redis.client() as client:
        keep_reconciliation_out(client)
        service = Service(redis.url, own_sandbox, processes, tmp_path)
        accept(redis, events)
        wait_until(lambda: service.completed() > 5)
        client.flushall()
        keep_reconciliation_out(client)

        service.reconcile()
        wait_until(lambda: quiet(redis))
    service.require_kept({each.change for each in events})

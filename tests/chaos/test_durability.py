"""What Redis loses is lost by Redis alone: one pass of reconciliation brings it back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.inbox import Inbox
from tests.chaos.proxy import Proxy
from tests.chaos.system import (
    HANDLERS,
    Change,
    Delivery,
    Sandbox,
    environment,
    keep_reconciliation_out,
    read_ledger,
    tally,
)
from tests.conftest import ROOT, Processes, Server, wait_until

UNSYNCED = 2.0
"""Seconds of the append-only file that a power cut takes with `everysec`: one by its name, two when
the disk is slow (https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/)."""


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
        self._env = environment(redis_url, sandbox.url, self._ledger, LEDGER_FLAKY="0")
        for role in ([], ["periodic"]):
            processes.python("-m", "workers", *role, env=self._env)

    def reconcile(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "workers", "reconcile", "--deep"],
            cwd=ROOT,
            env=self._env,
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
        )

    def completed(self) -> int:
        return len(read_ledger(self._ledger))

    def require_kept(self, changes: set[Change]) -> None:
        effects = read_ledger(self._ledger)
        for handler in HANDLERS:
            counted = tally(changes, effects, handler)
            assert counted.kept, (handler, counted)


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


def test_power_loss(
    own_sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = own_sandbox.changes(sessions=40)
    redis = new_server("--appendfsync", "everysec")
    with redis.client() as client:
        keep_reconciliation_out(client)
    service = Service(redis.url, own_sandbox, processes, tmp_path)
    (aof,) = redis.folder.glob("appendonlydir/*.incr.aof")
    sizes: list[tuple[float, int]] = []
    for number in range(0, len(events), 4):
        accept(redis, events[number : number + 4])
        sizes.append((time.monotonic(), aof.stat().st_size))
        time.sleep(0.08)
    redis.process.kill()
    redis.process.wait()
    synced = max(size for moment, size in sizes if moment < time.monotonic() - UNSYNCED)
    with aof.open("r+b") as file:
        file.truncate(synced)
    redis.start()
    assert missing(redis, events) > 10, "the power cut lost nothing: this test proves nothing"

    with redis.client() as client:
        keep_reconciliation_out(client)
    service.reconcile()
    wait_until(lambda: quiet(redis), within=60)
    service.require_kept({each.change for each in events})


def test_failover_to_a_stale_replica(
    own_sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = own_sandbox.changes(sessions=20)
    half = len(events) // 2
    primary = new_server("--repl-diskless-sync-delay", "0")
    with Proxy(primary.port) as front, Proxy(primary.port) as link:
        with primary.client() as client:
            keep_reconciliation_out(client)
        replica = new_server("--replicaof", "127.0.0.1", str(link.port))
        service = Service(f"redis://127.0.0.1:{front.port}/0", own_sandbox, processes, tmp_path)
        accept(primary, events[:half])
        wait_until(lambda: missing(replica, events[:half]) == 0, within=30)
        link.refusing = True
        link.cut()
        accept(primary, events[half:])
        wait_until(lambda: service.completed() > half, within=30)
        primary.process.kill()
        with replica.client() as client:
            client.replicaof("NO", "ONE")
        front.target = replica.port
        assert missing(replica, events) >= half, "nothing got lost: this test proves nothing"

        service.reconcile()
        wait_until(lambda: quiet(replica), within=60)
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
        wait_until(lambda: service.completed() > 5, within=30)
        client.flushall()
        keep_reconciliation_out(client)

        service.reconcile()
        wait_until(lambda: quiet(redis), within=60)
    service.require_kept({each.change for each in events})

"""A Redis that answers, but not as it should: nothing is taken then, and nobody gives up."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from service.inbox import Inbox
from tests.chaos.system import (
    HANDLERS,
    Sandbox,
    deliver,
    environment,
    keep_reconciliation_out,
    read_ledger,
    start_receiver,
    tally,
)
from tests.conftest import Processes, Server, wait_until


def set_trouble(redis: Server, name: str, *, on: bool) -> None:
    """Begin one of the troubles, or end it."""
    with redis.client() as client:
        match name:
            case "read-only":
                client.replicaof(*(("127.0.0.1", "1") if on else ("NO", "ONE")))
            case "too few replicas":
                client.config_set("min-replicas-to-write", int(on))
            case "full":
                client.config_set("maxmemory", int(on))
            case "disk full":
                (aof,) = redis.folder.glob("appendonlydir/*.incr.aof")
                size = aof.stat().st_size if on else resource.RLIM_INFINITY
                limits = (size, resource.RLIM_INFINITY)
                resource.prlimit(redis.process.pid, resource.RLIMIT_FSIZE, limits)


def refuses_to_write(client: Redis) -> bool:
    try:
        client.set("filler", "x")
    except ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param("read-only", marks=pytest.mark.walk),
        pytest.param("too few replicas", marks=pytest.mark.walk),
        "full",
        "disk full",
    ],
)
def test_while_redis_refuses_to_write(
    trouble: str,
    sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    redis = new_server()
    env = environment(
        redis.url, sandbox.url, tmp_path / "ledger", LEDGER_FLAKY="0", KILLPOINT_TIMES="0.3"
    )
    events = sandbox.changes(sessions=20)
    before, during = events[: len(events) // 2], events[len(events) // 2 :]
    with redis.client() as client, start_receiver(processes, env) as receiver:
        keep_reconciliation_out(client)
        started = [processes.python("-m", "workers", *r, env=env) for r in ((), ("periodic",))]
        running = [process for process, _ in started]
        deliver(before, receiver)
        # At its start a worker would refuse a replica.
        wait_until(lambda: all("_started" in log.read_text() for _, log in started))
        set_trouble(redis, trouble, on=True)
        if trouble != "read-only":
            running.append(processes.python("-m", "workers", env=env)[0])
        if trouble == "disk full":
            # What fills the disk is a write; with `everysec` it is answered before that is known.
            # It is no delivery: one that was answered so is known, and answered 200 from then on.
            wait_until(lambda: refuses_to_write(client))
        assert {each.post(receiver) for each in during} == {503}
        if trouble == "full":
            # A full Redis is emptied, or it would stay full for ever.
            wait_until(lambda: client.zcard("iw:due") == 0)
        else:
            time.sleep(3)
        assert {process.poll() for process in running} == {None}
        set_trouble(redis, trouble, on=False)
        deliver(during, receiver)
        wait_until(lambda: client.zcard("iw:due") == 0)
    effects = read_ledger(tmp_path / "ledger")
    assert {effect.attempt for effect in effects} == {"1"}
    for handler in HANDLERS:
        counted = tally({each.change for each in events}, effects, handler)
        assert counted.kept, (handler, counted)


def test_workers_that_start_on_a_full_redis_empty_it(
    sandbox: Sandbox, processes: Processes, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    redis = new_server()
    env = environment(redis.url, sandbox.url, tmp_path / "ledger", LEDGER_FLAKY="0")
    events = sandbox.changes(sessions=5)
    with redis.client() as client:
        keep_reconciliation_out(client)
        for each in events:
            Inbox(client).accept(each.event)
        set_trouble(redis, "full", on=True)
        for role in ((), ("periodic",)):
            processes.python("-m", "workers", *role, env=env)
        wait_until(lambda: client.zcard("iw:due") == 0)
    for handler in HANDLERS:
        counted = tally({each.change for each in events}, read_ledger(tmp_path / "ledger"), handler)
        assert counted.kept, (handler, counted)

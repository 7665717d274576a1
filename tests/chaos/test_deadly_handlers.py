"""A handler that ends its process again and again costs one worker, and no other event."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.inbox import Inbox, Record
from tests.chaos.system import (
    HANDLERS,
    Sandbox,
    environment,
    keep_reconciliation_out,
    read_ledger,
    tally,
)
from tests.conftest import Processes, Server, wait_until


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("exit", "its process died (exit code 0)"),
        pytest.param("segfault", "its process died (exit code -11)", marks=pytest.mark.walk),
        pytest.param(
            "out of memory, killed", "its process died (exit code -9)", marks=pytest.mark.walk
        ),
        pytest.param("out of memory, refused", "MemoryError", marks=pytest.mark.walk),
    ],
)
def test_others_complete_and_spend_no_attempt(
    way: str,
    reason: str,
    sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    events = sandbox.changes(sessions=20)
    victim = events[len(events) // 2].change
    redis = new_server()
    env = environment(
        redis.url,
        sandbox.url,
        tmp_path / "ledger",
        HANDLERS="deadly,ledger",
        DEADLY=way,
        DEADLY_CHANGE=" ".join(victim),
        KILLPOINT_TIMES="0.2",
        LEDGER_FLAKY="0",
    )
    with redis.client() as client:
        keep_reconciliation_out(client)
        for each in events:
            Inbox(client).accept(each.event)
        _, log = processes.python("-m", "workers", env=env)
        wait_until(lambda: client.zcard("iw:due") == 0, within=240)
        records = list(Inbox(client).records("all", 1000))
    said = [json.loads(line) for line in log.read_text().splitlines()]
    died = [line for line in said if line["event"] == "worker_died"]
    assert len(died) == (0 if reason == "MemoryError" else 1), "then it has a process beside it"
    assert all("deadly.deadly" in line["running"] for line in died)
    assert [line for line in said if line["event"] == "event_quarantined"] == []

    def is_victim(record: Record) -> bool:
        return (record.event.session, record.event.kind) == victim

    dead = [record for record in records if record.state == "dead"]
    assert dead
    assert all(is_victim(record) for record in dead)
    assert all(r.reason.startswith(f"deadly.deadly: failed: {reason}") for r in dead)
    others = {each.change for each in events} - {victim}
    effects = [e for e in read_ledger(tmp_path / "ledger") if e.change != victim]
    for handler in HANDLERS:
        counted = tally(others, effects, handler)
        assert counted.kept, (handler, counted)
    attempts = {p.attempts for r in records if not is_victim(r) for p in r.handlers.values()}
    assert attempts == {1}

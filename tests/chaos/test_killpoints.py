"""Every step of the way, and everything that can go wrong right before and right after it.

`-m 'not walk'` leaves a sample of the product.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.inbox import Inbox, keys
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

STEPS = {
    # The call that is spoilt, and the process that makes it.
    "accept": (2, "web"),
    "claim": (2, "worker"),
    "link": (1, "worker"),
    "fetch": (2, "worker"),
    "handler": (3, "worker"),
    "save_progress": (3, "worker"),
    "renew": (1, "worker"),
    "release": (2, "worker"),
    "finish": (2, "worker"),
    "sweep": (1, "periodic"),
}
# How many effects each may repeat, of all handlers together, when it strikes a worker: where the
# whole process is struck, one event of each of the two sessions is in hand, and each may be between
# the effect of one handler and the note of it (the two start together, so that is no rare case).
# After SIGTERM what runs is noted, and a reply that is lost is that of one thread.
FAULTS = {"kill": 2, "term": 0, "stop": 2, "cut": 2, "lose-reply": 1}
ROLES = {"--no-periodic": "worker", "periodic": "periodic"}
TIMES = 0.3
"""The times of the inbox are shortened by this, so that a test takes seconds."""

STOPPED_FOR = 2 * keys.LEASE * TIMES


def points() -> list[pytest.ParameterSet]:
    product = itertools.product(STEPS, ("before", "after"), FAULTS)
    return [
        # A diagonal through the product is a sample with every step and every fault in it.
        pytest.param(*point, marks=() if number % 11 == 0 else pytest.mark.walk)
        for number, point in enumerate(product)
    ]


@pytest.mark.parametrize(("step", "when", "fault"), points())
def test_nothing_is_lost_doubled_or_counted_against_a_handler(
    step: str,
    when: str,
    fault: str,
    sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    nth, who = STEPS[step]
    ledger, fired = tmp_path / "ledger", tmp_path / "fired"
    allowed = FAULTS[fault] if who == "worker" else 0
    # On a busy machine a short one runs out by itself, which is a repeat.
    lease_times = TIMES if allowed else 1.0
    redis = new_server()
    env = environment(
        redis.url,
        sandbox.url,
        ledger,
        KILLPOINT_TIMES=str(TIMES),
        KILLPOINT_LEASE_TIMES=str(lease_times),
        KILLPOINT_FIRED=str(fired),
        KILLPOINT_STOPPED_FOR=str(STOPPED_FOR),
        LEDGER_FLAKY="1",
        # For a renewal a handler must take longer than a third of the lease.
        LEDGER_SLOW=str(keys.LEASE * lease_times / 2 if step == "renew" else 0.5),
    )
    armed = env | {"KILLPOINT": f"{step}:{when}:{nth}:{fault}"}
    events = sandbox.changes(sessions=2)
    changes = {each.change for each in events}
    with redis.client() as client:
        keep_reconciliation_out(client)
        if who == "web":
            # A web process that stands still is asked again meanwhile.
            deliver(events, start_receiver(processes, armed, patience=STOPPED_FOR / 2))
        else:
            for each in events:
                Inbox(client).accept(each.event)
        for role, count in {"--no-periodic": 2, "periodic": 2 if who == "periodic" else 1}.items():
            this = armed if who == ROLES[role] else env
            for _ in range(count):
                processes.python("-m", "workers", *role.split(), env=this)
        wait_until(fired.exists)
        if fault == "stop":
            time.sleep(STOPPED_FOR + 1)
        wait_until(lambda: client.zcard("iw:due") == 0)

        effects = read_ledger(ledger)
        counted = {handler: tally(changes, effects, handler) for handler in HANDLERS}
        assert all(each.kept for each in counted.values()), counted
        repeats = sum(each.repeats for each in counted.values())
        assert repeats <= allowed, counted
        # No event is struck twice.
        assert max(Counter(effect.change for effect in effects).values()) <= len(HANDLERS) + 1
        records = list(Inbox(client).records("all", 1000))
    assert {record.key for record in records} <= {each.event.key for each in events}
    worked = [record for record in records if record.handlers]
    assert len(worked) == len(changes)
    for record in worked:
        assert record.state == "done"
        attempts = {name: p.attempts for name, p in record.handlers.items()}
        assert attempts == {
            "audit.log_event": 1,
            "ledger.steady": 1,
            "ledger.slow": 1,
            "ledger.flaky": 2,
        }

"""What the lists cost by which events are found, and how fast they find them.

python -m tests.benchmarks.scale.finding    prints it for each server there is, within a minute
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from redis import Redis

from service.inbox import Claim, Filter, Inbox, Progress
from tests.benchmarks import machine
from tests.benchmarks.scale import growth, life

SETTLED, DEAD, OTHERS = 100_000, 500, 2_000
"""Settled events; dead ones of one handler; dead ones of others."""
ROUNDS = 7
LOOK = 1_000
"""Records that a page reads at most; the next page goes on where it stopped."""
AT_MOST = 200.0
"""Milliseconds."""


@dataclass(frozen=True)
class Found:
    """What was measured on one server.

    Attributes:
        server: its name.
        total: bytes of `used_memory` for each settled event.
        bytes: of these, those of each list.
        milliseconds: for a page of 100 events, by what was asked for.
    """

    server: str
    total: float
    bytes: dict[str, float]
    milliseconds: dict[str, float]


def measure(program: str) -> Found:
    """Measure it on this Redis."""
    with machine.redis_server(program) as server, Redis(port=server.port) as client:
        commands = life.record(server, settled=True)
        before = growth.used(client)
        life.repeat(server, commands, SETTLED)
        growth.wait_for_answers(client)
        total = (growth.used(client) - before) / SETTLED
        weighed = growth.listed(client, SETTLED)
        inbox = Inbox(client, limit=life.LIMIT)
        for number in range(DEAD + OTHERS):
            die(inbox, number, "mail.send" if number < DEAD else "crm.save")
        return Found(growth.name_of(server), total, weighed, _times(inbox))


def die(inbox: Inbox, number: int, handler: str) -> None:
    """Have an event die of a handler."""
    inbox.accept(life.event(f"dead{number:020}"))
    (claim,) = inbox.claim()
    assert isinstance(claim, Claim)
    inbox.save_progress(claim, handler, Progress("dead", 3, reason="failed: KeyError at a.py:1"))
    inbox.finish(claim, "dead", outcome="verified", reason=f"{handler}: failed: KeyError at a.py:1")


def _times(inbox: Inbox) -> dict[str, float]:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    asked = {
        "all": Filter(),
        "done": Filter(state="done"),
        "dead": Filter(state="dead"),
        "dead of a handler": Filter(state="dead", handler="mail.send"),
        "dead for a reason": Filter(state="dead", reason="failed KeyError"),
        "of a session": Filter(session=f"vs_{life.unique(SETTLED // 2)}"),
        "of an account that has none": Filter(account="acct_1"),
        "done since an hour, of a handler": Filter(
            state="done", handler=life.HANDLERS[0], since=hour_ago
        ),
        f"done, of a handler that none has ({LOOK:,} looked at)": Filter(
            state="done", handler="no.such"
        ),
    }
    return {
        name: _milliseconds(lambda wanted=wanted: inbox.search.page(wanted, 100, look=LOOK))
        for name, wanted in asked.items()
    }


def _milliseconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return median(took)


def table(found: Found) -> str:
    """Return it as text."""
    lines = [f"{found.server}, {SETTLED:,} settled and {DEAD + OTHERS:,} dead events"]
    lines.append(f"  bytes for a settled event: {found.total:.0f}, of which")
    lines += [f"    {size:5.1f}  {name}" for name, size in found.bytes.items()]
    lines.append(f"  ms for a page of 100 (median of {ROUNDS})")
    lines += [f"    {took:5.1f}  {name}" for name, took in found.milliseconds.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for program in machine.redis_servers():
        sys.stdout.write(table(measure(program)))

"""How often one event asks Redis on a worker, counted at the server.

What accepting it costs stands in tests/integration/inbox/test_inbox.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from identity_webhooks import Verification, on
from service.inbox.keys import QUEUE
from service.metrics import Metrics
from tests.conftest import Server
from workers import heartbeat, rq_worker


@on("verified")
def handle(v: Verification) -> None:
    """Do nothing."""


@pytest.fixture
def commands(
    redis: Redis, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], None]], list[str]]:
    """Return the names of the commands sent during a call; `lua` for each that a script ran.

    Without what a process sends every second or so, and not for each event: counters and renewals.
    """
    monkeypatch.setattr(Metrics, "flush", lambda _: None)
    monkeypatch.setattr(heartbeat, "LEASE", 3600)

    def commands(call: Callable[[], None]) -> list[str]:
        names = []
        with server.client() as other, other.monitor() as monitor:
            call()
            redis.echo("that was all")
            while (seen := monitor.next_command())["command"] != "ECHO that was all":
                inside = seen["client_type"] == "lua"
                names.append("lua" if inside else seen["command"].split()[0])
        return names

    return commands


def test_an_idle_worker_asks_redis_three_times(desk, redis, commands) -> None:
    processor = desk.processor(handle)

    def work() -> None:
        assert rq_worker.wait_for_wakeup(redis, f"rq:queue:{QUEUE}", 1)
        (claim,) = processor.claim()
        processor.process(claim)

    def accepted() -> object:
        return desk.accept("verified", desk.sandbox.session("verified"))

    accepted()
    work()  # from now on Redis has the scripts
    event = accepted()
    seen = commands(work)

    assert desk.record(event).state == "done"
    assert seen.count("BLMOVE") == 1, "it waited for the wake-up"
    sent = [name for name in seen if name != "lua"]
    assert sent == ["BLMOVE", "EVALSHA", "EVALSHA"], "wait, take, finish"
    assert len(seen) <= 27, "and what the scripts ask"


def test_a_busy_one_asks_once_for_an_event(desk, commands) -> None:
    processor = desk.processor(handle)
    events = [desk.accept("verified", desk.sandbox.session("verified")) for _ in range(3)]
    (claim,) = processor.claim()
    following = processor.process(claim, and_claim=True)  # from now on Redis has the scripts

    seen = commands(lambda: processor.process(following, and_claim=True))

    assert [desk.record(event).state for event in events] == ["done", "done", "pending"]
    sent = [name for name in seen if name != "lua"]
    assert sent == ["EVALSHA", "EVALSHA"], "finish this one, and take the next"
    assert len(seen) <= 26, "with what the scripts ask"

"""What the periodic process does again and again, in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import redis as redis_py
from redis import Redis

from service import processes
from service.inbox import Inbox, keys
from service.processes import Process
from service.settings import Settings
from service.survey import survey
from tests.conftest import Server, wait_until
from tests.integration.claims import event
from tests.integration.workers.conftest import KEY
from tests.integration.workers.fake_stripe import FakeStripe
from tests.logs import Said
from workers import beat, periodic
from workers.stop import Stop


@pytest.fixture
def running(
    server: Server, fake: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[None]]:
    """Run it for a while, with more settings."""
    monkeypatch.setattr(periodic, "SWEEP_PERIOD", 0.01)
    monkeypatch.setattr(beat, "beat", lambda: None)
    monkeypatch.setattr(periodic, "reconcile_for_ever", lambda *_: None)
    given = {"redis_url": server.url, "stripe_api_key": KEY, "stripe_api_base": fake.url}

    @contextmanager
    def running(**more: Any) -> Iterator[None]:
        stop = Stop()
        settings = Settings(**given, **more)
        thread = threading.Thread(target=periodic.sweep_until, args=(stop, settings))
        thread.start()
        try:
            yield
        finally:
            stop.request()
            thread.join(60)
        assert not thread.is_alive()

    return running


def report(inbox: Inbox, age: float) -> str:
    """Return what a worker said of itself so many seconds ago."""
    said = Process(role="worker", pid=1, started=1, counts={})
    return f"{(inbox.now() - age) * 1000:.0f} {said.encoded()}"


def test_reports_of_processes_that_ended_long_ago_are_deleted(running, redis: Redis) -> None:
    inbox = Inbox(redis)
    ages = {"long ago": processes.FORGOTTEN + 60, "lately": processes.FORGOTTEN - 60, "alive": 1}
    redis.hset(keys.PROCESSES, mapping={name: report(inbox, age) for name, age in ages.items()})
    with running():
        wait_until(lambda: not redis.hexists(keys.PROCESSES, "long ago"))
    assert redis.hexists(keys.PROCESSES, "lately")
    assert redis.hexists(keys.PROCESSES, "alive")


def test_what_is_past_due_is_woken_counted_and_said(running, redis: Redis, said: Said) -> None:
    inbox = Inbox(redis)
    for name in ("due", "later"):
        inbox.accept(event(name, session=name))
    redis.delete("rq:queue:identity")
    redis.zadd(keys.DUE, {"evt_due": 1})
    redis.zadd(keys.DUE, {"evt_later": (inbox.now() + 600) * 1000})
    with running():
        wait_until(lambda: redis.llen("rq:queue:identity"))
    assert b"evt_due" in redis.lindex("rq:queue:identity", 0)
    assert redis.llen("rq:queue:identity") == 1
    (line,) = [line for line in said() if line["event"] == "swept"]
    assert (line["woken"], line["postponed"], line["stale"]) == (1, 0, 0)
    (process,) = survey(redis).running
    assert process.process.counts["redriven"] == 1
    assert process.process.role == "periodic"


@pytest.mark.parametrize("what", ["sweep", "forget"])
def test_while_redis_refuses_it_goes_on(
    what: str, running, redis: Redis, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Exception] = [redis_py.ConnectionError("away"), redis_py.ResponseError("LOADING")]
    of, name = (Inbox, "sweep") if what == "sweep" else (processes, "forget")
    real = getattr(of, name)

    def failing(*args: object) -> object:
        if left:
            raise left.pop()
        return real(*args)

    monkeypatch.setattr(of, name, failing)
    beats = []
    monkeypatch.setattr(beat, "beat", lambda: beats.append(len(left)))
    Inbox(redis).accept(event())
    redis.delete("rq:queue:identity")
    redis.zadd(keys.DUE, {"evt_1": 1})
    with running():
        wait_until(lambda: not left and redis.llen("rq:queue:identity"))
    assert len([line for line in said() if line["event"] == "sweep_failed"]) == 2
    assert {2, 1} <= set(beats), "Redis is away, and the process well"


@pytest.mark.parametrize(("days", "is_said"), [(30, True), (31, False)])
def test_start_and_end_are_said_and_what_a_setting_gives_up(
    running, said: Said, days, is_said
) -> None:
    with running(retention_days=days):
        wait_until(lambda: any(line["event"] == "periodic_started" for line in said()))
    lines = said()
    assert (lines[0]["event"], lines[0]["pid"]) == ("periodic_started", os.getpid())
    assert (lines[-1]["event"], lines[-1]["pid"]) == ("periodic_stopped", os.getpid())
    warned = [line for line in lines if line["event"] == "retention_short"]
    assert len(warned) == is_said
    if is_said:
        assert (lines[1], lines[1]["level"]) == (warned[0], "warning")
        assert warned[0]["hint"].startswith("RETENTION_DAYS is 30: ")


def test_it_is_shown_as_alive_at_once_and_as_ended_at_its_end(running, redis: Redis) -> None:
    with running():
        wait_until(lambda: survey(redis).running)
        (process,) = survey(redis).running
        assert not process.process.ended
    (process,) = survey(redis).running
    assert process.process.ended

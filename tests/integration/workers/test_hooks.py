"""The life of a plugin: what it is called for besides events, and what it may rely on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from identity_webhooks import Dead, Discard, Retry, Verification, on, on_dead
from identity_webhooks.event import Event
from service.inbox import AcceptResult, Inbox
from tests.conftest import wait_until
from workers import hooks

PLUGIN = """
import os, threading
from pathlib import Path
from identity_webhooks import Verification, on, on_start, on_stop

LIFE = Path(os.environ["LIFE"])
state = threading.local()
def note(word: str) -> None:
    with LIFE.open("a") as file:
        file.write(f"{word} {os.getpid()}\\n")

note("imported")

@on_start
def start() -> None:
    threading.Thread(target=note, args=["thread"], daemon=True).start()
    note("start")
    if os.environ.get("FAIL"):
        raise RuntimeError("no database at postgresql://u:secret@h")

@on("verified", own_process=bool(os.environ.get("OWN")))
def handle(v: Verification) -> None:
    note("handle")

@on_stop
def stop() -> None:
    note("stop")
"""
Life = Callable[..., list[list[str]]]


@pytest.fixture
def worker(server, redis, sandbox, processes, tmp_path) -> Callable[..., Any]:
    """Start a worker with the plugin; its process, its log, and what the plugin wrote."""
    (tmp_path / "living.py").write_text(PLUGIN)
    life = tmp_path / "life"

    def worker(**extra: str) -> tuple[Any, Any, Callable[[], list[list[str]]]]:
        env = {
            "REDIS_URL": server.url,
            "STRIPE_API_KEY": "sk_test_workers",
            "STRIPE_API_BASE": sandbox.url,
            "HANDLERS": "living",
            "PYTHONPATH": str(tmp_path),
            "LIFE": str(life),
        }
        process, log = processes.python("-m", "workers", env=env | extra)

        def lines() -> list[list[str]]:
            return [line.split() for line in life.read_text().splitlines()] if life.exists() else []

        return process, log, lines

    return worker


def accept(redis, sandbox) -> None:
    session = sandbox.session("verified")
    event = Event("evt_1", "verified", "snapshot", session.id, 1_790_000_000, livemode=False)
    assert Inbox(redis).accept(event) is AcceptResult.NEW


def test_start_and_stop_are_called_in_the_process_that_runs_handlers(
    worker, redis, sandbox
) -> None:
    process, log, life = worker()
    accept(redis, sandbox)
    wait_until(lambda: "event_settled" in log.read_text())
    process.terminate()
    assert process.wait(30) == 0
    words = [word for word, _ in life()]
    assert words[0] == "imported"
    assert sorted(words[1:3]) == ["start", "thread"]
    assert words[3:] == ["handle", "stop"]
    (child,) = {pid for word, pid in life() if word != "imported"}
    assert child != life()[0][1] == str(process.pid)


def test_a_process_of_its_own_calls_them_too(worker, redis, sandbox) -> None:
    process, log, life = worker(OWN="1")
    accept(redis, sandbox)
    wait_until(lambda: "event_settled" in log.read_text())
    own = next(pid for word, pid in life() if word == "handle")
    assert ["start", own] in life()
    process.terminate()
    assert process.wait(30) == 0
    wait_until(lambda: ["stop", own] in life())


def test_a_start_that_fails_runs_no_event_and_is_tried_again(worker, redis, sandbox) -> None:
    process, log, life = worker(FAIL="1")
    accept(redis, sandbox)
    wait_until(lambda: [word for word, _ in life()].count("start") >= 2)
    process.terminate()
    process.wait(30)
    assert not {"handle", "stop"} & {word for word, _ in life()}
    said = [json.loads(line) for line in log.read_text().splitlines()]
    failed = next(line for line in said if line["event"] == "worker_failed")
    assert failed["error"] == "RuntimeError"
    assert failed["where"].endswith(" start")


class TestDead:
    def settle(self, desk, handler, *more) -> list[Dead]:
        told: list[Dead] = []

        @on_dead
        def alarm(dead: Dead) -> None:
            told.append(dead)

        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.settle(desk.processor(handler, alarm, *more), event)
        return told

    def test_is_told_with_the_reason_and_the_key(self, desk) -> None:
        @on("verified", retries=1)
        def failing(v: Verification) -> None:
            assert v.last_attempt is (v.attempt == 2)
            raise Retry("ledger is closed")

        (dead,) = self.settle(desk, failing)
        assert (dead.handler, dead.attempts) == ("p.failing", 2)
        assert dead.reason == "retry: ledger is closed"
        assert dead.idempotency_key == f"{dead.event.key}:p.failing"

    def test_is_not_told_of_what_was_done(self, desk) -> None:
        @on("verified")
        def fine(v: Verification) -> None: ...

        assert self.settle(desk, fine) == []

    @pytest.mark.parametrize("behaviour", ["raises", "hangs"])
    def test_one_that_fails_holds_nothing_up(self, behaviour, desk, monkeypatch) -> None:
        monkeypatch.setattr(hooks, "DEAD_LIMIT", 0.1)

        @on("verified")
        def failing(v: Verification) -> None:
            raise Discard("no such user")

        @on_dead
        def bad(dead: Dead) -> None:
            if behaviour == "raises":
                raise ValueError
            time.sleep(1)

        assert len(self.settle(desk, failing, bad)) == 1
        name = "hook_failed" if behaviour == "raises" else "hook_hangs"
        assert desk.logged(name)[0]["handler"] == "p.bad"


def test_what_one_handler_changes_the_next_does_not_see(desk) -> None:
    seen = []

    @on("verified")
    def first(v: Verification) -> None:
        v.session.metadata["user_id"] = "changed"
        v.session.status = "canceled"
        assert type(v.session).__name__ == "VerificationSession"

    @on("verified")
    def second(v: Verification) -> None:
        seen.append((v.subject, v.session.status))

    session = desk.sandbox.session("verified", metadata={"user_id": "u-1"})
    event = desk.accept("verified", session)
    assert desk.settle(desk.processor(first, second), event).state == "done"
    assert seen == [("u-1", "verified")]

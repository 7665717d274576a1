"""How a child is started, what its end says, and when it counts as stalled."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from identity_webhooks.handlers import MARKS
from service import redis_url
from service.settings import Settings
from tests.conftest import wait_until
from tests.logs import Said
from workers import beat, supervisor
from workers.in_hand import Held, InHand
from workers.pool import CLAIM_AT_ONCE
from workers.router import Router
from workers.stop import Stop
from workers.supervisor import (
    LIVED,
    RUNNING_PERIOD,
    STALLED,
    _Child,
    _ended,
    _kill_stalled,
    _report_death,
    work,
)

LOOKS = int(STALLED / RUNNING_PERIOD)
"""With the longest time that a look counts for between them."""


@pytest.fixture
def child() -> _Child:
    child = _Child("worker", lambda: None, InHand(1), pid=os.getpid())
    assert look(child, 0) is False
    return child


def look(child: _Child, after: float) -> bool:
    """Let the parent look after that many seconds."""
    child.looked_at -= after
    return child.has_stalled()


def test_one_that_never_runs_is_found_once(child: _Child) -> None:
    found = [look(child, RUNNING_PERIOD) for _ in range(3 * LOOKS)]
    assert found.index(True) in {LOOKS - 1, LOOKS}
    assert found.count(True) == 1


def test_one_that_ran_and_stopped_is_found_after_the_same_time(child: _Child) -> None:
    for _ in range(3 * LOOKS):
        child.in_hand.note_running()
        assert not look(child, RUNNING_PERIOD)
    found = [look(child, RUNNING_PERIOD) for _ in range(2 * LOOKS)]
    assert found.index(True) in {LOOKS - 1, LOOKS}


def test_one_that_runs_now_and_then_is_left_alone(child: _Child) -> None:
    for _ in range(3):
        assert not any(look(child, RUNNING_PERIOD) for _ in range(LOOKS - 1))
        child.in_hand.note_running()
        assert not look(child, RUNNING_PERIOD)


def test_a_pause_of_the_parent_counts_for_one_look_however_long(child: _Child) -> None:
    assert not any(look(child, 100 * STALLED) for _ in range(LOOKS - 1))


def test_what_killed_it_is_said_of_one_that_stalled_and_again_when_it_has_died(
    child: _Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next child notes by it what the event's last handler was."""
    child.in_hand.note("evt_1", "7", "a.hangs")
    monkeypatch.setattr(os, "kill", lambda *_: None)
    reported: list[list[Held]] = []
    monkeypatch.setattr(supervisor, "_report", lambda _, __, held, **___: reported.append(held))
    _kill_stalled(child)
    _report_death(child)
    assert reported == [[Held("evt_1", "7", "a.hangs")]] * 2
    assert child.in_hand.died == reported[1]
    assert child.in_hand.read() == []


def test_one_that_is_not_there_has_not_stalled(child: _Child) -> None:
    child.pid = None
    assert not any(look(child, RUNNING_PERIOD) for _ in range(3 * LOOKS))


@pytest.mark.parametrize(
    ("lived", "waits"), [(0, True), (LIVED / 2, True), (LIVED + 1, False), (3600, False)]
)
def test_one_that_died_early_is_started_a_second_later_and_another_at_once(
    child: _Child, lived, waits
) -> None:
    """So that what ends each child as it starts does not keep the machine busy."""
    child.started = time.monotonic() - lived
    before = time.monotonic()
    child.ended(-9)
    after = time.monotonic()
    assert child.code == -9
    assert before + waits <= child.not_before <= after + waits


def fail() -> None:
    raise RuntimeError


@pytest.mark.parametrize(
    ("run", "code", "reported"),
    [
        (lambda: None, 0, 0),
        (fail, os.EX_SOFTWARE, 1),
        (sys.exit, os.EX_SOFTWARE, 1),
        (lambda: os._exit(3), 3, 0),
    ],
    ids=["returns", "fails", "exits", "is ended"],
)
def test_its_exit_code_says_how_it_ended_also_when_it_is_started_again(
    run: Callable[[], None], code: int, reported: int, said: Said
) -> None:
    child, stop = _Child("worker", run, InHand(1)), Stop()
    for number in (1, 2):
        child.started = 0
        before = time.monotonic()
        child.start(stop)
        assert child.pid
        assert stop.parent is None, "this is the child's"
        ended: list[_Child] = []
        wait_until(lambda ended=ended: ended.extend(_ended([child])) or ended)
        assert ended == [child]
        assert (child.pid, child.code) == (None, code)
        assert child.not_before >= before + 1, "it died early"
        failed = [line for line in said() if line["event"] == "worker_failed"]
        assert len(failed) == reported * number


def test_it_knows_its_parent_and_notes_that_it_runs() -> None:
    stop, (reading, writing) = Stop(), os.pipe()

    def run() -> None:
        wait_until(child.in_hand.ran_at)
        os.write(writing, f"{stop.parent} {os.getpid()}".encode())

    child = _Child("worker", run, InHand(1))
    child.start(stop)
    pid = child.pid
    wait_until(lambda: _ended([child]))
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == f"{os.getpid()} {pid}"


@pytest.mark.parametrize("role", ["worker", "periodic"])
def test_what_it_had_in_hand_is_said_in_its_name(role, said, monkeypatch) -> None:
    child, killed = _Child(role, lambda: None, InHand(3), pid=77), list[tuple[int, int]]()
    child.in_hand.note("evt_1", "1", "b.second")
    child.in_hand.note("evt_2", "1")
    child.in_hand.note("evt_3", "1", "a.first")
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    _kill_stalled(child)
    child.pid = None
    child.ended(-9)
    _report_death(child)
    assert killed == [(77, 9)]
    stalled, died = said()
    assert (stalled["event"], died["event"]) == (f"{role}_stalled", f"{role}_died")
    for line in (stalled, died):
        assert (line["level"], line["role"]) == ("error", role)
        assert sorted(line["in_hand"]) == ["evt_1", "evt_2", "evt_3"]
        assert line["running"] == ["a.first", "b.second"]
    assert (stalled["pid"], stalled["limit"]) == (77, STALLED)
    assert died["exit_code"] == -9


CONCURRENCY = 3


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Undo what this process changes of itself when it becomes the parent of a worker."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(supervisor.process, "keep_memory_private", lambda: None)
    monkeypatch.setattr(supervisor.gc, "freeze", lambda: None)
    monkeypatch.setattr(supervisor.plugins, "load", lambda _: Router())
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "periodic"), [(signal.SIGTERM, True), (signal.SIGINT, False)], ids=str
)
def test_it_starts_its_children_and_ends_after_them(
    undone: None,
    number: int,
    periodic: bool,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The first to run events dies with all it can have in hand; the next one asks for the end."""
    died = tmp_path / "died"
    roles = ["worker", "periodic"] if periodic else ["worker"]

    def end(role: str, stop: Stop) -> None:
        supervisor.log.info("child_begun", role=role)
        if role == "worker":
            wait_until(lambda: len(begun(said)) > len(roles))
            os.kill(os.getppid(), number)
        wait_until(lambda: stop.requested)
        supervisor.log.info("child_ended", role=role, state=health())

    def run_events(settings: Settings, _: Router, stop: Stop, in_hand: InHand) -> None:
        if not died.exists():
            died.touch()
            supervisor.log.info("child_begun", role="worker")
            for each in range(settings.worker_concurrency + CLAIM_AT_ONCE):
                in_hand.note(f"evt_{each}", "1")
            os._exit(3)
        end("worker", stop)
        os._exit(os.EX_TEMPFAIL)  # as one does that is not through in time

    monkeypatch.setattr(supervisor, "LIVED", -1)
    monkeypatch.setattr(supervisor, "wait_for_redis", lambda *_: True)
    monkeypatch.setattr(supervisor, "_run_events", run_events)
    monkeypatch.setattr(supervisor, "sweep_until", lambda stop, _: end("periodic", stop))
    settings = Settings(
        redis_url="redis://user:secret@host.test:7/1", worker_concurrency=CONCURRENCY
    )
    code = work(settings) if periodic else work(settings, periodic=False)

    assert code == 0
    assert beat.age() is None, "it leaves nothing behind"
    first, *lines, last = [line for line in said() if line["event"] != "child_begun"]
    assert (first["event"], first["pid"]) == ("worker_started", os.getpid())
    assert first["redis"] == redis_url.place("redis://user:secret@host.test:7/1")
    assert last == {"event": "worker_stopped", "level": "info", "pid": os.getpid()}
    death, *ends = lines
    assert (death["event"], death["exit_code"]) == ("worker_died", 3)
    assert len(death["in_hand"]) == CONCURRENCY + CLAIM_AT_ONCE
    assert sorted(line["role"] for line in ends) == sorted(roles)
    assert {line["event"] for line in ends} == {"child_ended"}, "and no death is reported then"
    assert {line["state"] for line in ends} == {"healthy"}, "what still runs has its time"


def health() -> str:
    return "not healthy" if beat.age() is None else "healthy"


def begun(said: Said) -> list[dict[str, Any]]:
    return [line for line in said() if line["event"] == "child_begun"]


def test_a_worker_that_is_stopped_while_it_waits_for_redis_starts_nothing(
    undone: None, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "wait_for_redis", lambda *_: False)
    assert work(Settings(redis_url="redis://host.test")) == 0
    assert said() == []


class Steps:
    """Notes what is done with it."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self._name, self._steps = name, steps

    def __getattr__(self, what: str) -> Callable[..., None]:
        return lambda *_: self._steps.append(f"{self._name}: {what}")


def test_what_runs_has_all_it_needs_from_the_first_event_to_the_end_of_the_last(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are renewed while the last ones run; hooks come before the first and after the last.
    Whatever ends RQ's loop, Redis or itself, another one is begun.
    """
    steps, stop = list[str](), Stop()
    ends: list[Callable[[], None]] = [redis_away, lambda: None, stop.request]

    class Loop:
        def work(self, **_: object) -> None:
            assert MARKS.closed, "what is marked from here on would be lost silently"
            steps.append("RQ's loop")
            ends.pop(0)()

    still = {**vars(time), "sleep": lambda _: None}
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(**still))
    monkeypatch.setattr(MARKS, "closed", False)
    processor: Any = Steps("processor", steps)
    monkeypatch.setattr(supervisor.Processor, "from_settings", lambda *_: processor)
    monkeypatch.setattr(supervisor, "Hooks", lambda _: Steps("hooks", steps))
    monkeypatch.setattr(supervisor, "Threads", lambda *_: Steps("threads", steps))
    monkeypatch.setattr(supervisor, "rq_worker", lambda *_: Loop())
    supervisor._run_events(Settings(redis_url="redis://host.test"), Router(), stop, InHand(1))
    assert steps == [
        "processor: note_death",
        "hooks: start",
        "processor: note_handlers",
        *3 * ["RQ's loop"],
        "threads: drain",
        "processor: end",
        "hooks: stop",
    ]
    ready, away = said()
    assert ready == {"event": "worker_ready", "level": "info", "pid": os.getpid()}
    assert (away["event"], away["level"]) == ("redis_unreachable", "error")


def redis_away() -> None:
    raise redis.ConnectionError

"""Handlers that asked for a process of their own."""

from __future__ import annotations

import os
import signal
import time

import pytest

DONE = {"audit.log_event": ("done", 1), "alone.careful": ("done", 1), "alone.beside": ("done", 1)}


def statuses(event: dict) -> dict[str, tuple[str, int]]:
    return {h["name"]: (h["status"], h["attempts"]) for h in event["handlers"]}


def careful(running) -> list[list[str]]:
    return [line for line in running.effects() if line[1] == "careful"]


def test_one_event_at_a_time_in_one_process_with_all_it_needs(system) -> None:
    running = system(HANDLERS="alone")
    sessions = [running.verify() for _ in range(6)]
    for session in sessions:
        assert statuses(running.settled(session)) == DONE
    assert len({line[2] for line in careful(running)}) == 1, "one process"
    assert {line[2] for line in careful(running)}.isdisjoint(
        line[2] for line in running.effects() if line[1] == "beside"
    )
    assert "not-alone" not in running.words("careful")
    assert running.words("careful").count("saw-personal-data") == 6
    assert running.worker_log().count("careful_done") == 6


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("raise", "failed: ValueError at alone.py"),
        pytest.param("exit", "failed: SystemExit at alone.py", marks=pytest.mark.walk),
        pytest.param("unprintable", "failed: Unprintable at alone.py", marks=pytest.mark.walk),
        ("retry", "retry: wait for [personal]"),
        pytest.param("os-exit", "failed: its process died (exit code 3)", marks=pytest.mark.walk),
        ("segfault", "failed: its process died (exit code -11)"),
        pytest.param("hang", "failed: timeout", marks=pytest.mark.walk),
    ],
)
def test_what_goes_wrong_there_is_a_failed_attempt_and_no_more(system, behaviour, reason) -> None:
    running = system(HANDLERS="alone", BEHAVIOUR=behaviour)
    event = running.settled(running.verify())
    assert statuses(event) == DONE | {"alone.careful": ("done", 2)}
    assert reason in running.worker_log()
    assert "worker_died" not in running.worker_log()
    assert "handler_timeout" not in running.worker_log()


def test_it_ends_with_its_worker(system) -> None:
    running = system(HANDLERS="alone", BEHAVIOUR="hang")
    running.verify()
    running.wait_until(lambda: careful(running))
    own, parent = int(careful(running)[0][2]), running.workers[0][0]
    parent.send_signal(signal.SIGKILL)

    def ended() -> bool:
        try:
            os.kill(own, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
        return False

    running.wait_until(ended)

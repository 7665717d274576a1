"""Times that depend on each other: what is promised to Stripe, to proxies and to platforms."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from service import connection, limits
from service.server import worker
from service.settings import Settings
from tests.conftest import ROOT
from workers import stop, supervisor

KILLED = 30
"""Seconds after SIGTERM at which platforms kill a process."""


@pytest.fixture(scope="module")
def gunicorn() -> dict[str, Any]:
    """What gunicorn reads."""
    return runpy.run_path(str(ROOT / "deploy/gunicorn.conf.py"))


def test_a_delivery_is_answered_within_the_two_seconds_that_are_promised() -> None:
    """However Redis hangs: a pipeline is looked at ten times until its deadline."""
    assert limits.ACCEPT_DEADLINE * 1.1 < 2
    assert 2 * connection.TIMEOUT < 2, "the route asks twice"


def test_a_proxy_closes_an_idle_connection_first() -> None:
    """Heroku's router keeps its own for 90 s, nginx for 60 s."""
    assert limits.KEEP_ALIVE > 90


def test_what_is_under_way_at_the_end_has_the_time_it_may_take(gunicorn: dict[str, Any]) -> None:
    drain = Settings.model_fields["drain_seconds"].default
    assert limits.READ_DEADLINE + limits.ACCEPT_DEADLINE < worker.LAST_SECONDS
    assert limits.KEEP_ALIVE > worker.LAST_WORD
    assert drain + worker.LAST_SECONDS < gunicorn["graceful_timeout"] < KILLED


def test_a_worker_gives_back_what_runs_before_it_is_killed() -> None:
    assert stop.GRACE + 2 < supervisor.KILL_AFTER < KILLED


def test_a_process_that_lives_is_not_taken_for_one_that_hangs(gunicorn: dict[str, Any]) -> None:
    assert 10 * (worker.HEARTBEAT + worker.TICK) < gunicorn["timeout"] <= limits.ANSWER_DEADLINE


@pytest.mark.parametrize(("given", "workers"), [("", 2), ("3", 3), (None, 2)])
def test_gunicorn_starts_as_many_processes_as_are_set(
    given: str | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    else:
        monkeypatch.setenv("WEB_CONCURRENCY", given)
    assert runpy.run_path(str(ROOT / "deploy/gunicorn.conf.py"))["workers"] == workers


@pytest.mark.parametrize(("events", "connections"), [(1, 2), (10, 2), (11, 3), (20, 3), (21, 4)])
def test_a_worker_has_a_connection_for_each_ten_events_at_once_and_one(
    events: int, connections: int
) -> None:
    assert connection.worker_connections(events) == connections


@pytest.mark.parametrize(("limit", "fit"), [(0, 0), (11, 0), (13, 0), (14, 1), (40, 7)])
def test_no_fewer_than_no_workers_fit(limit: int, fit: int) -> None:
    assert connection.workers_that_fit(limit, 1, 20) == fit

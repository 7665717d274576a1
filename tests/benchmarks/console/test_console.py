"""The console of a web process among a hundred thousand events, and deliveries beside its pages."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import pytest
import requests
from redis import Redis

from service.inbox import Inbox
from tests.benchmarks import machine
from tests.benchmarks.machine import CACHE
from tests.benchmarks.receiver import contest, events
from tests.benchmarks.scale import finding, growth, life

LOADED = 20
"""Pages a second, beside deliveries."""
ROUNDS, SECONDS = 7, 3.0
AT_MOST = 200.0
"""Milliseconds."""
USER = {"X-User": "ann"}


@pytest.mark.timeout(900)
def test_its_pages_and_deliveries_beside_them() -> None:
    with _console() as (_, port):
        took = _pages(f"http://127.0.0.1:{port}/console")
        sys.stderr.writelines(f"\n  {ms:6.1f} ms  {name}" for name, ms in took.items())
        alone, beside = _deliveries(port)
        sys.stderr.write(
            f"\np99 of deliveries: {alone:.1f} ms alone, {beside:.1f} ms beside pages\n"
        )
    _write(took, alone, beside)
    assert max(took.values()) < AT_MOST


@contextmanager
def _console() -> Iterator[tuple[int, int]]:
    """Run the receiver of the benchmarks, with its console, on a Redis with many events."""
    environment = {
        "CONSOLE_USER_HEADER": "X-User",
        "CONSOLE_OPERATORS": "ann",
        "CONSOLE_PROXIES": "127.0.0.1",
    }
    with machine.redis_server() as redis, Redis(port=redis.port) as client:
        life.repeat(redis, life.record(redis, settled=True), finding.SETTLED)
        growth.wait_for_answers(client)
        inbox = Inbox(client, limit=life.LIMIT)
        for number in range(finding.DEAD + finding.OTHERS):
            finding.die(inbox, number, "mail.send" if number < finding.DEAD else "crm.save")
        with contest.server(contest.ours(), redis.url, **environment) as running:
            yield running


def _pages(url: str) -> dict[str, float]:
    """Return the milliseconds of each page, medians."""
    session = f"vs_{life.unique(finding.SETTLED // 2)}"
    paths = {
        "overview": "/",
        "events": "/events",
        "events, done": "/events?state=done",
        "events, dead": "/events?state=dead",
        "events, dead of a handler": "/events?state=dead&handler=mail.send",
        "events, dead for a reason": "/events?state=dead&reason=failed+KeyError",
        "events of an account that has none": "/events?account=acct_1",
        "events, done of a handler": f"/events?state=done&handler={life.HANDLERS[0]}",
        "events, done of a handler that none has": "/events?state=done&handler=no.such",
        "events of a session": f"/events?session={session}",
        "an event": f"/events/evt_{life.unique(finding.SETTLED // 2)}",
        "a session": f"/sessions/{session}",
        "handlers": "/handlers",
        "outcomes": "/outcomes",
    }
    with requests.Session() as http:
        return {name: median(_times(http, url + path)) for name, path in paths.items()}


def _times(http: requests.Session, url: str) -> Iterator[float]:
    for _ in range(ROUNDS):
        began = time.perf_counter()
        answer = http.get(url, headers=USER, timeout=60)
        yield (time.perf_counter() - began) * 1000
        assert answer.status_code == 200, (url, answer.status_code)


def _deliveries(port: int) -> tuple[float, float]:
    """Return the p99 of deliveries, ms, alone and beside a page that is loaded, in turn."""
    load, file = contest.build(), CACHE / "events"
    p99: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * ROUNDS):
        events.write(file, contest.EVENTS, contest.SECRET, int(time.time()) + number)
        beside = bool(number % 2)
        with _loading(f"http://127.0.0.1:{port}/console/", beside):
            told = contest.load_with(load, port, file, SECONDS)
        assert set(told["statuses"]) == {"200"}
        p99[beside].append(told["p99"] / 1000)
    return median(p99[False]), median(p99[True])


@contextmanager
def _loading(url: str, loading: bool) -> Iterator[None]:
    """Load a page so often while the block runs."""
    if not loading:
        yield
        return
    stop, counted = threading.Event(), []

    def load() -> None:
        with requests.Session() as http:
            due = time.monotonic()
            while not stop.is_set():
                assert http.get(url, headers=USER, timeout=60).status_code == 200
                counted.append(1)
                due += 1 / LOADED
                stop.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert len(counted) > LOADED * SECONDS / 2, "the pages were loaded"


def _write(took: dict[str, float], alone: float, beside: float) -> None:
    """Write the section of docs/performance.md."""
    slowest = max(took, key=lambda name: took[name])
    lines = [
        f"With {finding.SETTLED:,} settled and {finding.DEAD + finding.OTHERS:,} dead events, each"
        f" page answers within {took[slowest]:.0f} ms (medians of {ROUNDS}):",
        "",
        "| page | ms |",
        "|---|---:|",
        *(f"| {name} | {ms:.0f} |" for name, ms in took.items()),
        "",
        "Each process keeps its look at Redis for a second, and renders every page."
        f" The overview was loaded {LOADED} times a second beside {contest.CONNECTIONS} connections"
        f" that deliver as fast as they are answered, on {contest.PROCESSES} web processes. The p99"
        f" of deliveries was {alone:.1f} ms without and {beside:.1f} ms with it"
        f" ({beside / alone:.2f} times; medians of {ROUNDS} rounds of {SECONDS:.0f} s, in turn).",
    ]
    names = ("gunicorn", "flask", "redis")
    machine.write_section("console", lines, machine.python_versions(sys.executable, *names))

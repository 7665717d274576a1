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


@pytest.fixture(scope="module")
def console() -> Iterator[tuple[machine.Server, str]]:
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
            handler = "mail.send" if number < finding.DEAD else "crm.save"
            finding.die(inbox, number, handler)
        with contest.server(contest.ours(), redis.url, **environment) as (_, port):
            yield redis, f"http://127.0.0.1:{port}"


@pytest.mark.timeout(600)
def test_every_page_among_a_hundred_thousand_events(console: tuple[machine.Server, str]) -> None:
    _, url = console
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
        took = {name: median(_times(http, url + "/console" + path)) for name, path in paths.items()}
    sys.stderr.write(f"\nms for a page of the console (median of {ROUNDS})\n")
    sys.stderr.writelines(f"  {ms:6.1f}  {name}\n" for name, ms in took.items())
    assert max(took.values()) < AT_MOST


def _times(http: requests.Session, url: str) -> Iterator[float]:
    for _ in range(ROUNDS):
        began = time.perf_counter()
        answer = http.get(url, headers=USER, timeout=60)
        yield (time.perf_counter() - began) * 1000
        assert answer.status_code == 200, (url, answer.status_code)


@pytest.mark.timeout(600)
def test_deliveries_beside_a_page_loaded_twenty_times_a_second(
    console: tuple[machine.Server, str],
) -> None:
    _, url = console
    load = contest.build()
    port = int(url.rpartition(":")[2])
    p99: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * ROUNDS):
        file = CACHE / "events"
        events.write(file, contest.EVENTS, contest.SECRET, int(time.time()) + number)
        beside = bool(number % 2)
        with _loading(f"{url}/console/", beside):
            told = contest.load_with(load, port, file, SECONDS)
        assert set(told["statuses"]) == {"200"}
        p99[beside].append(told["p99"] / 1000)
    alone, beside_pages = median(p99[False]), median(p99[True])
    sys.stderr.write(
        f"\np99 of deliveries (ms, medians of {ROUNDS} rounds in turn): {alone:.1f} alone,"
        f" {beside_pages:.1f} beside {LOADED} pages a second, ratio {beside_pages / alone:.2f}\n"
    )


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

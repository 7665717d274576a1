"""How much memory the processes take after some work, and how long they take to start."""

from __future__ import annotations

import http.client
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from redis import Redis

from service.inbox import Inbox
from tests.benchmarks import machine, system
from tests.benchmarks.scale import life
from tests.benchmarks.system import System

REQUESTS, EVENTS = 20_000, 5_000
"""Deliveries that the web processes take, and how many of them the worker works off."""
CONCURRENCY = 50
STARTS = 3


@dataclass(frozen=True)
class Sizes:
    """Megabytes that are resident: the parent of each, and the largest of its children."""

    web_parent: float
    web: float
    worker_parent: float
    worker: float
    periodic: float


@dataclass(frozen=True)
class Starts:
    """Seconds: to the first 200 of /healthz, to the start of the first handler."""

    web: float
    worker: float


def sizes() -> Sizes:
    with system.surroundings(concurrency=CONCURRENCY) as running:
        with running.running("web") as pid:
            machine.wait_until(lambda: machine.connects(running.web_port))
            answers = system.send(running, REQUESTS, math.inf)
            assert {answer.status for answer in answers.values()} == {200}
            web, *webs = machine.memory(pid)
        with running.running("periodic") as periodic_pid, running.running("worker") as pid:
            machine.wait_until(lambda: len(running.handled()) >= EVENTS, within=120)
            worker, *workers = machine.memory(pid)
            (periodic,) = machine.memory(periodic_pid)
    return Sizes(web, max(webs), worker, max(workers), periodic)


def starts() -> Starts:
    with system.surroundings() as running:
        web = [_start_of_web(running) for _ in range(STARTS)]
        worker = [_start_of_worker(running, number) for number in range(STARTS)]
    return Starts(median(web), median(worker))


def _start_of_web(running: System) -> float:
    with _starting(running, "web") as since:
        return since(lambda: _is_healthy(running.web_port))


def _start_of_worker(running: System, number: int) -> float:
    """Start it with an event waiting."""
    event = life.event(f"start{number:019}")
    with Redis(port=running.redis.port) as client:
        Inbox(client).accept(event)
    with _starting(running, "worker") as since:
        return since(lambda: event.id in running.handled())


@contextmanager
def _starting(running: System, name: str) -> Iterator[Callable[[Callable[[], bool]], float]]:
    """Start a process; yield what waits for a condition and says how long it took since."""
    began = time.monotonic()

    def since(condition: Callable[[], bool]) -> float:
        while not condition():
            assert time.monotonic() < began + 30, f"{name} did not start"
            time.sleep(0.005)
        return time.monotonic() - began

    with running.running(name):
        yield since


def _is_healthy(port: int) -> bool:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        client.request("GET", "/healthz")
        return client.getresponse().status == 200
    except OSError:
        return False
    finally:
        client.close()

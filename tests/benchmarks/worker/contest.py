"""Runs our worker and its competitors in turn, and measures each.

All get as many events as they work off in a few seconds, put in their queue beforehand on a Redis
of their own; then the worker starts. What is measured begins when it is warm (imports, first
connections and first answers are over) and ends shortly before its queue is empty, so that at both
ends as much is under way.

An event counts when the API (api.c) has told its session. A run fails unless, in the end, each
session was told exactly once and no worker logged an exception.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

from redis import Redis

from service.inbox import Inbox, State
from tests.benchmarks import machine
from tests.benchmarks.machine import CACHE, ROOT, Server

HERE = Path(__file__).parent
FOLDER = HERE / "competitors"
ROUNDS = {0: 3, 50: 1, 200: 2}
"""By the milliseconds that the API takes; Stripe's takes about the last."""

AT_ONCE = 50
WARM_UP, SECONDS = 1.0, 3.0
WITH_A_SLOW_API = 6.0
"""Seconds, where so much is under way at both ends that three would not do."""

STUCK = 60
"""Seconds without the wanted number of events until a run has failed."""

NODE = ("bullmq", "ioredis", "stripe")


@dataclass(frozen=True)
class Competitor:
    """Someone who works events off.

    Attributes:
        name: what it is called in the tables.
        at_once: events under way at the same time, in all its processes.
        rate: about how many events a second it works off when the API answers at once: only
            for choosing how many it gets.
        enqueue: the command that puts events in its queue; their number is appended.
        work: the command of the worker.
        copies: how often that is run.
    """

    name: str
    at_once: int
    rate: float
    enqueue: tuple[str | Path, ...]
    work: tuple[str | Path, ...]
    copies: int = 1

    @property
    def is_ours(self) -> bool:
        return self.name in {OURS, OURS_TWICE}

    def expected(self, delay: int) -> float:
        """Events a second, about, when the API takes so many milliseconds."""
        return 1 / (1 / self.rate + delay / 1000 / self.at_once)


@dataclass(frozen=True)
class Result:
    """One run: events a second; CPU milliseconds, commands and reads of Redis per event."""

    rate: float
    cpu: float
    redis_cpu: float
    commands: float
    reads: float
    api_cpu: float

    @classmethod
    def median(cls, runs: list[Result]) -> Result:
        return cls(*map(median, zip(*(vars(run).values() for run in runs), strict=True)))


OURS = "identity-webhooks x 1"
OURS_TWICE = "identity-webhooks x 2"
RQ = "rq worker x 1"
RQ_POOL = "rq worker-pool x 2"
DRAMATIQ = "dramatiq, 50 threads"
DRAMATIQ_TWICE = "dramatiq, 2 x 25 threads"
ARQ = "arq, 50 jobs"
CELERY = "Celery, 50 threads"
CELERY_TWICE = "Celery, prefork x 2"
BULLMQ = "BullMQ, concurrency 50"


def competitors() -> list[Competitor]:
    """Everyone who takes part; installs what is not here yet."""
    dramatiq = machine.python_packages("dramatiq", "dramatiq[redis]", "stripe")
    celery = machine.python_packages("celery", "celery[redis]", "stripe")
    arq = machine.python_packages("arq", "arq", "stripe", "httpx")
    machine.node_packages("bullmq", *NODE)
    ours = (
        (sys.executable, "-m", "tests.benchmarks.worker.accept"),
        (sys.executable, "-m", "workers"),
    )
    rq = Path(sys.executable).with_name("rq")
    rq_jobs = sys.executable, "rq_tasks.py"
    actors = (dramatiq, "-m", "dramatiq", "dramatiq_tasks", "--processes")
    tasks = (celery, "-m", "celery", "-A", "celery_tasks", "worker", "--pool")
    return [
        Competitor(OURS, AT_ONCE, 250, *ours),
        Competitor(OURS_TWICE, 2 * AT_ONCE, 400, *ours, copies=2),
        Competitor(RQ, 1, 10, rq_jobs, (rq, "worker", "naive")),
        Competitor(RQ_POOL, 2, 17, rq_jobs, (rq, "worker-pool", "-n", "2", "naive")),
        Competitor(
            DRAMATIQ,
            AT_ONCE,
            250,
            (dramatiq, "dramatiq_tasks.py"),
            (*actors, "1", "--threads", "50"),
        ),
        Competitor(
            DRAMATIQ_TWICE,
            AT_ONCE,
            500,
            (dramatiq, "dramatiq_tasks.py"),
            (*actors, "2", "--threads", "25"),
        ),
        Competitor(
            ARQ,
            AT_ONCE,
            250,
            (arq, "arq_tasks.py"),
            (arq, "-m", "arq", "arq_tasks.WorkerSettings"),
        ),
        Competitor(
            CELERY, AT_ONCE, 200, (celery, "celery_tasks.py"), (*tasks, "threads", "-c", "50")
        ),
        Competitor(
            CELERY_TWICE, 2, 350, (celery, "celery_tasks.py"), (*tasks, "prefork", "-c", "2")
        ),
        Competitor(BULLMQ, AT_ONCE, 2400, ("node", "bullmq_tasks.js"), ("node", "bullmq_tasks.js")),
    ]


def run(rounds: dict[int, int]) -> Iterator[tuple[int, int, Competitor, Result]]:
    """Yield each result as it comes: so many rounds for each delay."""
    CACHE.mkdir(parents=True, exist_ok=True)
    api, taking_part = _build(), competitors()
    for delay, count in rounds.items():
        for number in range(count):
            for competitor in taking_part:
                yield delay, number, competitor, _measure(competitor, api, delay)


def _measure(competitor: Competitor, program: Path, delay: int) -> Result:
    expected, at_once = competitor.expected(delay), competitor.at_once
    duration = WITH_A_SLOW_API if delay >= 200 else SECONDS
    # In whole waves of what is under way at once: a slow API answers in waves.
    warm, measured = (
        at_once * max(2, round(seconds * expected / at_once)) for seconds in (WARM_UP, duration)
    )
    total = warm + measured + at_once
    with machine.redis_server() as redis, _api(program, delay) as api:
        environment = _environment(redis, api)
        where = ROOT if competitor.is_ours else FOLDER
        subprocess.run(
            [*competitor.enqueue, str(total)], cwd=where, env=os.environ | environment, check=True
        )
        with ExitStack() as stack:
            pids = [
                stack.enter_context(machine.process(*competitor.work, cwd=where, **environment))
                for _ in range(competitor.copies)
            ]
            try:
                api.wait_for(warm)
                before = _Reading.take(pids, redis, api)
                api.wait_for(warm + measured)
                after = _Reading.take(pids, redis, api)
                api.wait_for(total)
                _let_end(competitor, redis)
            except TimeoutError:
                told = api.wait_for(0)
                raise RuntimeError(f"{competitor.name}: {told} of {total} events") from None
        _check(competitor, redis, api, total)
    return after.since(before)


@dataclass(frozen=True)
class Api:
    """The running API."""

    pid: int
    port: int

    def wait_for(self, count: int) -> int:
        """Wait until so many sessions were told; how many were."""
        client = HTTPConnection("127.0.0.1", self.port, timeout=STUCK)
        client.request("GET", f"/answered/{count}")
        told = int(client.getresponse().read())
        client.close()
        return told


@contextmanager
def _api(program: Path, delay: int) -> Iterator[Api]:
    port = machine.free_port()
    with machine.process(program, str(port), str(delay), HERE / "session.json") as pid:
        machine.wait_until(lambda: machine.connects(port))
        yield Api(pid, port)


@dataclass(frozen=True)
class _Reading:
    """All counters at one moment."""

    time: float
    events: int
    cpu: float
    redis_cpu: float
    api_cpu: float
    commands: int
    reads: int

    @classmethod
    def take(cls, pids: list[int], redis: Server, api: Api) -> _Reading:
        events, now = api.wait_for(0), time.monotonic()
        with Redis(port=redis.port) as client:
            stats = client.info("stats")
        return cls(
            time=now,
            events=events,
            cpu=sum(map(_cpu_seconds, pids)),
            redis_cpu=machine.cpu_seconds(redis.pid),
            api_cpu=machine.cpu_seconds(api.pid),
            commands=stats["total_commands_processed"],
            reads=stats["total_reads_processed"],
        )

    def since(self, earlier: _Reading) -> Result:
        """Return what happened between the two, per event.

        The few Redis commands of a reading itself are less than one for a hundred events.
        """
        count = self.events - earlier.events
        return Result(
            rate=count / (self.time - earlier.time),
            cpu=(self.cpu - earlier.cpu) / count * 1000,
            redis_cpu=(self.redis_cpu - earlier.redis_cpu) / count * 1000,
            commands=(self.commands - earlier.commands) / count,
            reads=(self.reads - earlier.reads) / count,
            api_cpu=(self.api_cpu - earlier.api_cpu) / count * 1000,
        )


def _cpu_seconds(pid: int) -> float:
    """As `machine.cpu_seconds`, also of one that forks for each job: a child may end meanwhile."""
    while True:
        try:
            return machine.cpu_seconds(pid)
        except (FileNotFoundError, ProcessLookupError):
            Path(f"/proc/{pid}").stat()  # it is not this one that ended


def _check(competitor: Competitor, redis: Server, api: Api, total: int) -> None:
    """Raise unless the worker, which has ended, did all that it was given, once."""
    told = api.wait_for(0)
    if told != total:
        raise RuntimeError(f"{competitor.name}: {told} sessions asked for, of {total}")
    log = CACHE / f"{Path(competitor.work[0]).name}.log"
    if "Traceback" in log.read_text(errors="replace"):
        raise RuntimeError(f"{competitor.name}: see {log}")
    if competitor.is_ours and (done := _count(redis, "done", total)) != total:
        raise RuntimeError(f"{competitor.name}: {done} events are done, of {total}")


def _let_end(competitor: Competitor, redis: Server) -> None:
    """Wait until the last answers are worked off: who is stopped before gives them back."""
    if competitor.is_ours:
        machine.wait_until(lambda: not _count(redis, "pending", 1))
    else:
        time.sleep(0.5)


def _count(redis: Server, state: State, limit: int) -> int:
    with Redis(port=redis.port) as client:
        return sum(1 for _ in Inbox(client).records(state, limit))


def _environment(redis: Server, api: Api) -> dict[str, str]:
    return {
        "REDIS_URL": redis.url,
        "RQ_REDIS_URL": redis.url,
        "STRIPE_API_BASE": f"http://127.0.0.1:{api.port}",
        "STRIPE_API_KEY": "sk_test_benchmark",
        "STRIPE_API_RATE": "0",
        "WORKER_CONCURRENCY": str(AT_ONCE),
        "NODE_PATH": str(CACHE / "bullmq" / "node_modules"),
        "NODE_ENV": "production",
    }


def _build() -> Path:
    api = CACHE / "api"
    subprocess.run(["cc", "-O2", "-o", api, HERE / "api.c"], check=True)
    return api


def versions() -> dict[str, str]:
    """Return the versions of what takes part, by name."""
    return {
        **machine.python_versions(sys.executable, "redis", "rq", "stripe", "urllib3", "requests"),
        **machine.python_versions(CACHE / "dramatiq/bin/python", "dramatiq"),
        **machine.python_versions(CACHE / "arq/bin/python", "arq", "httpx"),
        **machine.python_versions(CACHE / "celery/bin/python", "celery"),
        **machine.node_versions(CACHE / "bullmq" / "node_modules", "bullmq", "stripe"),
    }

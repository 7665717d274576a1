"""The worker process: a parent that keeps a child running, and the child that runs RQ.

The parent imports everything, checks everything, and forks; it holds no connection and no thread.
When the child dies, whatever killed it, the parent starts the next one at once: a crash costs an
event its lease (10 s) and the platform's restart policy is never involved.

RQ's own worker can lose a job in its hands when SIGTERM comes at the wrong moment, for it raises
from the signal handler (measured: 13 of 111 SIGTERMs with two queues; 23 of 293 left a job stuck
with one). Here a signal only sets a flag, looked at before each pop: the one point where nothing
is in hand. One queue per worker, so that RQ pops with BLMOVE.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import redis
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.timeouts import TimerDeathPenalty

from service import connection, logs
from service.inbox import QUEUE, Inbox
from service.metrics import Metrics
from service.settings import Settings
from workers import plugins
from workers.jobs import Processor
from workers.router import Router
from workers.watch import GRACE, Stop

WORKER_TTL = 16
"""Seconds. RQ blocks in a pop for 15 s less than this, so an idle worker leaves within a second;
the price is a handful of Redis commands a second."""

KILL_AFTER = GRACE + 3
"""Seconds after which the parent kills a child that did not stop; platforms kill both after 30."""

SWEEP_PERIOD = 0.5
"""Seconds between two sweeps. Sweeping an inbox with nothing due costs Redis about 20 us."""

log = logs.get(__name__)


def work(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit code of the process.

    Raises:
        plugins.PluginError: a plugin cannot be used.
        connection.UnsafeRedis: Redis would lose events.
    """
    router = plugins.load(settings)
    stop = _stop_on_signals()
    if not _wait_for_redis(settings, stop):
        return 0
    log.info("worker_started", count=len(router.handlers), pid=os.getpid())
    while not stop.requested:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_child(settings, router)
        code = _wait_for(child, stop)
        if not stop.requested:
            log.error("worker_died", pid=child, exit_code=code)
            # One that dies as it starts must not spin.
            time.sleep(0 if time.monotonic() - started > 5 else 1)
    log.info("worker_stopped", pid=os.getpid())
    return 0


def sweep_for_ever(settings: Settings) -> int:
    """Run the periodic process until SIGTERM or SIGINT: wake what is past due.

    Any number of them may run; each event is moved by one of them.
    """
    stop = _stop_on_signals()
    if not _wait_for_redis(settings, stop):
        return 0
    client = connection.connect(settings)
    inbox, metrics = Inbox(client), Metrics(client)
    log.info("periodic_started", pid=os.getpid())
    while not stop.requested:
        try:
            swept = inbox.sweep()
        except redis.RedisError:
            log.exception("sweep_failed")
            time.sleep(1)
            continue
        if swept.woken or swept.stale:
            metrics.count("redriven", by=swept.woken)
            log.info("swept", woken=swept.woken, postponed=swept.postponed, stale=swept.stale)
        time.sleep(SWEEP_PERIOD)
    metrics.flush()
    log.info("periodic_stopped", pid=os.getpid())
    return 0


def _be_child(settings: Settings, router: Router) -> None:
    """Be the process that runs events; never returns to the parent's code."""
    code = os.EX_SOFTWARE
    try:
        stop = _stop_on_signals()
        processor = Processor.serving = Processor.from_settings(settings, stop, router)
        while not stop.requested:
            # RQ gives up when Redis goes away; we do not.
            try:
                _rq_worker(settings, stop).work(logging_level="WARNING")
            except redis.RedisError:
                log.exception("redis_unreachable")
            if not stop.requested:
                time.sleep(1)
        processor.flush()
        code = 0
    except BaseException:
        log.exception("worker_failed")
    finally:
        sys.stdout.flush()
        # Past the parent's exit handlers, which are not this process's to run.
        os._exit(code)


def _rq_worker(settings: Settings, stop: Stop) -> SimpleWorker:
    """Return RQ's in-process worker on our one queue, stopping by flag."""

    class FlaggedQueue(Queue):
        """Every pop passes through here: before it, nothing is in hand."""

        @classmethod
        def dequeue_any(cls, *args: Any, **kwargs: Any) -> tuple[Job, Queue] | None:
            if stop.requested:
                raise StopRequested
            return super().dequeue_any(*args, **kwargs)

    class FlaggedWorker(SimpleWorker):
        """RQ's worker with our signal handlers in place of its own."""

        # RQ's alarm would hit our code, and needs the main thread; handlers have timeouts of ours.
        death_penalty_class = TimerDeathPenalty
        queue_class = FlaggedQueue
        max_connection_wait_time = 2.0

        def heartbeat(self, *args: Any, **kwargs: Any) -> None:
            """Stop also while Redis is away, when RQ retries here and never reaches the pop."""
            try:
                super().heartbeat(*args, **kwargs)
            except (redis.ConnectionError, redis.TimeoutError):
                if stop.requested:
                    raise StopRequested from None
                raise

        def _install_signal_handlers(self) -> None:
            """Leave the handlers of `_stop_on_signals` in place."""

    return FlaggedWorker(
        [QUEUE],
        connection=connection.connect(settings),
        serializer="json",
        worker_ttl=WORKER_TTL,
        log_job_description=False,
    )


def _stop_on_signals() -> Stop:
    stop = Stop()

    def request(_signal: int, _frame: FrameType | None) -> None:
        stop.request()

    signal.signal(signal.SIGTERM, request)
    signal.signal(signal.SIGINT, request)
    return stop


def _wait_for(child: int, stop: Stop) -> int:
    """Wait for the child's end, passing a stop on to it; its exit code, negative for a signal."""
    told = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if stop.requested and not told:
            os.kill(child, signal.SIGTERM)
            told = True
        if stop.requested_at is not None and time.monotonic() > stop.requested_at + KILL_AFTER:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _wait_for_redis(settings: Settings, stop: Stop) -> bool:
    """Wait until Redis answers and is safe; False when asked to stop meanwhile."""
    delay = 0.5
    while not stop.requested:
        try:
            with connection.connect(settings) as client:
                connection.require_safe(client, settings)
        except redis.RedisError as error:
            log.warning("redis_unreachable", error=type(error).__name__, delay_s=delay)
            time.sleep(delay)
            delay = min(5.0, delay * 2)
        else:
            return True
    return False

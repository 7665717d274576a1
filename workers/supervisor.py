"""The worker process that is started: a parent that keeps a child running which runs events.

The parent imports everything, checks everything, and forks; it holds no connection and no thread.
When the child dies, whatever killed it, the parent starts the next one at once: a crash costs an
event its lease (10 s) and the platform's restart policy is never involved. There is no fork per
event: that costs RQ's own worker 20 to 100 ms of CPU for each (measured).
"""

from __future__ import annotations

import os
import signal
import sys
import time

import redis

from service import logs, process
from service.settings import Settings
from workers import plugins
from workers.jobs import Processor
from workers.pool import Threads
from workers.router import Router
from workers.rq_worker import rq_worker
from workers.stop import GRACE, Stop, stop_on_signals, wait_for_redis

KILL_AFTER = GRACE + 3
"""Seconds after which the parent kills a child that did not stop; platforms kill both after 30."""

log = logs.get(__name__)


def work(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit code of the process.

    Raises:
        plugins.PluginError: a plugin cannot be used.
        connection.UnsafeRedis: Redis would lose events.
    """
    process.keep_memory_private()
    router = plugins.load(settings)
    stop = stop_on_signals()
    if not wait_for_redis(settings, stop):
        return 0
    log.info("worker_started", count=len(router.handlers), pid=os.getpid())
    parent = os.getpid()
    while not stop.requested:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_child(settings, router, parent)
        code = _wait_for(child, stop)
        if not stop.requested:
            log.error("worker_died", pid=child, exit_code=code)
            # One that dies as it starts must not spin.
            time.sleep(0 if time.monotonic() - started > 5 else 1)
    log.info("worker_stopped", pid=os.getpid())
    return 0


def _be_child(settings: Settings, router: Router, parent: int) -> None:
    """Be the process that runs events; never returns to the parent's code."""
    code = os.EX_SOFTWARE
    try:
        stop = stop_on_signals(parent)
        processor = Processor.from_settings(settings, stop, router)
        threads = Threads(processor, settings.worker_concurrency, stop)
        while not stop.requested:
            # RQ gives up when Redis goes away; we do not.
            try:
                rq_worker(settings, threads, stop).work(logging_level="WARNING")
            except redis.RedisError:
                log.exception("redis_unreachable")
            if not stop.requested:
                time.sleep(1)
        threads.drain()
        processor.flush()
        code = 0
    except BaseException:
        log.exception("worker_failed")
    finally:
        sys.stdout.flush()
        # Past the parent's exit handlers, which are not this process's to run.
        os._exit(code)


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

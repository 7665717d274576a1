"""The worker process that is started: a parent that keeps its children running.

One child runs events; the other is a periodic process, unless that is wanted apart. The parent
imports everything, checks everything, and forks; it holds no connection and no thread. When a child
dies, whatever killed it, the parent starts the next one at once: a crash costs an event its lease
(10 s) and the platform's restart policy is never involved. There is no fork per event: that costs
RQ's own worker 20 to 100 ms of CPU for each (measured).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from service import logs, process
from service.settings import Settings
from workers import beat, plugins
from workers.hooks import Hooks
from workers.in_hand import InHand
from workers.jobs import Processor
from workers.periodic import sweep_until
from workers.pool import CLAIM_AT_ONCE, Threads
from workers.router import Router
from workers.rq_worker import rq_worker
from workers.stop import GRACE, Stop, stop_on_signals, wait_for_redis

KILL_AFTER = GRACE + 3
"""Seconds after which the parent kills a child that did not stop; platforms kill both after 30."""

LIVED = 5.0
"""Seconds after which a child counts as started: one that dies earlier is not started at once."""

log = logs.get(__name__)


def work(settings: Settings, *, periodic: bool = True) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit code of the process.

    Args:
        settings: what it runs with.
        periodic: whether a periodic process runs beside it.

    Raises:
        plugins.PluginError: a plugin cannot be used.
        UnsafeRedis: Redis would lose events, or lacks what workers need.
    """
    process.keep_memory_private()
    stop = stop_on_signals()
    router = plugins.load(settings)
    if not wait_for_redis(settings, stop):
        return 0
    # Each thread has an event, and some more may be claimed and wait to run alone.
    in_hand = InHand(settings.worker_concurrency + CLAIM_AT_ONCE)
    children = [_Child("worker", lambda: _run_events(settings, router, stop, in_hand))]
    if periodic:
        children.append(_Child("periodic", lambda: sweep_until(stop, settings)))
    log.info("worker_started", count=len(router.handlers), pid=os.getpid())
    while not stop.requested:
        beat.beat()
        for child in children:
            if child.pid is None and time.monotonic() >= child.not_before:
                child.start(stop)
        for child in _ended(children):
            if not stop.requested:
                _report_death(child, in_hand)
        time.sleep(0.05)
    _stop(children, stop)
    beat.end()
    log.info("worker_stopped", pid=os.getpid())
    return 0


@dataclass
class _Child:
    """A child, while it runs (`pid`) and after it has died (`code`)."""

    role: str
    run: Callable[[], None]
    pid: int | None = None
    code: int = 0
    started: float = 0
    not_before: float = field(default_factory=time.monotonic)

    def start(self, stop: Stop) -> None:
        """Fork it. The stop is inherited with its signal handlers, so that no signal is lost."""
        parent = os.getpid()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            stop.parent = parent
            _be_child(self.run)

    def ended(self, code: int) -> None:
        """Note that it has ended: by a signal if the code is negative."""
        at_once = time.monotonic() - self.started > LIVED
        self.code, self.not_before = code, time.monotonic() + (0 if at_once else 1)


def _be_child(run: Callable[[], None]) -> None:
    """Be a child; never returns to the parent's code."""
    code = os.EX_SOFTWARE
    try:
        run()
        code = 0
    except BaseException:
        log.exception("worker_failed")
    finally:
        sys.stdout.flush()
        # Past the parent's exit handlers, which are not this process's to run.
        os._exit(code)


def _run_events(settings: Settings, router: Router, stop: Stop, in_hand: InHand) -> None:
    """Be the process that runs events, until asked to stop."""
    processor = Processor.from_settings(settings, stop, router, in_hand)
    processor.note_death()
    hooks = Hooks(router.hooks)
    hooks.start()
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
    hooks.stop()


def _ended(children: list[_Child]) -> list[_Child]:
    """Return the children that have ended since, and reap whatever else has.

    As the first process of a container we inherit what others leave behind: the processes that a
    dead child had started for its handlers.
    """
    ended: list[_Child] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        for child in children:
            if child.pid == pid:
                child.pid = None
                child.ended(os.waitstatus_to_exitcode(status))
                ended.append(child)


def _report_death(child: _Child, in_hand: InHand) -> None:
    """Say of what it may have died. Its events are due again when their leases have run out."""
    held = in_hand.bury() if child.role == "worker" else []
    log.error(
        "worker_died" if child.role == "worker" else "periodic_died",
        role=child.role,
        exit_code=child.code,
        in_hand=[each.event_key for each in held],
        running=sorted({each.handler for each in held if each.handler}),
    )


def _stop(children: list[_Child], stop: Stop) -> None:
    """Pass the stop on, and wait until all have ended."""
    running = [child for child in children if child.pid]
    for child in running:
        if child.pid:
            os.kill(child.pid, signal.SIGTERM)
    while any(child.pid for child in running):
        _ended(running)
        if stop.requested_at is not None and time.monotonic() > stop.requested_at + KILL_AFTER:
            for child in running:
                if child.pid:
                    os.kill(child.pid, signal.SIGKILL)
        time.sleep(0.05)

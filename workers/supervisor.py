"""The parent process of a worker: it starts its children and restarts those that die.

One child runs events; the other is a periodic process, unless `--no-periodic` is given. The parent
imports everything, checks everything, and forks; it holds no connection and no thread. When a child
dies, whatever killed it, the parent starts the next one at once: a crash costs an event its lease
(10 s) and the platform's restart policy is never involved. A child that does not run any more (it
was stopped, or a handler keeps the interpreter's lock) is killed by the parent, as no thread of its
own can end it. There is no fork per event: that costs RQ's own worker 20 to 100 ms of CPU for each
(measured).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from identity_webhooks.handlers import MARKS
from service import logs, process, redis_url
from service.settings import Settings
from workers import beat, plugins
from workers.hooks import Hooks
from workers.in_hand import Held, InHand
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

STALLED = 30.0
"""Seconds after which the parent kills a child that does not run. Three leases: what it had in hand
is due again by then. A thread of Python code keeps the interpreter's lock for 5 ms at a time
(sys.getswitchinterval); C code that keeps it for this long counts as hung."""

RUNNING_PERIOD = 1.0
"""Seconds between two notes of a child that it runs."""

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
    for plugin, functions in router.by_plugin():
        # The complete list: a handler that is not logged here does not run.
        log.info("plugin_loaded", plugin=plugin.name, origin=plugin.origin, running=functions)
    if not wait_for_redis(settings, stop):
        return 0
    # Each thread has an event, and some more may be claimed and wait to run alone.
    in_hand = InHand(settings.worker_concurrency + CLAIM_AT_ONCE)
    children = [_Child("worker", lambda: _run_events(settings, router, stop, in_hand), in_hand)]
    if periodic:
        children.append(_Child("periodic", lambda: sweep_until(stop, settings), InHand(0)))
    gc.collect()
    gc.freeze()  # children share what is loaded by now, and need not walk through it for garbage
    where = redis_url.place(settings.redis_url.get_secret_value())
    log.info("worker_started", count=len(router.handlers), redis=where, pid=os.getpid())
    while not stop.requested:
        beat.beat()
        for child in children:
            if child.pid is None and time.monotonic() >= child.not_before:
                child.start(stop)
            elif child.has_stalled():
                _kill_stalled(child)
        for child in _ended(children):
            if not stop.requested:
                _report_death(child)
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
    in_hand: InHand
    pid: int | None = None
    code: int = 0
    started: float = 0
    not_before: float = field(default_factory=time.monotonic)
    ran_at: float = 0
    looked_at: float = 0
    still: float = 0
    """Seconds for which it has not run, as far as the parent did."""

    def start(self, stop: Stop) -> None:
        """Fork it. The stop is inherited with its signal handlers, so that no signal is lost."""
        parent = os.getpid()
        self.started = self.looked_at = time.monotonic()
        self.still = 0
        self.pid = os.fork()
        if self.pid == 0:
            stop.parent = parent
            _be_child(self.run, self.in_hand)

    def has_stalled(self) -> bool:
        """Look whether it runs; True once, when it has not for `STALLED` seconds.

        What counts is time in which the parent ran: a machine that is suspended and a container
        that is paused stop both, and neither has stalled then.
        """
        now, ran_at, before = time.monotonic(), self.in_hand.ran_at(), self.still
        if self.pid is None or ran_at != self.ran_at:
            self.still = 0
        else:
            self.still += min(now - self.looked_at, RUNNING_PERIOD)
        self.ran_at, self.looked_at = ran_at, now
        return before <= STALLED < self.still

    def ended(self, code: int) -> None:
        """Note that it has ended: by a signal if the code is negative."""
        at_once = time.monotonic() - self.started > LIVED
        self.code, self.not_before = code, time.monotonic() + (0 if at_once else 1)


def _be_child(run: Callable[[], None], in_hand: InHand) -> None:
    """Be a child; never returns to the parent's code."""
    code = os.EX_SOFTWARE
    try:
        threading.Thread(target=_note_running, args=(in_hand,), name="running", daemon=True).start()
        run()
        code = 0
    except BaseException:
        log.exception("worker_failed")
    finally:
        sys.stdout.flush()
        # Past the parent's exit handlers, which are not this process's to run.
        os._exit(code)


def _note_running(in_hand: InHand) -> None:
    while True:
        in_hand.note_running()
        time.sleep(RUNNING_PERIOD)


def _run_events(settings: Settings, router: Router, stop: Stop, in_hand: InHand) -> None:
    """Be the process that runs events, until asked to stop."""
    processor = Processor.from_settings(settings, stop, router, in_hand)
    processor.note_death()
    MARKS.closed = True
    hooks = Hooks(router)
    hooks.start()
    processor.note_handlers()
    log.info("worker_ready", pid=os.getpid())
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
    processor.end()
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


def _kill_stalled(child: _Child) -> None:
    """Log what it had in hand, and kill it: it reacts to no other signal."""
    name = "worker_stalled" if child.role == "worker" else "periodic_stalled"
    _report(name, child, child.in_hand.read(), pid=child.pid, limit=STALLED)
    if child.pid:
        os.kill(child.pid, signal.SIGKILL)


def _report_death(child: _Child) -> None:
    """Log what may have killed it. Its events are due again when their leases run out."""
    name = "worker_died" if child.role == "worker" else "periodic_died"
    _report(name, child, child.in_hand.bury(), exit_code=child.code)


def _report(name: str, child: _Child, held: list[Held], **fields: object) -> None:
    log.error(
        name,
        role=child.role,
        in_hand=[each.event_key for each in held],
        running=sorted({each.handler for each in held if each.handler}),
        **fields,
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

"""The worker process: a parent that keeps a child running, and the child that runs events.

The parent imports everything, checks everything, and forks; it holds no connection and no thread.
When the child dies, whatever killed it, the parent starts the next one at once: a crash costs an
event its lease (10 s) and the platform's restart policy is never involved. There is no fork per
event: that costs RQ's own worker 20 to 100 ms of CPU for each (measured).

The child is RQ's worker (registered, beating, listed by `rq info`) with a pop of its own:

* a **pop** is one step with the claim of the event (`Inbox.claim`), so nothing is ever in nobody's
  hands. RQ's own can lose a job when SIGTERM or a crash comes between its pop and its start
  (measured: 13 of 111 SIGTERMs). A signal here only sets a flag, which is looked at before a pop.
* each event then runs on a thread, many at once. A thread that is through with one takes the next
  itself, in the round trip that ends the first; the main thread takes for those that are idle.
  Whichever does, an event whose last worker died runs with nothing beside it.
* RQ hears nothing of this: should Redis fail in what RQ does between its pop and its run, RQ would
  drop the job, and the watch keep its claim for ever. RQ's life cycle of a job, with nothing to
  remember here, costs 1.2 ms of CPU and some 20 round trips (measured).
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import redis
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, StopRequested

from service import connection, logs, process
from service.inbox import Claim, Inbox
from service.inbox.keys import QUEUE
from service.metrics import Metrics
from service.settings import Settings
from workers import beat, plugins
from workers.jobs import Processor
from workers.reconcile import Reconciler, reconcile_for_ever
from workers.router import Router
from workers.watch import GRACE, Stop

WORKER_TTL = 16
"""Seconds. RQ waits for a wake-up for 15 s less than this, so an idle worker leaves within a
second; the price is a handful of Redis commands a second."""

KILL_AFTER = GRACE + 3
"""Seconds after which the parent kills a child that did not stop; platforms kill both after 30."""

CLAIM_AT_ONCE = 8
"""Events claimed in one step, at most. Redis is busy with it for half a millisecond (measured)."""

SWEEP_PERIOD = 0.5
"""Seconds between two sweeps. Sweeping an inbox with nothing due costs Redis about 20 us."""

log = logs.get(__name__)


def work(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit code of the process.

    Raises:
        plugins.PluginError: a plugin cannot be used.
        connection.UnsafeRedis: Redis would lose events.
    """
    process.keep_memory_private()
    router = plugins.load(settings)
    stop = _stop_on_signals()
    if not _wait_for_redis(settings, stop):
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
    beat.end()
    log.info("worker_stopped", pid=os.getpid())
    return 0


def sweep_for_ever(settings: Settings) -> int:
    """Run the periodic process until SIGTERM or SIGINT: wake what is past due, ask what was missed.

    Any number of them may run: each event is moved by one of them, each pass made by one.
    """
    process.keep_memory_private()
    stop = _stop_on_signals()
    if not _wait_for_redis(settings, stop):
        return 0
    client = connection.connect(settings)
    inbox, metrics = Inbox(client, limit=settings.inbox_limit), Metrics(client)
    # A pass takes minutes when much was missed; the sweep must not wait for it.
    threading.Thread(
        target=reconcile_for_ever,
        args=(Reconciler.from_settings(settings, inbox), inbox, stop),
        name="reconcile",
        daemon=True,
    ).start()
    log.info("periodic_started", pid=os.getpid())
    while not stop.requested:
        beat.beat()
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
    beat.end()
    log.info("periodic_stopped", pid=os.getpid())
    return 0


def _be_child(settings: Settings, router: Router, parent: int) -> None:
    """Be the process that runs events; never returns to the parent's code."""
    code = os.EX_SOFTWARE
    try:
        stop = _stop_on_signals(parent)
        processor = Processor.from_settings(settings, stop, router)
        threads = Threads(processor, settings.worker_concurrency, stop)
        while not stop.requested:
            # RQ gives up when Redis goes away; we do not.
            try:
                _rq_worker(settings, threads, stop).work(logging_level="WARNING")
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


class Threads:
    """Runs events, as many at once as there are threads."""

    def __init__(self, processor: Processor, count: int, stop: Stop) -> None:
        self._processor, self._count, self._stop = processor, count, stop
        self._free = threading.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="event")
        self._suspects: deque[Claim] = deque()

    def run_next(self, wait: float) -> bool:
        """Run the next events on idle threads, if there is one or will be in `wait` seconds.

        They are taken several at once, which costs one round trip. False when there was none.

        May raise `redis.RedisError`, with nothing in hand.
        """
        if not self._free.acquire(timeout=wait):
            return True
        if self._suspects:
            self._run_suspect()
            return True
        free = 1
        while free < CLAIM_AT_ONCE and self._free.acquire(blocking=False):
            free += 1
        claims: list[Claim] = []
        try:
            if not self._stop.requested:
                claims = self._processor.claim(free)
        finally:
            if unused := free - len(claims):
                self._free.release(unused)
        for claim in claims:
            if claim.lapses:
                self._suspects.append(claim)
                self._free.release()
            else:
                self._pool.submit(self._run, claim)
        return bool(claims)

    def _run_suspect(self) -> None:
        """Run an event whose last worker died, with nothing beside it.

        Should it be what kills workers, it takes nothing with it and no other event is suspected.
        """
        for _ in range(self._count - 1):  # the caller has one
            self._free.acquire()
        self._pool.submit(self._processor.process, self._suspects.popleft()).result()
        self._free.release(self._count)

    def drain(self) -> None:
        """Wait until everything that runs has ended; the watch sees to it that it does."""
        self._pool.shutdown(wait=True)
        for claim in self._suspects:
            self._processor.process(claim)  # which, at a stop, gives it back

    def _run(self, claim: Claim) -> None:
        """Run an event, and then the next ones while there are any, so that nobody has to be woken.

        Unless one has to run alone: then all threads get idle.
        """
        following: Claim | None = claim
        try:
            while following:
                following = self._processor.process(following, and_claim=not self._suspects)
                if following and following.lapses:
                    self._suspects.append(following)
                    return
        finally:
            self._free.release()


def _rq_worker(settings: Settings, threads: Threads, stop: Stop) -> SimpleWorker:
    """Return RQ's worker on our one queue, popping and running as this module says."""

    class InboxQueue(Queue):
        """The queue, popped by the inbox."""

        @classmethod
        def dequeue_any(  # type: ignore[override]  # the rest is about how to fetch a job
            cls, queues: Iterable[Queue], timeout: int | None, connection: redis.Redis, **_: Any
        ) -> NoReturn:
            """Run what comes within `timeout` seconds, then let RQ's loop beat and come back."""
            (queue,) = queues
            wait = timeout or 1
            deadline = time.monotonic() + wait
            while not stop.requested and time.monotonic() < deadline:
                if not threads.run_next(wait) and not _wait_for_wakeup(connection, queue.key, wait):
                    break
            if stop.requested:
                raise StopRequested
            raise DequeueTimeout(wait, queue.key)

    class ThreadedWorker(SimpleWorker):
        """RQ's worker, with a queue that runs what it pops, and our signal handlers."""

        queue_class = InboxQueue
        max_connection_wait_time = 2.0

        def heartbeat(self, *args: Any, **kwargs: Any) -> None:
            """Stop also while Redis is away, when RQ retries here and never reaches the pop."""
            try:
                _unless_full(super().heartbeat)(*args, **kwargs)
            except (redis.ConnectionError, redis.TimeoutError):
                if stop.requested:
                    raise StopRequested from None
                raise

        def check_for_suspension(self, burst: bool) -> None:
            """Look for no `rq suspend`, which holds back only those that start: RQ's look writes,
            so that no worker could start on a full Redis and empty it."""

        def run_maintenance_tasks(self) -> None:
            """RQ's registries hold nothing of ours, and one forged job in them would stop it."""

        register_birth = _unless_full(SimpleWorker.register_birth)
        register_death = _unless_full(SimpleWorker.register_death)
        set_state = _unless_full(SimpleWorker.set_state)

        def subscribe(self) -> None:
            """Listen to no commands: whoever can publish could stop workers. Signals do that."""

        def _install_signal_handlers(self) -> None:
            """Leave the handlers of `_stop_on_signals` in place."""

    return ThreadedWorker(
        [QUEUE],
        connection=connection.connect(settings),
        serializer="json",
        worker_ttl=WORKER_TTL,
    )


def _wait_for_wakeup(client: redis.Redis, queue: str, seconds: int) -> bool:
    try:
        # From the head to the head: it waits for a wake-up and takes nothing.
        return client.blmove(queue, queue, seconds, "LEFT", "LEFT") is not None
    except redis.OutOfMemoryError:
        if client.llen(queue):
            return True
        time.sleep(seconds)
        return False


def _unless_full(method: Callable[..., None]) -> Callable[..., None]:
    """Let RQ go without what it writes when Redis is full: working events off empties it."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        with suppress(redis.OutOfMemoryError):
            method(*args, **kwargs)

    return wrapped


def _stop_on_signals(parent: int | None = None) -> Stop:
    stop = Stop(parent)

    def request(_signal: int, _frame: FrameType | None) -> None:
        stop.request()

    signal.signal(signal.SIGTERM, request)
    signal.signal(signal.SIGINT, request)
    return stop


def _wait_for(child: int, stop: Stop) -> int:
    """Wait for the child's end, passing a stop on to it; its exit code, negative for a signal."""
    told = False
    while True:
        beat.beat()
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
        beat.beat()
        try:
            with connection.connect(settings) as client:
                connection.require_safe(client.info(), settings)
        except redis.RedisError as error:
            log.warning("redis_unreachable", error=type(error).__name__, delay_s=delay)
            time.sleep(delay)
            delay = min(5.0, delay * 2)
        else:
            return True
    return False

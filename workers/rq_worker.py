"""RQ's worker (registered, beating, listed by `rq info`) with a pop of its own.

* A **pop** is one step with the claim of the event (`Inbox.claim`), so an event always
  has an owner. RQ's own pop can lose a job when SIGTERM or a crash comes before its start
  (measured: 13 of 111 SIGTERMs). A signal here only sets a flag, which is looked at before a pop.
* Each event then runs on a thread (workers/pool.py), and RQ never runs the job itself: if Redis
  failed between RQ's pop and its run, RQ would drop the job while the heartbeat renewed its claim
  for ever. RQ's life cycle of a job has nothing to store here, and would cost 1.2 ms of CPU
  and some 20 round trips (measured).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

import redis
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, StopRequested

from service import connection
from service.inbox.keys import QUEUE
from service.settings import Settings
from workers.pool import Threads
from workers.stop import Stop

WORKER_TTL = 16
"""Seconds. RQ waits for a wake-up for 15 s less than this, so an idle worker leaves within a
second; the price is a handful of Redis commands a second."""


def rq_worker(settings: Settings, threads: Threads, stop: Stop) -> SimpleWorker:
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
                if not threads.run_next(wait) and not wait_for_wakeup(connection, queue.key, wait):
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
            """Ignore `rq suspend`, which stops only workers that start. RQ's check writes to Redis,
            so that no worker could start on a full Redis and empty it."""

        def run_maintenance_tasks(self) -> None:
            """Do nothing: RQ's registries hold no job of ours, and a forged one would stop RQ."""

        register_birth = _unless_full(SimpleWorker.register_birth)
        register_death = _unless_full(SimpleWorker.register_death)
        set_state = _unless_full(SimpleWorker.set_state)

        def subscribe(self) -> None:
            """Listen to no commands: whoever can publish could stop workers. Signals do that."""

        def _install_signal_handlers(self) -> None:
            """Leave the handlers of `stop_on_signals` in place."""

    return ThreadedWorker(
        [QUEUE],
        connection=connection.connect(settings, connection.RQ),
        serializer="json",
        worker_ttl=WORKER_TTL,
    )


def wait_for_wakeup(client: redis.Redis, queue: str, seconds: int) -> bool:
    """Wait until there is a wake-up in the queue; False when there was none in time."""
    try:
        # From the head to the head: it waits for a wake-up and takes nothing.
        return client.blmove(queue, queue, seconds, "LEFT", "LEFT") is not None
    except redis.OutOfMemoryError:
        if client.llen(queue):
            return True
        time.sleep(seconds)
        return False


def _unless_full(method: Callable[..., None]) -> Callable[..., None]:
    """Ignore refused writes of RQ on a full Redis: processing events frees its memory."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        with suppress(redis.OutOfMemoryError):
            method(*args, **kwargs)

    return wrapped

"""The threads of a worker process, each of which runs one event at a time.

A thread that ends an event claims the next one in the same round trip; the main thread claims for
idle threads.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from service import logs
from service.inbox import Claim
from workers.jobs import Processor
from workers.stop import Stop

CLAIM_AT_ONCE = 8
"""Events claimed in one step, at most. Redis is busy with it for half a millisecond (measured)."""


class Threads:
    """Runs events, as many at once as there are threads."""

    def __init__(self, processor: Processor, count: int, stop: Stop) -> None:
        self._processor, self._stop = processor, stop
        self._free = threading.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="event", initializer=logs.is_ours)

    def run_next(self, wait: float) -> bool:
        """Claim events for the idle threads and run them; wait `wait` seconds for an idle one.

        Several are claimed in one round trip. False: a thread was idle, and no event was claimed.

        May raise `redis.RedisError`, with nothing in hand.
        """
        if not self._free.acquire(timeout=wait):
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
            self._pool.submit(self._run, claim)
        return bool(claims)

    def drain(self) -> None:
        """Wait until everything that runs has ended; the heartbeat sees to it that it does."""
        self._pool.shutdown(wait=True)

    def _run(self, claim: Claim) -> None:
        """Run an event, and then the next ones while there are any: no wake-up is waited for."""
        following: Claim | None = claim
        try:
            while following:
                following = self._processor.process(following, and_claim=True)
        finally:
            self._free.release()

"""The threads of a worker process, each of which runs one event at a time.

A thread that is through with an event claims the next one itself, in the round trip that ends the
first; the main thread claims for those that are idle. Whichever does, an event whose last worker
died runs with nothing beside it.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from service.inbox import Claim
from workers.jobs import Processor
from workers.stop import Stop

CLAIM_AT_ONCE = 8
"""Events claimed in one step, at most. Redis is busy with it for half a millisecond (measured)."""


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
        """Wait until everything that runs has ended; the heartbeat sees to it that it does."""
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

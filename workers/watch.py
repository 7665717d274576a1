"""The second thread of a worker process: it keeps claims alive and ends what hangs.

A handler runs in this process and cannot be interrupted safely, so one that overstays its timeout
is ended together with the process: its attempt is recorded, everything else in flight is given
back without spending an attempt, and the parent (workers/runner.py) starts a fresh process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis

from service import logs
from service.inbox import Claim, Inbox
from service.inbox.keys import LEASE
from workers.router import Handler

GRACE = 25.0
"""Seconds in-flight work has after SIGTERM. Heroku and `docker stop`'s usual setting kill after 30
(https://devcenter.heroku.com/articles/dyno-shutdown)."""

TICK = 0.25
"""Seconds between two looks at deadlines."""

log = logs.get(__name__)


class Stop:
    """Whether, and since when, this process is asked to stop.

    A plain attribute: a signal handler may set it at any instruction, and must not take a lock.
    """

    def __init__(self, parent: int | None = None) -> None:
        """Take a process id: when that is no longer our parent, nobody would stop or restart us."""
        self.requested_at: float | None = None
        self._parent = parent

    def request(self) -> None:
        """Ask the process to stop: nothing new is taken, what runs may finish."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether `request` was called, or the parent is gone."""
        if self._parent is not None and os.getppid() != self._parent:
            self.request()
        return self.requested_at is not None

    @property
    def overdue(self) -> bool:
        """Whether the grace period is over."""
        since = self.requested_at if self.requested else None
        return since is not None and time.monotonic() > since + GRACE


@dataclass(eq=False)
class _Watched:
    claim: Claim
    renewed: float = field(default_factory=time.monotonic)
    handler: Handler | None = None
    attempt: int = 0
    deadline: float = 0


class Watch:
    """Renews the leases of the claims this process works on, and enforces handlers' timeouts."""

    def __init__(self, inbox: Inbox, stop: Stop) -> None:
        self._inbox, self._stop = inbox, stop
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._started = False

    def begin(self, claim: Claim) -> None:
        """Keep this claim alive from now on."""
        with self._lock:
            self._watched[claim.event.key] = _Watched(claim)
            if not self._started:
                threading.Thread(target=self._run, name="watch", daemon=True).start()
                self._started = True

    def end(self, claim: Claim) -> None:
        """Let go of it: it is settled or given back."""
        with self._lock:
            watched = self._watched.get(claim.event.key)
            if watched is not None and watched.claim is claim:
                del self._watched[claim.event.key]

    @contextmanager
    def deadline(self, claim: Claim, handler: Handler, attempt: int) -> Iterator[None]:
        """End the process when the block, a run of this handler, takes longer than allowed."""
        watched = self._watched[claim.event.key]
        with self._lock:
            watched.handler, watched.attempt = handler, attempt
            watched.deadline = time.monotonic() + handler.timeout
        try:
            yield
        finally:
            with self._lock:
                watched.handler = None

    def _run(self) -> None:
        while True:
            time.sleep(TICK)
            with self._lock:
                watched = list(self._watched.values())
            now = time.monotonic()
            for each in watched:
                if now > each.renewed + LEASE / 3 and not each.claim.lost:
                    self._renew(each)
                if each.handler is not None and now > each.deadline:
                    self._end_hung(each)
            if self._stop.overdue and watched:
                self._leave("grace_period_over")

    def _renew(self, watched: _Watched) -> None:
        try:
            if not self._inbox.renew(watched.claim):
                log.warning("lease_lost", event_key=watched.claim.event.key)
            watched.renewed = time.monotonic()
        except redis.RedisError:
            # Tried again at the next tick; should the lease run out, the token decides.
            log.warning("lease_not_renewed", event_key=watched.claim.event.key)

    def _end_hung(self, watched: _Watched) -> None:
        with self._lock:
            # It may have come back since.
            if watched.handler is None:
                return
            claim, handler, attempt = watched.claim, watched.handler, watched.attempt
            progress, delay = handler.failed(attempt, claim.age, "timeout")
            log.error(
                "handler_timeout",
                event_key=claim.event.key,
                handler=handler.name,
                attempt=attempt,
                status=progress.status,
            )
            try:
                if self._inbox.save_progress(claim, handler.name, progress, delay):
                    self._inbox.release(claim, delay, "timeout")
            except redis.RedisError:
                log.warning("timeout_not_recorded", event_key=claim.event.key)
            self._leave_locked("handler_timeout")

    def _leave(self, why: str) -> None:
        with self._lock:
            self._leave_locked(why)

    def _leave_locked(self, why: str) -> None:
        for watched in self._watched.values():
            try:
                self._inbox.release(watched.claim, 0, "worker stopped")
            except redis.RedisError:
                log.warning("claim_not_released", event_key=watched.claim.event.key)
        log.warning("worker_leaves", reason=why, count=len(self._watched))
        # Not sys.exit: the thread that hangs would hold the interpreter's shutdown.
        os._exit(os.EX_TEMPFAIL)

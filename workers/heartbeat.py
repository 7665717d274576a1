"""The heartbeat thread of a worker process: it renews claims and enforces timeouts.

A handler cannot be interrupted safely within its process, so one that exceeds its timeout is ended
together with the process: its attempt is recorded, all other events are released without spending
an attempt, and the parent (workers/supervisor.py) starts a fresh process.
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
from service.metrics import Metrics
from workers.in_hand import InHand
from workers.router import Handler
from workers.stop import Stop

TICK = 0.25
"""Seconds between two looks at deadlines."""

log = logs.get(__name__)


@dataclass(eq=False)
class _Watched:
    claim: Claim
    renewed: float = field(default_factory=time.monotonic)
    handler: Handler | None = None
    deadline: float = 0
    was_refused: bool = False

    @property
    def running(self) -> str | None:
        """The name of the handler that runs, if one does."""
        return self.handler.name if self.handler else None


class Heartbeat:
    """Renews the leases of the claims this process works on, and enforces handlers' timeouts."""

    def __init__(self, inbox: Inbox, metrics: Metrics, stop: Stop, in_hand: InHand) -> None:
        """`in_hand`: where this process notes its events, for a supervisor to read."""
        self._inbox, self._metrics, self._stop = inbox, metrics, stop
        self._in_hand = in_hand
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._begun = threading.Condition(self._lock)
        self._started = False
        self._stopped = threading.Event()

    def begin(self, claim: Claim) -> None:
        """Keep this claim alive from now on."""
        self._in_hand.note(claim.event.key, claim.token)
        with self._lock:
            self._watched[claim.event.key] = _Watched(claim)
            self._begun.notify()
            if not self._started:
                threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
                self._started = True

    def end(self, claim: Claim) -> None:
        """Stop renewing the claim: the event is settled or released."""
        with self._lock:
            watched = self._watched.get(claim.event.key)
            if watched is not None and watched.claim is claim:
                del self._watched[claim.event.key]
                self._in_hand.forget(claim.event.key)

    def stop(self) -> None:
        """Renew nothing any more, and end the thread."""
        with self._lock:
            self._stopped.set()
            self._begun.notify()

    def count(self) -> int:
        """Return how many claims this process has in hand."""
        return len(self._watched)

    @contextmanager
    def deadline(self, claim: Claim, handler: Handler) -> Iterator[None]:
        """End the process when the block, a run of this handler, takes longer than allowed."""
        watched = self._watched[claim.event.key]
        with self._lock:
            watched.handler = handler
            watched.deadline = time.monotonic() + handler.timeout
        self._in_hand.note(claim.event.key, claim.token, handler.name)
        try:
            yield
        finally:
            self._in_hand.note(claim.event.key, claim.token)
            with self._lock:
                watched.handler = None

    def _run(self) -> None:
        logs.is_ours()
        while not self._stopped.wait(TICK):
            with self._begun:
                self._begun.wait_for(lambda: self._watched or self._stopped.is_set())
                watched = list(self._watched.values())
            now = time.monotonic()
            for each in watched:
                if each.was_refused:
                    # Not at once: its event may just have been settled, and leave this list.
                    log.warning("lease_lost", handler=each.running, **_names(each.claim))
                    each.was_refused = False
                elif now > each.renewed + LEASE / 3 and not each.claim.lost:
                    self._renew(each)
                if each.handler is not None and now > each.deadline:
                    self._end_hung(each)
            if self._stop.overdue:
                self._leave("grace_period_over")

    def _renew(self, watched: _Watched) -> None:
        try:
            watched.was_refused = not self._inbox.renew(watched.claim)
            watched.renewed = time.monotonic()
        except redis.RedisError:
            # Tried again at the next tick; should the lease run out, the token decides.
            log.warning("lease_not_renewed", **_names(watched.claim))

    def _end_hung(self, watched: _Watched) -> None:
        with self._lock:
            # It may have come back since.
            if watched.handler is None:
                return
            claim, handler = watched.claim, watched.handler
            before = claim.so_far(handler.name)
            progress, delay = handler.failed(before, claim.now, "timeout")
            log.error(
                "handler_timeout",
                handler=handler.name,
                attempt=progress.attempts,
                status=progress.status,
                limit=handler.timeout,
                **_names(claim),
            )
            self._metrics.count("handler_runs", handler.name, progress.status)
            self._metrics.observe("handler_seconds", handler.timeout, handler.name)
            try:
                self._inbox.save_progress(claim, handler.name, progress, delay)
            except redis.RedisError:
                log.warning("timeout_not_recorded", handler=handler.name, **_names(claim))
            self._leave_locked("handler_timeout")

    def _leave(self, why: str) -> None:
        with self._lock:
            self._leave_locked(why)

    def _leave_locked(self, why: str) -> None:
        """Release all events at once, and end the process.

        Other handlers of the hung event may not have run yet.
        """
        for watched in self._watched.values():
            try:
                self._inbox.release(watched.claim, 0, "worker stopped")
            except redis.RedisError:
                log.warning("claim_not_released", **_names(watched.claim))
        log.warning("worker_leaves", reason=why, count=len(self._watched))
        self._metrics.end()
        # Not sys.exit: the thread that hangs would hold the interpreter's shutdown.
        os._exit(os.EX_TEMPFAIL)


def _names(claim: Claim) -> dict[str, str | None]:
    """Return the fields of an event for a log line; this thread has none of them bound."""
    event = claim.event
    return {
        "event_id": event.id,
        "session_id": event.session,
        "kind": event.kind,
        "account": event.account,
    }

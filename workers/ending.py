"""How a claim ends: the event is settled, or released until later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service import logs
from service.inbox import Claim, ClaimResult, Inbox, Progress, Reply, save_progress_at_end
from service.metrics import Metrics
from workers.hooks import Hooks
from workers.router import Handler
from workers.stop import Stop
from workers.summary import current, settled
from workers.verification import Facts

UNKNOWN_WAIT = 60.0
"""Seconds until an event is looked at again whose handler this release does not have."""

UNKNOWN_FOR = 3600
"""Seconds past its retry's due time until a handler that no release had is given up: as long as
two releases may run side by side (a rolling deploy)."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End the event."""

    state: Literal["done", "dead"]
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give the event back, due again after `delay` seconds; `is_fault`: for a fault of ours."""

    delay: float
    reason: str
    is_fault: bool = False


End = Finish | Release

_FAULTS = ("stripe: ", "redis failed", "processing failed")

_GONE = (
    "this release has no such handler (removed or renamed?): bring it back and replay, or replay to"
    " go without it"
)

log = logs.get(__name__)


def end_of(claim: Claim, subscribed: Sequence[Handler], facts: Facts | None = None) -> End:
    """End the event if no handler has to run any more; else release it until the next is due."""
    names = {handler.name for handler in subscribed}
    if names - claim.progress.keys():
        # Stopped before every handler had its turn.
        return Release(0, "worker stopped")
    waiting = {name: p for name, p in claim.progress.items() if not p.over}
    if known := [p for name, p in waiting.items() if name in names]:
        first = min(known, key=lambda p: p.due)
        # Without an attempt it waits for Stripe.
        reason = "handlers wait for their retry" if first.attempts else first.reason
        return Release(max(0.05, (first.due - claim.now) / 1000), reason)
    for unknown, progress in sorted(waiting.items()):
        overdue = (claim.now - progress.due) / 1000
        log.warning("handler_unknown", handler=unknown, age_s=round(overdue))
        if overdue < UNKNOWN_FOR:
            # A newer release may have it (a rolling deploy).
            return Release(UNKNOWN_WAIT, f"{unknown}: this release has no such handler")
        if claim.unwritten:
            return Release(0, "another result is to be written first")
        save_progress_at_end(claim, unknown, Progress("dead", progress.attempts, reason=_GONE))
    outcome, reason = facts.outcome_and_reason if facts else ("" if names else "no_handler", "")
    dead = [
        f"{name}: {p.reason}" for name, p in sorted(claim.progress.items()) if p.status == "dead"
    ]
    return Finish("dead", outcome, dead[0]) if dead else Finish("done", outcome, reason)


class Ender:
    """Ends claims."""

    def __init__(self, inbox: Inbox, metrics: Metrics, stop: Stop, hooks: Hooks) -> None:
        self._inbox, self._metrics, self._stop, self._hooks = inbox, metrics, stop, hooks

    def end(
        self, claim: Claim, end: End | None, *, and_claim: bool = False
    ) -> Reply[list[ClaimResult]] | None:
        """End the claim; with `and_claim`, claim the next event in the same round trip.

        May raise `redis.RedisError`.
        """
        finished: Reply[float | None] | None = None
        released: Reply[bool] | None = None
        following: Reply[list[ClaimResult]] | None = None
        if isinstance(end, Finish) and end.state == "dead":
            # Before the event is settled: if this process dies here, `on_dead` is called again.
            for name, progress in claim.progress.items():
                if progress.status == "dead":
                    self._hooks.tell_dead(claim, name, progress)
        with self._inbox.pipeline() as pipe:
            if isinstance(end, Finish):
                finished = pipe.finish(claim, end.state, outcome=end.outcome, reason=end.reason)
            elif end is not None:
                # Stripe's failures pass or are judged (workers/failures.py), a stop is none.
                say = log.warning if end.reason.startswith(_FAULTS) else log.info
                say(
                    "event_released",
                    reason=end.reason,
                    delay_s=round(end.delay, 3),
                    account=claim.event.account,
                    request_ids=current().request_ids or None,
                )
                released = pipe.release(claim, end.delay, end.reason, is_fault=end.is_fault)
            if and_claim and not self._stop.requested:
                following = pipe.claim()
        took = finished.result() if finished else None
        kept = took is not None or bool(released and released.result())
        if end:
            self._count_last(claim.unwritten, kept=kept)
        if isinstance(end, Finish) and took is not None:
            self._report(claim, end, took)
        return following

    def _report(self, claim: Claim, end: Finish, took: float) -> None:
        self._metrics.count("settled", end.state, end.outcome)
        # What was put back is as fast as it was then.
        self._metrics.observe("settle_seconds", took - claim.replayed_after)
        settled(
            claim,
            claim.event,
            state=end.state,
            outcome=end.outcome,
            reason=end.reason,
            took=took,
            progress=claim.progress,
        )

    def _count_last(self, unwritten: tuple[str | int, ...], *, kept: bool) -> None:
        """Count the last handler's run, which was written with the end, or lost with the claim."""
        handler, status = map(str, unwritten[:2]) if unwritten else (None, "")
        if not kept:
            log.warning("claim_lost", handler=handler)
        if handler:
            self._metrics.count("handler_runs", handler, status if kept else "lost")

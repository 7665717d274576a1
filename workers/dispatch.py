"""Run handlers one after the other, and record the result of each.

A result is recorded before the next handler starts; that of the last one together with the end of
the event.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, NamedTuple

from identity_webhooks.answers import told
from identity_webhooks.handlers import RETRY_FOR, Discard, Retry
from identity_webhooks.verification import Verification
from service import logs
from service.inbox import Claim, Inbox, Progress, save_progress_at_end
from service.metrics import Metrics
from workers.heartbeat import Heartbeat
from workers.own_process import NotRun, OwnProcess
from workers.router import Failed, Handler, Router, place
from workers.stop import Stop
from workers.summary import current
from workers.verification import Facts

log = logs.get(__name__)


SUSPECTS_IDLE = 10.0
"""Seconds without a suspect until the process that runs them ends: a lease, so that it runs all
those of one death."""

BUSY_CAP = 60.0
"""Seconds: the longest wait for a process that is busy. After an outage all events are old."""

BUSY = "other events wait for the handler's own process"
"""Why a handler waits, for the record."""


class Result(NamedTuple):
    """How a handler fared.

    Attributes:
        progress: what to write down.
        delay: for `retry`, the seconds until it may run again.
        waits: whether it did not run: Stripe did not give what it needs, or its own process is
            busy.
    """

    progress: Progress
    delay: float = 0
    waits: bool = False


class Dispatcher:
    """Runs the handlers of an event."""

    def __init__(
        self,
        inbox: Inbox,
        router: Router,
        metrics: Metrics,
        stop: Stop,
        heartbeat: Heartbeat,
    ) -> None:
        self._inbox, self._metrics = inbox, metrics
        self._stop, self._heartbeat = stop, heartbeat
        self._own_processes = {
            handler.name: OwnProcess([handler])
            for handler in router.handlers
            if handler.own_process
        }
        shared = [handler for handler in router.handlers if not handler.own_process]
        self._for_suspects = OwnProcess(shared, idle=SUSPECTS_IDLE)

    def turn(self, claim: Claim, due: Sequence[Handler]) -> AbstractContextManager[bool]:
        """Wait for the event's turn, if it has to; False when there is no use in waiting.

        A suspect runs when no other one does.
        """
        if any(self._process_of(handler, claim) is self._for_suspects for handler in due):
            return self._for_suspects.turn()
        own = [self._own_processes.get(handler.name) for handler in due]
        all_busy = bool(own) and all(each and each.is_busy for each in own)
        return nullcontext(enter_result=not all_busy)

    def run(
        self, handlers: Sequence[Handler], claim: Claim, facts: Facts, *, to_the_end: bool
    ) -> None:
        """Run these handlers, until the worker stops or the claim is lost.

        `to_the_end`: no other handler of the event runs after them.
        """
        with logs.masking(facts.personal_values()):
            for handler in handlers:
                last = to_the_end and handler is handlers[-1]
                with self._turn(handler) as is_its_turn:
                    if claim.lost or self._stop.requested:
                        break
                    if is_its_turn:
                        # What a handler changes in its session, the next one does not see.
                        own = facts if last else facts.copy()
                        result = self.run_one(handler, claim, own)
                    else:
                        waiting = replace(claim.so_far(handler.name), reason=BUSY)
                        result = Result(waiting, busy_wait(claim), waits=True)
                if result is None:
                    break
                self._write_down(handler, claim, result, last=last)

    def _turn(self, handler: Handler) -> AbstractContextManager[bool]:
        own = self._own_processes.get(handler.name)
        return own.turn() if own else nullcontext(enter_result=True)

    def _process_of(self, handler: Handler, claim: Claim) -> OwnProcess | None:
        """Return the process that it runs in; None: in this one.

        A handler that may have killed a worker, or has killed its process, runs in a process of its
        own, so that it cannot end other events' runs.
        """
        shared = self._for_suspects if claim.suspect else None
        return self._own_processes.get(handler.name, shared)

    def _write_down(self, handler: Handler, claim: Claim, result: Result, *, last: bool) -> None:
        """Write down how it fared; of the last one together with the end of the claim."""
        progress, delay, waits = result
        if last and progress.over and not claim.lost:
            save_progress_at_end(claim, handler.name, progress)
            return
        if not self._inbox.save_progress(claim, handler.name, progress, delay):
            log.warning("claim_lost", handler=handler.name)
        status = "waiting" if waits else progress.status
        self._metrics.count("handler_runs", handler.name, "lost" if claim.lost else status)

    def run_one(self, handler: Handler, claim: Claim, facts: Facts) -> Result | None:
        """Run one handler, if it is to run; return its result. None: the run does not count."""
        previous = claim.so_far(handler.name)
        if skipped := facts.skips(handler):
            if previous.attempts:
                log.warning(
                    "handler_superseded",
                    handler=handler.name,
                    attempt=previous.attempts,
                    status=skipped,
                    reason=previous.reason,
                )
            return Result(Progress(skipped, previous.attempts, reason=previous.reason))
        if verdict := facts.withheld.get(handler.name):
            # Not its fault, so not its attempt.
            status: Literal["dead", "retry"] = "dead" if verdict.delay is None else "retry"
            progress = replace(previous, status=status, reason=verdict.reason)
            return Result(progress, verdict.delay or 0, waits=not progress.over)
        return self._attempt(handler, claim, facts, previous)

    def _attempt(
        self, handler: Handler, claim: Claim, facts: Facts, before: Progress
    ) -> Result | None:
        """Run it; what it raises ends here, and only types and places of it go on.

        None: it failed while the worker stops, maybe for that reason.
        """
        attempt = before.attempts + 1
        verification = Verification(
            event=claim.event,
            session=facts.session,
            report=facts.report,
            outcome=facts.outcome,
            sensitive=facts.sensitive.only(handler.needs),
            idempotency_key=f"{claim.identity}:{handler.name}",
            attempt=attempt,
            superseded=facts.superseded,
            log=handler.log(claim.event, attempt),
            last_attempt=handler.is_last(before, claim.now),
            order=claim.now,
        )
        with current().tracing.handler(handler.name, attempt) as ended:
            result = self._run(handler, claim, facts, before, verification)
            ended(result.progress.status if result else "stopped")
        return result

    def _run(
        self,
        handler: Handler,
        claim: Claim,
        facts: Facts,
        before: Progress,
        verification: Verification,
    ) -> Result | None:
        attempt = verification.attempt
        progress, delay, failed, failure = Progress("done", attempt), 0.0, "", None
        summary, began = current(), time.monotonic()
        if (waited := summary.starts_handler()) is not None:
            self._metrics.observe("start_seconds", waited)
        try:
            if own := self._process_of(handler, claim):
                own.run(handler, verification, facts.personal_values())
            else:
                with self._heartbeat.deadline(claim, handler):
                    handler.run(verification)
        except Retry as retry:
            text, wait = told(retry)
            reason = _reason("retry", text)
            progress, delay = handler.failed(before, claim.now, reason, wait)
        except Discard as discard:
            reason = _reason("discarded", told(discard)[0])
            progress = Progress("dead", attempt, reason=reason)
        except NotRun as not_run:
            failed = _reason("failed", not_run)
            progress, delay = _not_run(before, claim, failed)
        except Failed as error:
            failed = _reason("failed", error.reason)
            progress, delay = handler.failed(before, claim.now, failed)
        except BaseException as error:  # noqa: BLE001 (sys.exit is the handler's failure, not ours)
            failure = error
            failed = _reason("failed", place(error))
            progress, delay = handler.failed(before, claim.now, failed)
        summary.ran[handler.name] = time.monotonic() - began
        self._metrics.observe("handler_seconds", summary.ran[handler.name], handler.name)
        if failed and self._stop.is_coming():
            log.warning("handler_stopped", handler=handler.name, attempt=attempt, reason=failed)
            self._metrics.count("handler_runs", handler.name, "stopped")
            return None
        if progress.status != "done":
            log.warning(
                "handler_failed",
                handler=handler.name,
                attempt=attempt,
                status=progress.status,
                reason=progress.reason,
                delay_s=round(delay, 3),
                _error=failure,  # the reason has its type and its place
            )
        return Result(progress, delay)


def _not_run(before: Progress, claim: Claim, reason: str) -> tuple[Progress, float]:
    """Return the record of a handler whose process did not start, and the next wait.

    That is no attempt of the handler. It is retried for as long as one that fails.
    """
    since = before.since or claim.now
    is_over = claim.now - since > RETRY_FOR * 1000
    status: Literal["dead", "retry"] = "dead" if is_over else "retry"
    return replace(before, status=status, reason=reason, since=since), busy_wait(claim)


def busy_wait(claim: Claim) -> float:
    """Return a wait in seconds for a process that is busy, which grows with the event's age.

    So polling costs little, and an event starts soon after its process is free.
    """
    return random.uniform(0.1, min(BUSY_CAP, max(2.0, claim.age / 2)))  # noqa: S311 (no secret)


def _reason(word: str, text: object) -> str:
    """Return a handler's own reason, redacted; whatever `str` of it does."""
    return f"{word}: {logs.quote(text)}".replace("|", "/")

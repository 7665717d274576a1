"""Running handlers: one after the other, each alone, and what each of them raised.

How a handler fared is written down before the next one starts, and of the last one together with
the end of the event.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

from identity_webhooks.answers import told
from identity_webhooks.handlers import Discard, Retry
from identity_webhooks.verification import Verification
from service import logs
from service.inbox import Claim, Inbox, Progress, save_progress_at_end
from service.metrics import Metrics
from workers.heartbeat import Heartbeat
from workers.own_process import OwnProcess
from workers.router import Failed, Handler, Router, place
from workers.stop import Stop
from workers.verification import Facts

log = logs.get(__name__)


class Result(NamedTuple):
    """How a handler fared.

    Attributes:
        progress: what to write down.
        delay: for `retry`, the seconds until it may run again.
        waits: whether it did not run, as Stripe did not give what it needs.
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
            handler.name: OwnProcess(handler) for handler in router.handlers if handler.own_process
        }

    def run(
        self, handlers: Sequence[Handler], claim: Claim, facts: Facts, *, to_the_end: bool
    ) -> None:
        """Run these handlers until one is told to stop, or the claim is lost.

        `to_the_end`: no other handler of the event runs after them.
        """
        with logs.masking(facts.personal_values()):
            for handler in handlers:
                with self._turn(handler):
                    if claim.lost or self._stop.requested:
                        break
                    last = to_the_end and handler is handlers[-1]
                    # What a handler changes in its session, the next one does not see.
                    own = facts if last else facts.copy()
                    result = self.run_one(handler, claim, own)
                self._write_down(handler, claim, result, last=last)

    def _turn(self, handler: Handler) -> AbstractContextManager[object]:
        own = self._own_processes.get(handler.name)
        return own.turn if own else contextlib.nullcontext()

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

    def run_one(self, handler: Handler, claim: Claim, facts: Facts) -> Result:
        """Run one handler, if it is to run; say how it fared."""
        previous = claim.progress.get(handler.name) or Progress("retry", 0)
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
            progress = Progress(status, previous.attempts, reason=verdict.reason)
            return Result(progress, verdict.delay or 0, waits=not progress.over)
        return self._attempt(handler, claim, facts, previous.attempts + 1)

    def _attempt(self, handler: Handler, claim: Claim, facts: Facts, attempt: int) -> Result:
        """Run it; what it raises ends here, and only types and places of it go on."""
        verification = Verification(
            event=claim.event,
            session=facts.session,
            report=facts.report,
            outcome=facts.outcome,
            sensitive=facts.sensitive.only(handler.needs),
            idempotency_key=f"{claim.identity}:{handler.name}",
            attempt=attempt,
            superseded=facts.superseded,
            log=logs.get("handler").bind(handler=handler.name, attempt=attempt),
            last_attempt=handler.exhausted(attempt, claim.age),
        )
        progress, delay = Progress("done", attempt), 0.0
        try:
            if own := self._own_processes.get(handler.name):
                own.run(verification, facts.personal_values())
            else:
                with self._heartbeat.deadline(claim, handler, attempt):
                    handler.run(verification)
        except Retry as retry:
            text, wait = told(retry)
            reason = _reason("retry", text)
            progress, delay = handler.failed(attempt, claim.age, reason, wait)
        except Discard as discard:
            reason = _reason("discarded", told(discard)[0])
            progress = Progress("dead", attempt, reason=reason)
        except Failed as failed:
            reason = _reason("failed", failed.reason)
            progress, delay = handler.failed(attempt, claim.age, reason)
        except BaseException as error:  # noqa: BLE001 (sys.exit is the handler's failure, not ours)
            reason = _reason("failed", place(error))
            progress, delay = handler.failed(attempt, claim.age, reason)
        if progress.status != "done":
            log.warning(
                "handler_failed",
                handler=handler.name,
                attempt=attempt,
                status=progress.status,
                reason=progress.reason,
                delay_s=round(delay, 3),
            )
        return Result(progress, delay)


def _reason(word: str, text: object) -> str:
    """Return a handler's own reason, redacted; whatever `str` of it does."""
    return f"{word}: {logs.quote(text)}".replace("|", "/")

"""The log line of a settled event, which alone holds all of its result.

While a thread works on an event it notes here which calls of Stripe were made, which handlers ran,
and how long each took. The notes are of one claim: what an earlier one did stands in the record.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from identity_webhooks.event import Event
from service import logs
from service.extras import Tracing
from service.inbox import Claim, Progress

log = logs.get(__name__)


class StripeCall(NamedTuple):
    """One request to Stripe, of which there are more when the SDK repeats it.

    Attributes:
        operation: `GET /v1/identity/verification_sessions/*`.
        status: the HTTP status, or `none` without an answer.
        seconds: how long it took.
        request_id: `req_...`, if Stripe gave one.
    """

    operation: str
    status: str
    seconds: float
    request_id: str | None


@dataclass
class Summary:
    """Notes about the work on one claim. Times are seconds."""

    began: float = field(default_factory=time.monotonic)
    calls: list[StripeCall] = field(default_factory=list)
    ran: dict[str, float] = field(default_factory=dict)
    first_handler: float | None = None
    tracing: Tracing = field(default_factory=Tracing)

    def starts_handler(self) -> float | None:
        """Note that a handler starts now; how long after the claim, if it is the first."""
        if self.first_handler is not None:
            return None
        self.first_handler = time.monotonic() - self.began
        return self.first_handler

    @property
    def request_ids(self) -> list[str]:
        """The ids of the calls, in order: to look them up in Stripe's Dashboard."""
        return [call.request_id for call in self.calls if call.request_id]

    def stages(self) -> dict[str, int]:
        """Return the milliseconds of each stage that there was."""
        stages = {"stripe": sum(call.seconds for call in self.calls) if self.calls else None}
        stages["claim_to_handler"] = self.first_handler
        stages["handlers"] = sum(self.ran.values()) if self.ran else None
        stages["claim_to_end"] = time.monotonic() - self.began
        return {name: round(s * 1000) for name, s in stages.items() if s is not None}


_summary: ContextVar[Summary | None] = ContextVar("summary", default=None)


@contextmanager
def summarizing(tracing: Tracing) -> Iterator[Summary]:
    """Begin a summary; what this thread does in the block is noted in it, and traced."""
    summary = Summary(tracing=tracing)
    token = _summary.set(summary)
    try:
        yield summary
    finally:
        _summary.reset(token)


def current() -> Summary:
    """Return this thread's summary; outside of `summarizing` one that is thrown away."""
    return _summary.get() or Summary()


def settled(
    claim: Claim | None,
    event: Event,
    *,
    state: str,
    outcome: str,
    reason: str = "",
    took: float | None = None,
    progress: Mapping[str, Progress],
) -> None:
    """Log that an event is settled, with all there is to say of it: an error if it is dead.

    `took`: seconds from accepted to settled, where known.
    """
    summary = current()
    stages = summary.stages() if claim else {}
    if claim is not None:
        stages["accepted_to_claim"] = round(claim.claimed_age * 1000)
    report = log.error if state == "dead" else log.info
    report(
        "event_settled",
        event_id=event.id,
        event_key=event.key,
        kind=event.kind,
        session_id=event.session,
        account=event.account,
        form=event.form,
        livemode=event.livemode,
        state=state,
        outcome=outcome,
        reason=reason or None,
        handlers=[_in_words(name, each, summary) for name, each in sorted(progress.items())],
        request_ids=summary.request_ids,
        stages_ms=stages,
        took_ms=None if took is None else round(took * 1000),
    )


def _in_words(name: str, progress: Progress, summary: Summary) -> str:
    ran = f" {summary.ran[name] * 1000:.0f}ms" if name in summary.ran else ""
    return f"{name} {progress.status} {progress.attempts}x{ran}"

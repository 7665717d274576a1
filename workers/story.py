"""What is told of an event when it is settled: one line, which alone says how it went.

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
class Story:
    """Notes about the work on one claim. Times are seconds."""

    began: float = field(default_factory=time.monotonic)
    calls: list[StripeCall] = field(default_factory=list)
    ran: dict[str, float] = field(default_factory=dict)
    first_handler: float | None = None

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


_story: ContextVar[Story | None] = ContextVar("story", default=None)


@contextmanager
def telling() -> Iterator[Story]:
    """Begin a story; what happens in the block on this thread is noted in it."""
    story = Story()
    token = _story.set(story)
    try:
        yield story
    finally:
        _story.reset(token)


def current() -> Story:
    """Return the story that is being told, or one that nobody hears."""
    return _story.get() or Story()


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
    story = current()
    stages = story.stages() if claim else {}
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
        handlers=[_in_words(name, each, story) for name, each in sorted(progress.items())],
        request_ids=story.request_ids,
        stages_ms=stages,
        took_ms=None if took is None else round(took * 1000),
    )


def _in_words(name: str, progress: Progress, story: Story) -> str:
    ran = f" {story.ran[name] * 1000:.0f}ms" if name in story.ran else ""
    return f"{name} {progress.status} {progress.attempts}x{ran}"

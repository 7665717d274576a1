"""What a handler is marked with, and what it may raise.

`on` only marks a function. So importing a module of handlers registers nothing, and a test calls a
handler like any function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from identity_webhooks.event import Kind

MARK = "__identity_webhooks__"
"""The attribute of a marked function that holds its `Subscription`."""

RETRY_FOR = 3 * 86_400
"""Seconds a failing handler is retried when it sets no number: as long as Stripe itself retries
deliveries in live mode (https://docs.stripe.com/webhooks#behaviors)."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Retry(Exception):
    """Raise it in a handler to be run again: `raise Retry("ledger is closed", delay=30)`.

    `delay` is in seconds; without it the wait grows with each attempt. Counts as an attempt.
    """

    # For a subclass that does not call `__init__`.
    reason: str = ""
    delay: float | None = None

    def __init__(self, reason: str, *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        # No longer than failing handlers are retried at all; nan and the like come out as 0.
        self.delay = None if delay is None else min(max(0.0, float(delay)), RETRY_FOR)


class Discard(Exception):
    """Raise it in a handler that can never succeed: the event is dead, with this reason."""

    reason: str = ""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Subscription:
    """What `on` was told."""

    events: tuple[str, ...]
    needs: tuple[str, ...]
    reason: tuple[str, ...]
    superseded: bool
    retries: int | None
    timeout: float
    own_process: bool


def on(
    *events: Kind | Literal["*"],
    needs: Iterable[str] = (),
    reason: Iterable[str] = (),
    superseded: bool = False,
    retries: int | None = None,
    timeout: float = 60,
    own_process: bool = False,
) -> Callable[[Function], Function]:
    """Mark a function as a handler of these events; `"*"` is all of them.

    Args:
        events: `created`, `processing`, `requires_input`, `verified`, `canceled`, `redacted`.
        needs: sensitive fields to fetch for it, by Stripe's path (`verified_outputs.dob`).
        reason: only for these codes of `last_error` (with `requires_input`).
        superseded: also for events that a later state has overtaken.
        retries: how often to run it again when it fails; by default for three days.
        timeout: seconds after which a run is ended, and with it its process.
        own_process: run it in a process of its own, one event at a time: for code that is not safe
            on threads.
    """
    words = Subscription(
        events, _words(needs), _words(reason), superseded, retries, timeout, own_process
    )

    def mark(function: Function) -> Function:
        setattr(function, MARK, words)
        return function

    return mark


def _words(value: Iterable[str]) -> tuple[str, ...]:
    # A lone string is an iterable of letters, which nobody means.
    return (value,) if isinstance(value, str) else tuple(value)

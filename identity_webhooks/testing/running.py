"""Run a handler as a worker does, and say how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import structlog
from structlog.stdlib import BoundLogger

from identity_webhooks.answers import call, told
from identity_webhooks.handlers import MARK, Discard, Mark, Retry, Subscription
from identity_webhooks.verification import SENSITIVE, Sensitive, Verification


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: `done`; `retry`: it would be run again; `dead`: it would not; `skipped` and
            `superseded`: it was not run, since `on` does not ask for such an event.
        reason: what would be written down, before masking; of an exception the type alone.
        delay: the seconds it asked to wait; None if it asked for none.
        error: what it raised.
        logs: what it logged by `v.log`: `event`, `level` and the keys that were given.
    """

    status: Literal["done", "retry", "dead", "skipped", "superseded"]
    reason: str = ""
    delay: float | None = None
    error: BaseException | None = None
    logs: list[Mapping[str, Any]] = field(default_factory=list)


def run(  # noqa: PLR0911 (one end each)
    handler: Callable[[Verification], object], v: Verification
) -> Result:
    """Run a handler with the fields it declares in `needs=`, and read its answer.

    Raises:
        TypeError: the function is not marked with `on(...)`.
    """
    options = subscription(handler)
    if "*" not in options.events and v.event.kind not in options.events:
        return Result("skipped", f"{v.event.kind} is none of its events")
    if v.superseded and not options.superseded:
        return Result("superseded")
    if options.reason and v.outcome.reason not in options.reason:
        return Result("skipped", f"{v.outcome.reason} is none of its reasons")
    logs: list[Mapping[str, Any]] = []
    # A declared field that the builder was not given is None, as where Stripe has none.
    declared = v.sensitive.only(frozenset(options.needs))
    values = {
        name: getattr(declared, name, None) for name in (SENSITIVE[need] for need in options.needs)
    }
    given = replace(v, sensitive=Sensitive(values), log=_recorder(logs))
    dead = v.last_attempt or (options.retries is not None and v.attempt > options.retries)
    status: Literal["dead", "retry"] = "dead" if dead else "retry"
    try:
        wrong = call(handler, given)
    except Retry as retry:
        text, delay = told(retry)
        return Result(status, f"retry: {text}", None if dead else delay, retry, logs)
    except Discard as discard:
        return Result("dead", f"discarded: {told(discard)[0]}", None, discard, logs)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a handler raises)
        return Result(status, f"failed: {type(error).__name__}", None, error, logs)
    if wrong:
        return Result(status, f"failed: {wrong}", logs=logs)
    return Result("done", logs=logs)


def subscription(handler: Callable[[Verification], object]) -> Subscription:
    """Return what `on` was told.

    Raises:
        TypeError: the function is not marked with `on(...)`.
    """
    mark = getattr(handler, MARK, None)
    if not isinstance(mark, Mark) or not isinstance(mark.options, Subscription):
        name = getattr(handler, "__name__", handler)
        raise TypeError(
            f"{name} is not marked with @on(...), so that no worker would run it: write"
            ' @on("verified") above it'
        )
    return mark.options


def _recorder(logs: list[Mapping[str, Any]]) -> BoundLogger:
    def record(_: object, level: str, event: Mapping[str, Any]) -> str:
        logs.append({"level": level, **event})
        raise structlog.DropEvent

    logger: BoundLogger = structlog.wrap_logger(
        None, processors=[record], wrapper_class=BoundLogger
    )
    return logger

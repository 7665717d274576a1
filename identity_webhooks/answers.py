"""What a handler's answer means: what it raised, and what came back.

The worker reads answers here, and so does `identity_webhooks.testing.run`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator

from identity_webhooks.handlers import Discard, Retry, seconds_of


def told(answer: Retry | Discard) -> tuple[str, float | None]:
    """Return what a handler's answer says, with what is wrong with it, and the wait it asks for.

    The text is as the handler wrote it: redact it before it is kept. The wait is in seconds.
    """
    delay, misuse = seconds_of(getattr(answer, "delay", None))
    reason: object = answer.reason  # whatever a handler put there
    text = reason if isinstance(reason, str) else ""
    misuse = answer.misuse or misuse
    return f"{text} ({misuse})" if text and misuse else text or misuse, delay


def wrong_return(answer: object) -> str:
    """Say why what a handler returned means that it failed; empty when it does not."""
    if inspect.iscoroutine(answer):
        answer.close()
    if inspect.isawaitable(answer) or isinstance(answer, AsyncIterator | Iterator):
        return (
            f"returned a {type(answer).__name__}, and nothing of it ran:"
            " handlers are plain functions that return None"
        )
    if isinstance(answer, Exception):
        answer = type(answer)
    if isinstance(answer, type) and issubclass(answer, Exception):
        return f"returned {answer.__name__}: write raise {answer.__name__}(...)"
    return ""

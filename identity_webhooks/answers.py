"""What a handler's result means: what it raised or returned.

Used by the worker and by `identity_webhooks.testing.run`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from traceback import walk_tb
from typing import TYPE_CHECKING

from identity_webhooks.handlers import Discard, Misuse, Retry, not_raised, seconds_of

if TYPE_CHECKING:
    from identity_webhooks.verification import Verification


def call(handler: Callable[[Verification], object], v: Verification) -> str:
    """Call a handler; why it failed although it raised nothing of its own, else an empty text.

    The text holds words of ours and names of types: it may be written down.

    Raises:
        BaseException: whatever the handler raises, but for `Misuse`.
    """
    with not_raised() as made:
        try:
            answer = handler(v)
        except Misuse as misuse:
            return f"{_place(misuse)}{misuse}"
    if wrong := wrong_return(answer) or v._once.left():
        return wrong
    return unraised(made)


def _place(misuse: Misuse) -> str:
    """Return the line of the handler's file that led to it: `file:line: `, without the folder."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(misuse.__traceback__)
        if frame.f_globals.get("__name__") != __name__
    ]
    # What it called in other files is most often ours, or of a library.
    lines = [line for file, line in frames if file == frames[0][0]]
    return f"{frames[0][0].rpartition('/')[2]}:{lines[-1]}: " if lines else ""


def unraised(made: Iterable[BaseException]) -> str:
    """Return a fault if a `Retry` or `Discard` was made and not raised; else an empty text."""
    left = next((each for each in made if each.__traceback__ is None), None)
    if left is None:
        return ""
    name = type(left).__name__
    return f"made {name}(...) and did not raise it: write raise {name}(...)"


def told(answer: Retry | Discard) -> tuple[str, float | None]:
    """Return reason and delay of a `Retry` or `Discard`; the reason names wrong arguments, too.

    The text is as the handler wrote it: redact it before it is kept. The wait is in seconds.
    """
    delay, misuse = seconds_of(getattr(answer, "delay", None))
    reason: object = answer.reason  # whatever a handler put there
    text = reason if isinstance(reason, str) else ""
    misuse = answer.misuse or misuse
    return f"{text} ({misuse})" if text and misuse else text or misuse, delay


def wrong_return(answer: object) -> str:
    """Say why what a function returned means that it failed; empty for None, the one right answer.

    Of any other value nobody can tell whether its author expects something to be done with it.
    """
    if answer is None:
        return ""
    if inspect.iscoroutine(answer):
        answer.close()
    if inspect.isawaitable(answer) or isinstance(answer, AsyncIterator | Iterator):
        return (
            f"returned a {type(answer).__name__}, and nothing of it ran:"
            " write a plain function that returns None"
        )
    if isinstance(answer, Exception):
        answer = type(answer)
    if isinstance(answer, type) and issubclass(answer, Exception):
        return f"returned {answer.__name__}: write raise {answer.__name__}(...)"
    return (
        f"returned a {type(answer).__name__}, which nobody looks at: return None, and raise Retry"
        " or Discard if it is not done"
    )

"""The decorators that mark handlers, and the exceptions that handlers may raise.

`on` marks a function and writes the mark down in `MARKS`. It registers nothing and refuses nothing:
the worker collects the marked functions when it loads plugins, and says what is wrong with those it
cannot collect. A test calls a handler like any function.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, Union, cast

from identity_webhooks.event import Event, Kind
from identity_webhooks.reasons import Reason

if TYPE_CHECKING:
    from identity_webhooks.verification import Need, Verification

MARK = "__identity_webhooks__"
"""The attribute of a marked function that holds its `Mark`."""

RETRY_FOR = 3 * 86_400
"""Seconds a failing handler is retried when it sets no number: as long as Stripe itself retries
deliveries in live mode (https://docs.stripe.com/webhooks#behaviors)."""

# A function, or a method with its `self` or `cls`. It returns nothing: an async function or a
# generator would return something that nobody runs.
Function = TypeVar(
    "Function",
    bound=Union[Callable[["Verification"], None], Callable[[Any, "Verification"], None]],  # noqa: UP007
)


Marked = TypeVar("Marked")
Hook = TypeVar("Hook", bound=Union[Callable[[], None], Callable[[Any], None]])  # noqa: UP007
DeadHook = TypeVar(
    "DeadHook",
    bound=Union[Callable[["Dead"], None], Callable[[Any, "Dead"], None]],  # noqa: UP007
)


class Misuse(TypeError):
    """What a handler was given is used in a way that does nothing; the text says what to write.

    It holds no personal data: words of ours, and names of types.
    """


class _Answer(Exception):
    """What `Retry` and `Discard` have in common.

    They accept any arguments. They are raised where a handler gives up on an event, and a TypeError
    there would replace the reason, for three days of retries.

    Attributes:
        reason: the handler's own words.
        misuse: what is wrong with the arguments and what to write; empty when nothing is.
    """

    # For a subclass that does not call `__init__`.
    reason: str = ""
    misuse: str = ""
    form: ClassVar[str]

    def __new__(cls, *_: object, **__: object) -> Self:
        """Note that it was made: not in `__init__`, which a subclass may replace."""
        made = super().__new__(cls)
        if (notes := _made.get()) is not None:
            notes.append(made)
        return made

    def __init__(self, reason: Any = "", *extra: object, **unknown: object) -> None:
        super().__init__(reason)
        self.reason = reason
        # No text of another's object: its `repr` may raise anything.
        if not isinstance(reason, str) or not reason:
            self.misuse = f'no reason given: write {type(self).__name__}("why")'
        elif extra or unknown:
            self.misuse = f"too much was given: write {self.form}"


_made: ContextVar[list[_Answer] | None] = ContextVar("made", default=None)


@contextmanager
def not_raised() -> Iterator[list[_Answer]]:
    """Collect each `Retry` and `Discard` that is made; the raised ones have a traceback."""
    notes: list[_Answer] = []
    token = _made.set(notes)
    try:
        yield notes
    except BaseException:
        notes.clear()  # what is raised refers to them, and they to it
        raise
    finally:
        _made.reset(token)


class Retry(_Answer):
    """Raise it in a handler to be run again: `raise Retry("ledger is closed", delay=30)`.

    `delay` is in seconds, or a timedelta, and at most three days; without it the wait grows with
    each attempt. Counts as an attempt.
    """

    delay: float | None = None
    form = 'Retry("why", delay=30)'

    if TYPE_CHECKING:

        def __init__(self, reason: str, *, delay: float | timedelta | None = None) -> None: ...

    else:

        def __init__(self, reason="", *extra, delay=None, **unknown) -> None:
            super().__init__(reason, *extra, **unknown)
            self.delay, misuse = seconds_of(delay)
            self.misuse = self.misuse or misuse


class Discard(_Answer):
    """Raise it in a handler that can never succeed: the event is dead, with this reason."""

    form = 'Discard("why")'

    if TYPE_CHECKING:

        def __init__(self, reason: str) -> None: ...


def seconds_of(delay: Any) -> tuple[float | None, str]:
    """Return a delay that can be waited for, and what is wrong with the one that was given."""
    if delay is None:
        return None, ""
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if not isinstance(delay, int | float):
        return None, f"delay= is a {type(delay).__name__}, not a number of seconds: write delay=30"
    if math.isnan(delay) or delay < 0:
        return 0.0, f"delay={delay!r} must be 0 or more"
    if delay > RETRY_FOR:
        return float(RETRY_FOR), f"delay={delay!r} is cut to the longest, {RETRY_FOR} s (3 days)"
    return float(delay), ""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What `on` was told."""

    events: tuple[str, ...]
    needs: tuple[str, ...] = ()
    reason: tuple[str, ...] | None = None
    superseded: bool = False
    retries: int | None = None
    timeout: float = 60
    own_process: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """One use of `on`.

    Attributes:
        target: what was marked; None when `on(...)` was called and marked nothing.
        options: what `on` was told, or the moment of a hook; None for `@on` without parentheses.
        module: the name of the module it stands in.
        file: of that module.
        line: of the call.
    """

    target: Any
    options: Subscription | Moment | None
    module: str
    file: str
    line: int


Moment = Literal["start", "stop", "dead"]
"""When a function marked by `on_start`, `on_stop` or `on_dead` is called."""


@dataclass(frozen=True, slots=True)
class Dead:
    """What an `on_dead` function gets: a handler that will not be run again for an event.

    Attributes:
        event: what happened.
        handler: its name, `<plugin>.<function>`.
        attempts: how often it ran.
        reason: why it failed last, without personal data.
        idempotency_key: the one the handler had.
    """

    event: Event
    handler: str
    attempts: int
    reason: str
    idempotency_key: str


class Marks(list[Mark]):
    """Marks, oldest first.

    Attributes:
        closed: whether this process has begun to run handlers. One more would never run, and `on`
            raises `Misuse`.
    """

    closed = False


MARKS = Marks()
"""Every mark made in this process. What stands here and is not collected by a worker would never
run, so the worker refuses to start."""


def on(
    *events: Kind | Literal["*"],
    needs: Need | Iterable[Need] = (),
    reason: Reason | Iterable[Reason] | None = None,
    superseded: bool = False,
    retries: int | None = None,
    timeout: float = 60,
    own_process: bool = False,
) -> Callable[[Function], Function]:
    """Mark a function as a handler of these events; `"*"` is all of them.

    Args:
        events: `created`, `processing`, `requires_input`, `verified`, `canceled`, `redacted`.
        needs: sensitive fields to fetch for it, by Stripe's path (`verified_outputs.dob`).
        reason: only for these codes of `last_error` (for a handler of `requires_input` alone).
        superseded: also for events that a later state has overtaken.
        retries: how often to run it again when it fails; by default for three days.
        timeout: seconds after which a run is ended, and with it its process.
        own_process: run it in a process of its own, one event at a time: for code that is not safe
            on threads.
    """
    here = sys._getframe(1)
    if len(events) == 1 and callable(function := cast(Any, events[0])):
        # @on without parentheses
        return cast("Callable[[Function], Function]", _mark(function, None, here))
    options = Subscription(
        events,
        _words(needs),
        None if reason is None else _words(reason),
        superseded,
        retries,
        timeout,
        own_process,
    )
    unused = _written_down(None, options, here)

    def mark(function: Function) -> Function:
        if unused in MARKS:
            MARKS.remove(unused)
        return _mark(function, options, sys._getframe(1))

    return mark


def on_start(function: Hook) -> Hook:
    """Mark a function to be called in the process that runs handlers, before the first event.

    There it may start threads and open connections: what is opened when the module is imported is
    opened in the parent, and does not survive the fork. When it raises, no event is run; it is
    called again a second later in a new process.
    """
    return _mark(function, "start", sys._getframe(1))


def on_stop(function: Hook) -> Hook:
    """Mark a function to be called after the last event of a process, unless that is killed."""
    return _mark(function, "stop", sys._getframe(1))


def on_dead(function: DeadHook) -> DeadHook:
    """Mark a function to be called when a handler of the same plugin has failed for good.

    It gets a `Dead`: the way to raise an alarm, or to undo. It is called at least once, has a
    minute, and is not tried again when it raises. An event that kills three workers in a row is
    dead without it.
    """
    return _mark(function, "dead", sys._getframe(1))


def _mark(target: Marked, options: Subscription | Moment | None, frame: FrameType) -> Marked:
    mark = _written_down(target, options, frame)
    with suppress(AttributeError, TypeError):  # a property, a bound method: the worker refuses it
        setattr(target, MARK, mark)
    return target


def _written_down(target: object, options: Subscription | Moment | None, frame: FrameType) -> Mark:
    module = frame.f_globals.get("__name__", "")
    file, line = frame.f_code.co_filename, frame.f_lineno
    if MARKS.closed:
        raise Misuse(
            f"{file.rpartition('/')[2]}:{line} marks a function when the handlers are collected"
            f" already, and it would never run: name {module} in HANDLERS or by an entry point"
        )
    mark = Mark(target, options, module, file, line)
    MARKS.append(mark)
    return mark


def _words(value: Any) -> tuple[str, ...]:
    # A lone string is an iterable of letters, and a mapping one of keys, which nobody means.
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return (cast(str, value),)
    return tuple(value)

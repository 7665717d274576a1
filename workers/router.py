"""Which handlers an event goes to, and what their results mean.

`identity_webhooks.on` only marks a function; a `Router` takes the marked functions of plugins
(workers/collecting.py finds them).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from structlog.contextvars import bound_contextvars
from structlog.stdlib import BoundLogger

from identity_webhooks import answers
from identity_webhooks.event import KINDS, Event, Kind
from identity_webhooks.handlers import RETRY_FOR, Mark, Moment, Subscription
from identity_webhooks.verification import Verification
from service import logs
from service.inbox import Progress
from workers import collecting, import_faults
from workers.collecting import Found

RETRY_BASE = 2.0
RETRY_CAP = 3600.0
"""Seconds: the longest wait before the n-th retry is `min(RETRY_CAP, RETRY_BASE * 2**n)`."""


@dataclass(frozen=True, slots=True, eq=False)
class Plugin:
    """A source of handlers. Several may have the same name: a plugin is equal to itself alone."""

    name: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler. `name` is `<plugin>.<function>`, and stays in the inbox's records."""

    name: str
    function: Callable[[Verification], object]
    events: frozenset[Kind]
    needs: frozenset[str]
    reasons: frozenset[str]
    superseded: bool
    retries: int | None
    timeout: float
    own_process: bool
    plugin: Plugin

    @property
    def origin(self) -> str:
        """Where its plugin comes from, in words."""
        return self.plugin.origin

    def is_last(self, before: Progress, now: int) -> bool:
        """Whether the attempt after `before` is the last one; `now` as in `Claim`.

        The three days count from its first failure: what an event waited for before, such as
        Stripe, is no failure of its handlers.
        """
        if self.retries is not None:
            return before.attempts >= self.retries
        return bool(before.since) and now - before.since > RETRY_FOR * 1000

    def log(self, event: Event, attempt: int) -> BoundLogger:
        """Return the logger that one run of it is given."""
        return logs.get("handler").bind(**self._names(event, attempt))

    def run(self, verification: Verification) -> None:
        """Call it. Every line that this thread logs meanwhile names the event and the handler.

        Raises:
            Failed: it returned something, or used what it was given in a way that does nothing.
            BaseException: whatever it raises.
        """
        with bound_contextvars(**self._names(verification.event, verification.attempt)):
            wrong = answers.call(self.function, verification)
        if wrong:
            raise Failed(wrong)

    def _names(self, event: Event, attempt: int) -> dict[str, str | int]:
        return {
            "event_id": event.id,
            "session_id": event.session,
            "kind": event.kind,
            "handler": self.name,
            "attempt": attempt,
        }

    def failed(
        self, before: Progress, now: int, reason: str, delay: float | None = None
    ) -> tuple[Progress, float]:
        """Return how a failed attempt is recorded, and the seconds until the next.

        Args:
            before: how it fared until this attempt.
            now: as in `Claim`.
            reason: what to write down; redacted already.
            delay: what the handler asked for; else full jitter.
        """
        attempt = before.attempts + 1
        if self.is_last(before, now):
            return Progress("dead", attempt, reason=reason), 0
        wait = backoff(attempt) if delay is None else delay
        return Progress("retry", attempt, reason=reason, since=before.since or now), wait


@dataclass(frozen=True, slots=True)
class Hook:
    """A function to be called at a moment of its plugin's life."""

    name: str
    plugin: Plugin
    moment: Moment
    function: Callable[..., object]


class Failed(Exception):
    """It failed without an exception of its own; `reason` is redacted, and may be written down."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.reason = why


class BadPlugin(Exception):
    """A plugin that cannot be used; `faults` says all that is wrong with it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Router:
    """The handlers, in the order they were added.

    `seen` holds the marks of all plugins that were added, also of those that were refused.
    """

    def __init__(self) -> None:
        self.handlers: list[Handler] = []
        self.seen: set[Mark] = set()
        self.hooks: list[Hook] = []
        self._found: list[tuple[Found, Handler]] = []

    def add(self, plugin: object, name: str, origin: str = "") -> None:
        """Collect the marked functions of a module, or the marked methods of an object.

        A pydantic-settings class is built first: its fields are the plugin's settings.

        Raises:
            BadPlugin: with every fault; nothing of the plugin was added then.
        """
        faults: list[str] = []
        added: list[tuple[Found, Handler]] = []
        hooks: list[Hook] = []
        names = {handler.name for handler in self.handlers}
        owner = Plugin(name, origin)
        for found in collecting.find(plugin, faults, self.seen):
            handler_name = f"{name}.{found.function.__name__}"
            wrong = list(collecting.faults_of(found))
            before = [*self._found, *added]
            if same := next((handler for other, handler in before if found.is_same(other)), None):
                door = f" ({same.origin})" if same.origin else ""
                wrong.append(f"is the same function as {same.name}{door}: name it once")
            elif handler_name in names:
                wrong.append(
                    "the name is taken by another handler: rename one; a plugin is named by the"
                    " last word of its path in HANDLERS, or by its entry point"
                )
            names.add(handler_name)
            where = import_faults.at(found.mark.file, found.mark.line)
            faults += [f"{handler_name}: {fault} ({where})" for fault in wrong]
            options = found.mark.options
            if isinstance(options, Subscription) and not wrong:
                added.append((found, _handler(handler_name, found, options, owner)))
            elif isinstance(options, str):
                hooks.append(Hook(handler_name, owner, options, found.function))
        if not added and not faults:
            faults.append(collecting.NO_HANDLER)
        if faults:
            raise BadPlugin(faults)
        self._found += added
        self.handlers += [handler for _, handler in added]
        self.hooks += hooks

    def by_plugin(self) -> Iterator[tuple[Plugin, list[str]]]:
        """Yield each plugin, and the names of its handlers and hooks."""
        members: list[Handler | Hook] = [*self.handlers, *self.hooks]
        for plugin in dict.fromkeys(each.plugin for each in members):
            own = (each.name for each in members if each.plugin is plugin)
            yield plugin, [name.rpartition(".")[2] for name in own]

    def match(self, kind: Kind) -> list[Handler]:
        """Return the handlers that subscribe to this kind of event."""
        return [handler for handler in self.handlers if kind in handler.events]


def backoff(attempt: int, cap: float = RETRY_CAP) -> float:
    """Return a wait in seconds with full jitter: between 0 and `min(cap, base * 2**attempt)`."""
    return random.uniform(0, min(cap, RETRY_BASE * 2 ** min(attempt, 32)))  # noqa: S311 (no secret)


def place(error: BaseException) -> str:
    """Return what may be written down of an exception: its type and where it came from."""
    return f"{type(error).__name__} at {logs.places(error.__traceback__, last=2)}"


def _handler(name: str, found: Found, options: Subscription, plugin: Plugin) -> Handler:
    events = KINDS if "*" in options.events else tuple(k for k in KINDS if k in options.events)
    return Handler(
        name=name,
        function=found.function,
        events=frozenset(events),
        needs=frozenset(options.needs),
        reasons=frozenset(options.reason or ()),
        superseded=options.superseded,
        retries=options.retries,
        timeout=options.timeout,
        own_process=options.own_process,
        plugin=plugin,
    )

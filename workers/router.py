"""Which handlers an event goes to, and what their answers mean.

`identity_webhooks.on` only marks a function; a `Router` collects the marked functions of a plugin
(a module, or an object with marked methods).
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from identity_webhooks.event import KINDS, Kind
from identity_webhooks.handlers import MARK, RETRY_FOR, Subscription
from identity_webhooks.verification import SENSITIVE, Verification
from service import logs
from service.inbox import Progress

RETRY_BASE = 2.0
RETRY_CAP = 3600.0
"""Seconds: the longest wait before the n-th retry is `min(RETRY_CAP, RETRY_BASE * 2**n)`."""


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
    origin: str

    def failed(
        self, attempt: int, age: float, reason: str, delay: float | None = None
    ) -> tuple[Progress, float]:
        """Return how a failed attempt is recorded, and the seconds until the next.

        Args:
            attempt: which one it was, from 1.
            age: seconds since the event was accepted.
            reason: what to write down; redacted already.
            delay: what the handler asked for; else full jitter.
        """
        exhausted = age > RETRY_FOR if self.retries is None else attempt > self.retries
        if exhausted:
            return Progress("dead", attempt, reason=reason), 0
        wait = backoff(attempt) if delay is None else delay
        return Progress("retry", attempt, reason=reason), wait


class BadPlugin(Exception):
    """A plugin that cannot be used; `faults` says all that is wrong with it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Router:
    """The handlers, in the order they were added."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []

    def add(self, plugin: object, name: str, origin: str = "") -> None:
        """Collect the marked functions of a module, or the marked methods of an object.

        A pydantic-settings class is built first: its fields are the plugin's settings.

        Raises:
            BadPlugin: with every fault; nothing of the plugin was added then.
        """
        faults: list[str] = []
        taken = {handler.name for handler in self.handlers}
        found: list[Handler] = []
        for function in _marked(plugin, faults):
            handler_name = f"{name}.{function.__name__}"
            if handler_name in taken:
                faults.append(f"{handler_name}: the name is taken by another handler")
            taken.add(handler_name)
            words: Subscription = getattr(function, MARK)
            wrong = [f"{handler_name}: {fault}" for fault in _faults(function, words)]
            faults += wrong
            if not wrong:
                found.append(_handler(handler_name, function, words, origin))
        if not found and not faults:
            faults.append("holds no handler: mark a function with @on(...)")
        if faults:
            raise BadPlugin(faults)
        self.handlers += found

    def match(self, kind: Kind) -> list[Handler]:
        """Return the handlers that subscribe to this kind of event."""
        return [handler for handler in self.handlers if kind in handler.events]


def backoff(attempt: int, cap: float = RETRY_CAP) -> float:
    """Return a wait in seconds with full jitter: between 0 and `min(cap, base * 2**attempt)`."""
    return random.uniform(0, min(cap, RETRY_BASE * 2 ** min(attempt, 32)))  # noqa: S311 (no secret)


def place(error: BaseException) -> str:
    """Return what may be written down of an exception: its type and where it came from."""
    return f"{type(error).__name__} at {logs.places(error.__traceback__, last=2)}"


def _handler(
    name: str, function: Callable[[Verification], object], words: Subscription, origin: str
) -> Handler:
    events = KINDS if "*" in words.events else tuple(k for k in KINDS if k in words.events)
    return Handler(
        name=name,
        function=function,
        events=frozenset(events),
        needs=frozenset(words.needs),
        reasons=frozenset(words.reason),
        superseded=words.superseded,
        retries=words.retries,
        timeout=words.timeout,
        own_process=words.own_process,
        origin=origin,
    )


def _marked(plugin: object, faults: list[str]) -> Iterator[Callable[[Verification], object]]:
    if isinstance(plugin, ModuleType):
        # Only what is defined in it: an imported handler belongs to the module it came from.
        for value in list(vars(plugin).values()):
            if getattr(value, "__module__", None) != plugin.__name__:
                continue
            if inspect.isfunction(value) and hasattr(value, MARK):
                yield value
            elif inspect.isclass(value) and issubclass(value, BaseSettings):
                yield from _marked(value, faults)
        return
    if inspect.isclass(plugin):
        try:
            plugin = plugin()
        except ValidationError as error:
            prefix = getattr(plugin, "model_config", {}).get("env_prefix", "")
            faults += [
                f"setting {(prefix + str(fault['loc'][0])).upper()}: {fault['msg']}"
                for fault in error.errors(include_input=False, include_url=False)
            ]
            return
        except Exception as error:  # noqa: BLE001 (a plugin may raise anything)
            faults.append(f"cannot be built: {type(error).__name__}: {logs.quote(error)}")
            return
    # Inherited ones too. Under @staticmethod and @classmethod the inner function has the mark.
    bases = reversed(type(plugin).__mro__)
    for name, member in {n: m for base in bases for n, m in vars(base).items()}.items():
        if hasattr(getattr(member, "__func__", member), MARK):
            yield getattr(plugin, name)


def _faults(function: Callable[..., object], words: Subscription) -> Iterator[str]:
    if not words.events:
        yield f"names no event: one of {', '.join(KINDS)}, or '*'"
    for event in words.events:
        if event != "*" and event not in KINDS:
            yield f"unknown event {event!r}: one of {', '.join(KINDS)}, or '*'"
    for need in words.needs:
        if need not in SENSITIVE:
            yield f"unknown field in needs {need!r}: one of {', '.join(SENSITIVE)}"
    if words.reason and not {"requires_input", "*"} & set(words.events):
        yield "reason= filters requires_input events, which it does not subscribe to"
    retries: Any = words.retries  # not every author runs a type checker
    timeout: Any = words.timeout
    if not (retries is None or (isinstance(retries, int) and retries >= 0)):
        yield "retries= must be a whole number, 0 or more"
    if not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
        yield "timeout= must be a number of seconds, more than 0"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield "is async: handlers are plain functions"
    elif inspect.isgeneratorfunction(function):
        yield "is a generator: calling it runs nothing of it"
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        yield "must take one argument, the Verification"

"""Find the handlers of a plugin (a module, or an object with marked methods), and what is wrong.

Every mark of `identity_webhooks.on` is either collected or reported: a fault names file and line,
and what to write instead.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from identity_webhooks.event import KINDS
from identity_webhooks.handlers import MARK, Mark, Subscription
from identity_webhooks.reasons import REASONS
from identity_webhooks.verification import SENSITIVE
from workers import import_faults

NO_HANDLER = "holds no handler: mark a function with @on(...)"


@dataclass(frozen=True, slots=True)
class Found:
    """A marked function. `owner` is the object or, if we built that, the class it is bound to."""

    function: Callable[..., object]
    mark: Mark
    owner: object

    def is_same(self, other: Found) -> bool:
        """Whether both are one function, found twice: also where two module names lead to a file.

        The marks of a factory of handlers stand on one line, too, but in one module.
        """
        if self.owner is not other.owner and not _is_copy(self.owner, other.owner):
            return False
        if self.mark is other.mark:
            return True
        return self.mark.module != other.mark.module and self._place() == other._place()

    def _place(self) -> tuple[str, int, str]:
        return os.path.realpath(self.mark.file), self.mark.line, self.function.__name__


def _is_copy(one: object, other: object) -> bool:
    """Whether these are one class, imported under two module names."""
    return inspect.isclass(one) and inspect.isclass(other) and one.__name__ == other.__name__


def find(plugin: object, faults: list[str], seen: set[Mark]) -> Iterator[Found]:
    """Yield the marked functions of a module, or the marked methods of an object or a class.

    A class is built first. A pydantic-settings class is built also where it stands in a module: its
    fields are the plugin's settings. `faults` and `seen` (all marks of it) are added to.
    """
    if not isinstance(plugin, ModuleType):
        yield from _methods(plugin, faults, seen)
        return
    for value in list(vars(plugin).values()):
        # Only what is defined in it: an imported handler belongs to the module it came from.
        if getattr(value, "__module__", None) != plugin.__name__:
            continue
        if inspect.isfunction(value) and (mark := _mark_of(value)):
            seen.add(mark)
            yield Found(value, mark, None)
        elif inspect.isclass(value) and issubclass(value, BaseSettings):
            yield from _methods(value, faults, seen)


def _methods(plugin: object, faults: list[str], seen: set[Mark]) -> Iterator[Found]:
    if inspect.isfunction(plugin):
        faults.append(f"is a function: name its module, {plugin.__module__}")
        return
    kind = plugin if inspect.isclass(plugin) else type(plugin)
    marked = _marked_members(kind, seen)
    owner = plugin
    if inspect.isclass(plugin):
        plugin = _built(plugin, faults)
        if plugin is None:
            return
    for name, mark in marked.items():
        yield Found(getattr(plugin, name), mark, owner)


def _marked_members(kind: type, seen: set[Mark]) -> dict[str, Mark]:
    """Return the marks of methods, inherited ones too. One that is overridden counts only as seen.

    An override without a mark is a fault, since the handler would silently be lost.
    """
    marked: dict[str, Mark] = {}
    for base in reversed(kind.__mro__):
        for name, member in vars(base).items():
            # Under @staticmethod and @classmethod the inner function has the mark.
            inner = getattr(member, "__func__", member)
            mark = _mark_of(inner) if inspect.isfunction(inner) else None
            if mark:
                marked[name] = mark
                seen.add(mark)
            elif name in marked:
                seen.discard(marked.pop(name))
    return marked


def _built(kind: type, faults: list[str]) -> object:
    try:
        return kind()
    except ValidationError as error:
        faults += import_faults.of_settings(error, kind)
    except Exception as error:  # noqa: BLE001 (a plugin may raise anything)
        faults.append(f"cannot be built: {import_faults.of(error)}")
    return None


def _mark_of(value: object) -> Mark | None:
    mark = getattr(value, MARK, None)
    return mark if isinstance(mark, Mark) else None


def why_not_collected(mark: Mark) -> str:  # noqa: PLR0911 (one answer each)
    """Say why a mark that no plugin collected was not, and what to write instead."""
    target = mark.target
    if target is None:
        return "on(...) marks nothing: write it as a decorator, @on(...), above a function"
    if inspect.isclass(target):
        return f"{target.__name__} is a class: write @on(...) above a method of it"
    if isinstance(target, staticmethod | classmethod):
        word = type(target).__name__
        return f"@on stands above @{word}: write @{word} first and @on(...) below it"
    if not inspect.isfunction(target):
        return (
            f"a {type(target).__name__} object is marked, not a function:"
            " write a function that calls it"
        )
    name = target.__name__
    if _mark_of(target) is not mark:
        return f"{name} is marked twice: write one @on(...) that names all events"
    if "<locals>" in target.__qualname__:
        return f"{name} is defined inside a function: define it at the top of the module"
    if "." in target.__qualname__:
        return _why_not_the_method(mark, target.__qualname__.rpartition(".")[0], name)
    return _why_not_the_function(mark, name)


def _why_not_the_method(mark: Mark, owner: str, name: str) -> str:
    return (
        f"{name} is a method of the class {owner}, which no plugin holds (or it is overridden"
        f" without @on): add {mark.module}:{owner} to HANDLERS, make {owner} a pydantic-settings"
        " class, or write a function"
    )


def _why_not_the_function(mark: Mark, name: str) -> str:
    missing = object()
    holder = getattr(sys.modules.get(mark.module), name, missing)
    if holder is missing:
        return f"the module has no {name} any more: keep the function under its own name"
    other = _mark_of(holder)
    if other and other is not mark:
        return (
            f"{name} is replaced by another {name} on line {other.line}:"
            " give each function a name of its own"
        )
    if not inspect.isfunction(holder):
        return (
            f"a decorator above @on makes {name} a {type(holder).__name__} object:"
            " write @on(...) as the topmost decorator, above a function"
        )
    if not other:
        return (
            f"{name} is replaced by a function without the mark, by a later def or a decorator"
            " above @on: write @on(...) topmost, or use functools.wraps"
        )
    return (
        f"{name} belongs to the module {mark.module}, which no plugin names:"
        f" add {mark.module} to HANDLERS"
    )


def faults_of(found: Found) -> Iterator[str]:
    """Yield what is wrong with a marked function and with what `on` was told."""
    function, options = found.function, found.mark.options
    if options is None:
        yield 'is marked by @on without parentheses: write @on("verified"), or what it is for'
        return
    if isinstance(options, Subscription):
        yield from _faults_of_events(options)
        yield from _faults_of_numbers(options)
    if function.__name__ == "<lambda>":
        yield "is a lambda and has no name: write a function"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield "is async: handlers are plain functions: write def, not async def"
    elif inspect.isgeneratorfunction(function):
        yield "is a generator: calling it runs nothing of it: take the yield out"
    argument = {"start": "", "stop": "", "dead": "dead: Dead"}.get(str(options), "v: Verification")
    signature = inspect.signature(function)
    try:
        signature.bind(*([None] if argument else []))
    except TypeError:
        much = f"one argument, the {argument.split()[-1]}" if argument else "no argument"
        written = ", ".join(filter(None, ["self" if inspect.ismethod(function) else "", argument]))
        yield (
            f"must take {much}, and takes ({', '.join(signature.parameters)}): write"
            f" def {function.__name__}({written})"
        )


def _faults_of_events(options: Subscription) -> Iterator[str]:
    if not options.events:
        yield f"names no event: one of {', '.join(KINDS)}, or '*'"
    yield from _repeated("event", options.events)
    if "*" in options.events and len(options.events) > 1:
        yield "names '*', which is all of them, and others: write one or the other"
    for event in options.events:
        if event not in ("*", *KINDS):
            yield _why_unknown(event)
    yield from _repeated("field in needs", options.needs)
    for need in options.needs:
        if need not in tuple(SENSITIVE):
            yield f"unknown field in needs {need!r}{_perhaps(need, SENSITIVE)}"
    if options.reason is None:
        return
    if not options.reason:
        yield "reason= is empty, so that it would never run: leave it out for every reason"
    yield from _repeated("reason", options.reason)
    if not any(event in ("*", "requires_input") for event in options.events):
        yield (
            "reason= filters requires_input events, which it does not subscribe to: write"
            ' @on("requires_input", reason=...)'
        )
    elif any(event != "requires_input" for event in options.events):
        yield "reason= would hide its other events: write one handler for requires_input alone"
    for reason in options.reason:
        if reason not in REASONS:
            yield (
                f"unknown reason {reason!r}{_perhaps(reason, REASONS)}."
                " For a code newer than this release look at v.outcome.reason"
            )


def _why_unknown(event: object) -> str:
    if isinstance(event, list | tuple | set | frozenset):
        return 'takes events one by one, not a list of them: write @on("verified", "canceled")'
    return f"unknown event {event!r}{_perhaps(event, (*KINDS, '*'))}"


def _repeated(what: str, words: tuple[object, ...]) -> Iterator[str]:
    """Say which words stand there more than once; `on` may have been given anything."""
    for number, word in enumerate(words):
        if word in words[:number]:
            yield f"names the {what} {word!r} twice: write it once"


def _perhaps(word: object, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), words, n=1)
    return f": perhaps {close[0]!r}" if close else f": one of {', '.join(words)}"


def _faults_of_numbers(options: Subscription) -> Iterator[str]:
    retries: Any = options.retries  # not every author runs a type checker
    timeout: Any = options.timeout
    if not (retries is None or (_is_number(retries, int) and retries >= 0)):
        yield f"retries= must be a whole number, 0 or more, and is {_shown(retries)}"
    if not (_is_number(timeout, int | float) and 0 < timeout < math.inf):
        yield f"timeout= must be a number of seconds, more than 0, and is {_shown(timeout)}"
    for name in ("superseded", "own_process"):
        if not isinstance(value := getattr(options, name), bool):
            yield f"{name}= must be True or False, and is {_shown(value)}"


def _shown(value: object) -> str:
    """Write a value that `on` was given; of others than words and numbers the type."""
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

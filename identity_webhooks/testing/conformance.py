"""Look for what goes wrong with a handler in production, and seldom in its own tests."""

from __future__ import annotations

import gc
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from datetime import date
from typing import Any, cast

from identity_webhooks.event import KINDS, Kind
from identity_webhooks.handlers import Subscription
from identity_webhooks.reasons import REASONS
from identity_webhooks.testing.builders import verification
from identity_webhooks.testing.running import Result, Stopped, run, stopped_at, subscription
from identity_webhooks.verification import Outcome, Verification

Handler = Callable[[Verification], object]

NAMES = {"first_name": "Zyxjenny7", "last_name": "Zyxrosen7"}
PERSONAL: dict[str, Any] = {
    "dob": date(1907, 3, 11),
    "id_number": "Zyx7000001",
    "document_number": "Zyx7000002",
    "document_dob": date(1907, 3, 12),
}
UNKNOWN_REASON = "a_code_of_tomorrow"
MAX_STEPS = 10_000
"""Lines after which a handler is no longer stopped before each of them."""


def conformance(
    handler: Handler,
    *,
    effects: Callable[[], object] | None = None,
    reset: Callable[[], object] | None = None,
) -> list[str]:
    """Run a handler in many situations, and return what is wrong with it, a sentence each.

    It is run for each of its events and reasons, for a reason that is unknown, for a session that
    lacks what Stripe may leave out, and for a redacted one. What it logs, prints and raises is
    searched for personal values. With `effects` and `reset` it must also have an effect, the same
    when it is run twice with one key, and when it is stopped before each line of its file and run
    again. Without them nobody can tell a handler that does nothing from a good one.

    Args:
        handler: the marked function.
        effects: returns what the handler has done so far, to be compared: a list of rows.
        reset: makes everything as it is before the event. For a handler that erases, that is with
            something to erase.

    Raises:
        TypeError: one of `effects` and `reset` is given without the other.
    """
    try:
        words = subscription(handler)
    except TypeError as error:
        return [f"{error}: no worker would run it."]
    if (effects is None) != (reset is None):
        raise TypeError("conformance needs both effects= and reset=, or neither")
    findings: list[str] = []
    try:
        for label, v in _cases(words):
            if reset:
                _look(reset)
            with _heard() as heard:
                result = run(handler, v)
            findings += _failures(label, result)
            findings += _leaks(result, heard())
        if effects and reset:
            findings += _effects(handler, words, effects, reset)
    except _Unseen as error:
        findings.append(f"Its effects cannot be looked at or undone after it was run: {error}.")
    return list(dict.fromkeys(findings))


def _cases(words: Subscription) -> Iterator[tuple[str, Verification]]:
    """Yield what may come, and how to name it."""
    given: dict[str, Any] = {**NAMES, **PERSONAL, "metadata": {"user_id": "user-1"}}
    kinds: list[Kind] = [k for k in KINDS if k in words.events or "*" in words.events]
    for kind in kinds:
        outcomes: tuple[str, ...] = (kind,)
        if kind == "requires_input":
            outcomes = words.reason or (*REASONS, UNKNOWN_REASON)
        for outcome in outcomes:
            yield _label(kind, outcome), verification(outcome, **given)
        yield (
            f"the session of a {kind} event has no more fields than Stripe promises",
            _bare(verification(outcomes[0], reference=None)),
        )
        if words.superseded and kind != "redacted":
            redacted = verification("redacted", kind=kind, superseded=True, reference=None)
            yield f"the session of a {kind} event has been redacted", _bare(redacted)


def _label(kind: Kind, outcome: str) -> str:
    if outcome == UNKNOWN_REASON:
        return "the reason is one that Stripe may add"
    return f"the event is {kind}" + (f" for {outcome}" if outcome != kind else "")


def _bare(v: Verification) -> Verification:
    """Leave out everything that the API's schema does not require."""
    from stripe.identity import VerificationSession  # noqa: PLC0415 (slow, and only for tests)

    kept = {"id", "object", "created", "livemode", "metadata", "status", "type", "options", "url"}
    kept |= {"last_error", "redaction"}
    fields = {k: x for k, x in v.session.to_dict().items() if k in kept}
    if v.outcome.kind == "verified":
        fields["verified_outputs"] = {}
    session = VerificationSession.construct_from(fields, None)
    return replace(v, session=session, report=None, outcome=Outcome.of(session, v.event.kind))


def _failures(label: str, result: Result) -> Iterator[str]:
    if not result.reason.startswith("failed: "):
        return
    what = result.reason.removeprefix("failed: ")
    if result.error is None:
        yield f"It {what}." if what.startswith(("returned", "made")) else f"It fails: {what}."
    else:
        traceback = result.error.__traceback__
        while traceback and traceback.tb_next:
            traceback = traceback.tb_next
        line = traceback.tb_lineno if traceback else 0
        yield f"It fails with {what} on line {line} when {label}."


def _leaks(result: Result, heard: str) -> Iterator[str]:
    places = {
        "by v.log": " ".join(map(str, result.logs)),
        "by print, logging or a warning": heard,
        "in the text of what it raises": str(result.error or ""),
    }
    words = {**NAMES, **{name: str(value) for name, value in PERSONAL.items()}}
    for place, text in places.items():
        for name, word in words.items():
            if word in text or repr(PERSONAL.get(name, word)) in text:
                yield f"It lets {name} out {place}."


@contextmanager
def _heard() -> Iterator[Callable[[], str]]:
    """Listen to what is printed and logged past `v.log`."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with redirect_stdout(stream), redirect_stderr(stream):
            yield stream.getvalue
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


class _Unseen(Exception):
    """The effects cannot be looked at, or undone."""


def _effects(
    handler: Handler,
    words: Subscription,
    effects: Callable[[], object],
    reset: Callable[[], object],
) -> Iterator[str]:
    """Say what is wrong with the effects of a handler: of the first event that has one."""
    for _, v in _cases(words):
        _look(reset)
        before = _look(effects)
        run(handler, v)
        if _look(effects) != before:
            yield from _repeats(handler, v, effects, reset)
            return
    yield (
        "It has no effect, whatever the event: what effects= returns is the same before and after"
        " it is run."
    )


def _repeats(
    handler: Handler,
    v: Verification,
    effects: Callable[[], object],
    reset: Callable[[], object],
) -> Iterator[str]:
    again = replace(v, attempt=2)
    _look(reset)
    run(handler, v)
    once = _look(effects)
    run(handler, again)
    if _look(effects) != once:
        yield "It has its effect twice when it is run twice with one key."
        return
    for step in range(1, MAX_STEPS):
        _look(reset)
        try:
            with stopped_at(handler, step):
                run(handler, v)
        except Stopped as stopped:
            line = cast(int, stopped.args[0])
        else:
            return
        try:
            result = run(handler, again)
            found = _look(effects)
            _look(reset)
            failed = result.reason.removeprefix("failed: ") if result.error else ""
        except _Unseen as error:
            failed = str(error)
        if failed:
            yield (
                f"When it is stopped before line {line}, it leaves behind what is in the way"
                f" afterwards ({failed}): open connections and transactions with a with block, or"
                " use v.once."
            )
            return
        if found != once:
            yield (
                f"When it is stopped before line {line} and run again, its effect is not that of"
                " one run: commit the effect and the key in one transaction (v.once)."
            )
            return


def _look(what: Callable[[], object]) -> object:
    """Call `effects` or `reset`.

    Raises:
        _Unseen: it fails, most often since a transaction is open.
    """
    with suppress(Exception):
        return what()
    gc.collect()  # as the end of a process closes what nobody refers to
    try:
        return what()
    except Exception as error:
        raise _Unseen(f"{type(error).__name__} in {getattr(what, '__name__', 'it')}") from error

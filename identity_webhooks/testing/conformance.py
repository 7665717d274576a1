"""Look for what goes wrong with a handler in production, and seldom in its own tests."""

from __future__ import annotations

import gc
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from datetime import date
from traceback import format_exception
from typing import Any, get_args

from identity_webhooks.event import KINDS, Kind
from identity_webhooks.handlers import Discard, Retry, Subscription, seconds_of
from identity_webhooks.reasons import REASONS
from identity_webhooks.testing.builders import verification
from identity_webhooks.testing.leaks import leaked
from identity_webhooks.testing.running import Result, run, subscription
from identity_webhooks.testing.stopping import Stopped, stepping
from identity_webhooks.verification import Outcome, OutcomeKind, Verification

Handler = Callable[[Verification], object]

NAMES = {"first_name": "Zyxjenny7", "last_name": "Zyxrosen7"}
PERSONAL: dict[str, Any] = {
    "dob": date(1907, 3, 11),
    "id_number": "Zyx1000007",
    "unparsed_place_of_birth": "Zyxtown7",
    "document_number": "Zyx2000007",
    "document_dob": date(1917, 4, 12),
    "document_expiration_date": date(2097, 5, 13),
    "document_unparsed_place_of_birth": "Zyxville7",
    "id_number_dob": date(1927, 6, 14),
    "id_number_id_number": "Zyx3000007",
}
"""Values that stand nowhere else, and of which none is the beginning of another."""

PARTS = ("verified_outputs", "document", "id_number", "email", "phone")
"""Of a session and of a report: what holds personal data."""

SHOWN = frozenset(
    {"status", "error", "files", "type", "id_number_type", "country", "issuing_country"}
)
"""Fields of these parts that hold none."""

MIN_LENGTH = 6
"""Letters and digits of a value, at least: a shorter one is found by chance."""

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

    It is run for each of its events and reasons, for a reason that is unknown and for none, for its
    last attempt, for a session of a connected account, for one that lacks what Stripe may leave
    out, and, with `superseded=True`, for each other state that the session may be in by then. What
    it logs, prints and raises is searched for personal values. With `effects` and `reset` it must
    also have an effect, and for each event that has one, it must be the same when the handler is
    run twice with one key, and when it is stopped before each line of its code and run again.
    Without them nobody can tell a handler that does nothing from a good one. A handler that hangs
    is not ended.

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
        return [f"{error}."]
    if (effects is None) != (reset is None):
        raise TypeError("conformance needs both effects= and reset=, or neither")
    findings: list[str] = []
    try:
        for label, v in _cases(words):
            if reset:
                _look(reset)
            began = time.monotonic()
            with _heard() as heard:
                result = run(handler, v)
            findings += _overtime(label, words, time.monotonic() - began)
            findings += _failures(label, result)
            findings += _leaks(v, result, heard())
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
        if kind == "requires_input" and not words.reason:
            yield (
                "the event is requires_input and has no reason, as somebody set it back",
                verification("created", kind=kind, **given),
            )
        yield (
            f"the attempt for a {kind} event is the last",
            verification(outcomes[0], attempt=9, last_attempt=True, **given),
        )
        yield (
            f"the session of a {kind} event is of a connected account",
            verification(outcomes[0], account="acct_1Connected", **given),
        )
        yield (
            f"the session of a {kind} event has no more fields than Stripe promises",
            _bare(verification(outcomes[0], reference=None)),
        )
        if words.superseded and kind != "redacted":
            yield from _overtaken(kind, given)


def _overtaken(kind: Kind, given: Mapping[str, Any]) -> Iterator[tuple[str, Verification]]:
    """Yield the states that a session may be in when an event is late."""
    redacted = verification("redacted", kind=kind, superseded=True, reference=None)
    yield f"the session of a {kind} event has been redacted", _bare(redacted)
    told = "needs_input" if kind == "requires_input" else kind
    for outcome in get_args(OutcomeKind):
        if outcome not in {told, "redacted"}:
            late = verification(outcome, kind=kind, superseded=True, **given)
            yield f"the session of a {kind} event is {outcome} by now", late


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


def _overtime(label: str, words: Subscription, seconds: float) -> Iterator[str]:
    if seconds > words.timeout:
        yield (
            f"It runs for longer than its timeout= of {words.timeout:g} s when {label}: a worker"
            " would end it, and its process."
        )


def _failures(label: str, result: Result) -> Iterator[str]:
    error = result.error
    if isinstance(error, Retry | Discard):
        delay = getattr(error, "delay", None)
        if misuse := error.misuse or seconds_of(delay)[1]:
            yield f"It raises {type(error).__name__} wrongly when {label}: {misuse}."
    if not result.reason.startswith("failed: "):
        return
    what = result.reason.removeprefix("failed: ")
    if error is None:
        yield f"It {what}." if what.startswith(("returned", "made")) else f"It fails: {what}."
    else:
        traceback = error.__traceback__
        while traceback and traceback.tb_next:
            traceback = traceback.tb_next
        line = traceback.tb_lineno if traceback else 0
        yield f"It fails with {what} on line {line} when {label}."


def _leaks(v: Verification, result: Result, heard: str) -> Iterator[str]:
    raised = "".join(format_exception(result.error)) if result.error else ""
    places = {
        "by v.log": " ".join(map(str, result.logs)),
        "by print, logging or a warning": heard,
        "in the text of what it raises": raised,
    }
    values = {**NAMES, **PERSONAL, **_personal(v)}
    for place, text in places.items():
        for name in leaked(text, values):
            yield f"It lets {name} out {place}."


def _personal(v: Verification) -> dict[str, str]:
    """Return the personal values of a session and its report by the names of their fields."""
    found: dict[str, str] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key not in SHOWN:
                    walk(item, key)
        elif isinstance(value, str) and sum(map(str.isalnum, value)) >= MIN_LENGTH:
            found.setdefault(name, value)

    session = v.session.to_dict()
    report = v.report.to_dict() if v.report else {}
    for part in PARTS:
        walk(session.get(part), part)
        walk(report.get(part), part)
    for name in ("client_secret", "url"):
        walk(session.get(name), name)
    return found


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
    """Say what is wrong with the effects of a handler: of the first event for which that is so.

    It is stopped where it goes another way than before: most often it does the same for several.
    """
    has_effect, ways = False, set[tuple[tuple[str, int], ...]]()
    for label, v in _cases(words):
        _look(reset)
        before = _look(effects)
        with stepping(handler) as steps:
            run(handler, v)
        if (once := _look(effects)) == before:
            continue
        has_effect, way = True, tuple(steps.passed)
        run(handler, replace(v, attempt=v.attempt + 1))
        if _look(effects) != once:
            yield f"It has its effect twice when it is run twice with one key and {label}."
            return
        if way not in ways:
            ways.add(way)
            if finding := _stops(handler, v, len(way), effects, reset):
                yield f"{finding} It is so when {label}."
                return
    if not has_effect:
        yield (
            "It has no effect, whatever the event: what effects= returns is the same before and"
            " after it is run."
        )


def _stops(
    handler: Handler,
    v: Verification,
    count: int,
    effects: Callable[[], object],
    reset: Callable[[], object],
) -> str:
    """Stop it before each of so many lines and run it again; say what is wrong, if anything is."""
    _look(reset)
    run(handler, v)
    once = _look(effects)
    for step in range(1, min(count, MAX_STEPS) + 1):
        _look(reset)
        with suppress(Stopped), stepping(handler, step) as steps:
            run(handler, v)
        file, line = steps.passed[-1]
        where = f"When it is stopped before line {line} of {file.rpartition('/')[2]}"
        try:
            result = run(handler, replace(v, attempt=v.attempt + 1))
            found = _look(effects)
            _look(reset)
            failed = result.reason.removeprefix("failed: ") if result.error else ""
        except _Unseen as error:
            failed = str(error)
        if failed:
            return (
                f"{where}, it leaves behind what is in the way afterwards ({failed}): open"
                " connections and transactions with a with block, or use v.once."
            )
        if found != once:
            return (
                f"{where} and run again, its effect is not that of one run: commit the effect and"
                " the key in one transaction (v.once)."
            )
    return ""


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

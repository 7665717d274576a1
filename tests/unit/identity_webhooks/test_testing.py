"""`identity_webhooks.testing`: a handler is run as a worker runs it, and its faults are found."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import quote

import pytest
import sqlalchemy
from hypothesis import given, strategies
from sqlalchemy import Connection, Engine, text
from sqlalchemy.pool import StaticPool

from identity_webhooks import Discard, Retry, Verification, on, on_start
from identity_webhooks.event import KINDS
from identity_webhooks.once import TABLE, create_table
from identity_webhooks.reasons import REASONS
from identity_webhooks.testing import conformance, run, verification
from identity_webhooks.testing.leaks import leaked
from identity_webhooks.verification import SENSITIVE, OutcomeKind
from workers.handlers import audit

DOB = date(1990, 7, 17)
PARTS = ("document", "id_number", "selfie", "email", "phone")


class TestVerification:
    @pytest.mark.parametrize("outcome", get_args(OutcomeKind))
    def test_one_for_each_outcome(self, outcome) -> None:
        v = verification(outcome)
        assert v.outcome.kind == outcome
        assert v.event.kind == ("requires_input" if outcome == "needs_input" else outcome)

    @pytest.mark.parametrize("reason", [*REASONS, "a_code_of_tomorrow"])
    def test_one_for_each_reason(self, reason) -> None:
        v = verification(reason)
        assert (v.outcome.kind, v.outcome.reason) == ("needs_input", reason)

    def test_what_is_given_stands_where_stripe_has_it(self) -> None:
        v = verification(reference="u-7", metadata={"plan": "pro"}, first_name="Ada", dob=DOB)
        assert (v.subject, dict(v.metadata), v.sensitive.dob) == ("u-7", {"plan": "pro"}, DOB)
        assert v.session.verified_outputs.first_name == v.report.document.first_name == "Ada"

    def test_whatever_is_said_of_the_event_and_the_run_is_there(self) -> None:
        v = verification(
            "abandoned",
            attempt=3,
            last_attempt=True,
            superseded=True,
            account="acct_1",
            kind="processing",
            key="k-1",
            order=7,
        )
        assert (v.attempt, v.last_attempt, v.superseded) == (3, True, True)
        assert (v.event.account, v.event.kind) == ("acct_1", "processing")
        assert (v.idempotency_key, v.order) == ("k-1", 7)

    def test_what_is_not_said_is_that_of_a_first_run_of_ones_own_event(self) -> None:
        v = verification()
        assert (v.attempt, v.last_attempt, v.superseded, v.order) == (1, False, False, 0)
        assert (v.event.account, v.event.form, v.event.livemode) == (None, "snapshot", False)
        assert v.idempotency_key.startswith(f"{v.event.key}:")
        assert verification(account="acct_1").idempotency_key.startswith("acct_1-")
        assert v.event.session == v.session.id == v.report.verification_session

    @pytest.mark.parametrize("outcome", [*get_args(OutcomeKind), *REASONS])
    def test_session_and_report_tell_of_one_verification(self, outcome) -> None:
        v = verification(outcome, reference="u-7", first_name="Ada", last_name="Byron")
        session, report = v.session.to_dict(), v.report.to_dict() if v.report else None
        assert session["last_verification_report"] == report
        assert session["client_reference_id"] == "u-7"
        assert report is None or report["client_reference_id"] == "u-7"
        assert (report is None) == (outcome in {"created", "processing", "canceled"})
        is_open = session["status"] == "requires_input"
        assert [bool(session[name]) for name in ("url", "client_secret")] == [is_open] * 2
        names = {"first_name": "Ada", "last_name": "Byron"}
        if outcome == "redacted":
            names = dict.fromkeys(names)
        parts = [report[name] for name in PARTS if name in (report or {})]
        for holder in filter(None, [session["verified_outputs"], *parts]):
            if "first_name" in holder:
                assert {name: holder[name] for name in names} == names
            if address := holder.get("address"):
                assert (address["line1"] is None) == (outcome == "redacted")
        assert bool(session["verified_outputs"]) == (outcome in {"verified", "redacted"})

    @pytest.mark.parametrize(
        ("outcome", "parts"),
        [
            ("verified", {"document": "verified"}),
            ("document_expired", {"document": "unverified"}),
            ("selfie_face_mismatch", {"document": "verified", "selfie": "unverified"}),
            ("id_number_mismatch", {"id_number": "unverified"}),
            ("email_unverified_other", {"document": "verified", "email": "unverified"}),
            ("abandoned", {}),
        ],
    )
    def test_its_report_says_which_part_has_failed_and_why(self, outcome, parts) -> None:
        report = verification(outcome).report.to_dict()
        found = {name: report[name] for name in PARTS if name in report}
        assert {name: part["status"] for name, part in found.items()} == parts
        errors = {name: part["error"]["code"] for name, part in found.items() if part["error"]}
        assert errors == {name: outcome for name, said in parts.items() if said == "unverified"}

    def test_a_redacted_one_has_no_data(self) -> None:
        v = verification("redacted", metadata={"user_id": "u-7"})
        assert v.session.verified_outputs.first_name is None
        assert v.report.document.last_name is None
        assert dict(v.metadata) == {}

    @pytest.mark.parametrize(
        ("outcome", "meant"),
        [
            ("verifed", "verified"),
            ("Verified", "verified"),
            ("cancelled", "canceled"),
            ("requires_input", "needs_input"),
            ("proccessing", "processing"),
        ],
    )
    def test_a_misspelt_outcome_is_no_reason(self, outcome, meant) -> None:
        with pytest.raises(TypeError, match=f"no outcome '{outcome}': perhaps '{meant}'"):
            verification(outcome)

    def test_a_kind_that_no_event_has_is_refused(self) -> None:
        with pytest.raises(TypeError, match="no kind of event 'needs_input': created, processing"):
            verification(kind="needs_input")  # type: ignore[arg-type]

    def test_an_unknown_field_is_refused(self) -> None:
        with pytest.raises(TypeError, match="no sensitive field 'shoe_size': dob, id_number"):
            verification(shoe_size="44")


class TestRun:
    def run(self, body: Callable[[Verification], Any], v: Verification | None = None, **words: Any):
        # Not `body` itself, which may be marked for other tests.
        return run(on("verified", **words)(lambda v: body(v)), v or verification())  # noqa: PLW0108

    def test_done_with_what_was_logged(self) -> None:
        result = self.run(lambda v: v.log.info("granted", subject=v.subject))
        assert result.status == "done"
        assert result.logs == [{"level": "info", "event": "granted", "subject": "user-1"}]

    @pytest.mark.parametrize(
        ("error", "status", "reason", "delay"),
        [
            (Retry("closed", delay=30), "retry", "retry: closed", 30),
            (Discard("no such user"), "dead", "discarded: no such user", None),
            (ValueError("Jenny"), "retry", "failed: ValueError", None),
            (SystemExit(0), "retry", "failed: SystemExit", None),
        ],
    )
    def test_what_is_raised(self, error, status, reason, delay) -> None:
        def fail(_: Verification) -> None:
            raise error

        result = self.run(fail)
        assert (result.status, result.reason, result.delay) == (status, reason, delay)
        assert result.error is error

    @pytest.mark.parametrize("end", [Retry("closed"), Discard("gone"), ValueError(), None])
    def test_what_was_logged_is_there_however_it_ends(self, end) -> None:
        def log_and_end(v: Verification) -> Any:
            v.log.warning("begun", subject=v.subject)
            if end:
                raise end
            return False

        result = self.run(log_and_end)
        assert result.status != "done"
        assert result.logs == [{"level": "warning", "event": "begun", "subject": "user-1"}]

    def test_the_last_attempt_is_dead(self) -> None:
        def fail(_: Verification) -> None:
            raise Retry("closed", delay=30)

        last = self.run(fail, verification(last_attempt=True))
        assert (last.status, last.delay) == ("dead", None), "there is no run to wait for"
        assert self.run(fail, verification(attempt=1), retries=0).status == "dead"
        assert self.run(fail, verification(attempt=3), retries=2).status == "dead"
        assert self.run(fail, verification(attempt=2), retries=2).status == "retry"

    def test_a_coroutine_did_not_run(self) -> None:
        async def later() -> None: ...

        result = self.run(lambda _: later())
        assert result.status == "retry"
        assert "nothing of it ran" in result.reason

    def test_it_sees_the_fields_it_declares_and_no_others(self) -> None:
        seen = []
        needs = ["verified_outputs.dob", "verified_outputs.sex"]
        look = lambda v: seen.extend([v.sensitive.dob, v.sensitive.sex, v.sensitive.id_number])  # noqa: E731
        result = self.run(look, verification(dob=DOB, id_number="1"), needs=needs)
        assert result.reason == "failed: AttributeError"
        assert "declare needs" in str(result.error)
        assert self.run(lambda v: seen.extend([v.sensitive.dob, v.sensitive.sex]), needs=needs)
        assert seen == [None, None]

    def test_events_it_does_not_ask_for(self) -> None:
        other = self.run(nothing, verification("canceled"))
        assert (other.status, other.reason) == ("skipped", "canceled is none of its events")
        assert self.run(nothing, verification(superseded=True)).status == "superseded"
        handler = on("requires_input", reason="abandoned")(lambda v: None)
        other = run(handler, verification("document_expired"))
        assert (other.status, other.reason) == (
            "skipped",
            "document_expired is none of its reasons",
        )
        assert run(handler, verification("abandoned")).status == "done"

    @pytest.mark.parametrize(
        "mark", [lambda function: function, on_start, on], ids=["nothing", "on_start", "on"]
    )
    def test_a_function_that_is_no_handler(self, mark) -> None:
        def unmarked(v: Verification) -> None: ...

        with pytest.raises(TypeError, match="unmarked is not marked with @on"):
            run(mark(unmarked), verification())
        (said,) = conformance(mark(unmarked))
        assert said.startswith("unmarked is not marked with @on(...)")


def nothing(v: Verification) -> None: ...


def once_and_then(then: Callable[[Verification], object]) -> Callable[[Verification], Any]:
    def handle(v: Verification) -> None:
        v.once(engine)(lambda db: None)
        then(v)

    return handle


def fails_below_once(v: Verification) -> None:
    def effect(db: Connection) -> None:
        raise LookupError

    with suppress(LookupError):
        v.once(engine)(effect)
    Retry("later")


def catches_the_first(v: Verification) -> None:
    with suppress(Retry):
        raise Retry("later")
    Discard("gone")


def awaits(v: Verification) -> None:
    async def wait() -> None:
        await v.once(engine)  # type: ignore[misc]

    wait().send(None)


def misuses_below(v: Verification) -> None:
    misuses(v)


def misuses(v: Verification) -> None:
    v.once(3)


async def numbers() -> Any:
    yield 1


class Awaitable:
    def __await__(self) -> Any: ...


def answering(answer: Callable[[], object]) -> Callable[[Verification], Any]:
    return lambda v: answer()


def raising(error: BaseException) -> Callable[[Verification], Any]:
    def handle(v: Verification) -> None:
        raise error

    return handle


RAN_NOTHING = ", and nothing of it ran: write a plain function that returns None"
NO_REASON = 'no reason given: write Retry("why")'
ANSWERS: dict[str, tuple[Callable[[Verification], Any], str]] = {
    "an async generator": (answering(numbers), f"failed: returned a async_generator{RAN_NOTHING}"),
    "what can be awaited": (answering(Awaitable), f"failed: returned a Awaitable{RAN_NOTHING}"),
    "an exception": (
        answering(lambda: ValueError("Jenny")),
        "failed: returned ValueError: write raise ValueError(...)",
    ),
    "a class of exceptions": (
        answering(lambda: KeyError),
        "failed: returned KeyError: write raise KeyError(...)",
    ),
    "a Retry after an effect": (
        once_and_then(lambda v: Retry("later")),
        "failed: made Retry(...) and did not raise it: write raise Retry(...)",
    ),
    "a Retry after an effect that failed": (
        fails_below_once,
        "failed: made Retry(...) and did not raise it: write raise Retry(...)",
    ),
    "the second of two": (
        catches_the_first,
        "failed: made Discard(...) and did not raise it: write raise Discard(...)",
    ),
    "a second once that runs nothing": (
        once_and_then(lambda v: v.once(engine, "mail")),
        "failed: v.once(...) has run nothing: write @v.once(engine) above a function that takes a"
        " connection",
    ),
    "a once that is awaited": (awaits, "v.once is no context manager, and tells nothing by itself"),
    "the line that led to it": (
        misuses_below,
        f"failed: test_testing.py:{misuses.__code__.co_firstlineno + 1}: v.once takes an engine",
    ),
    # Whatever else is given as the reason may be personal.
    "a reason that is no text": (raising(Retry(["Jenny"])), f"retry: {NO_REASON}"),  # type: ignore[arg-type]
    "a number as the reason": (raising(Retry(30)), f"retry: {NO_REASON}"),  # type: ignore[arg-type]
    "an empty reason": (raising(Retry("")), f"retry: {NO_REASON}"),
    "an empty Discard": (raising(Discard("")), 'discarded: no reason given: write Discard("why")'),
    "two reasons": (
        raising(Discard("gone", "Jenny")),  # type: ignore[call-arg]
        'discarded: gone (too much was given: write Discard("why"))',
    ),
}


@pytest.mark.parametrize(("function", "words"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_would_do_nothing_is_a_failure_in_words(function, words) -> None:
    result = run(on("verified")(lambda v: function(v)), verification())  # noqa: PLW0108
    assert words in result.reason
    assert result.status == ("dead" if words.startswith("discarded") else "retry")
    assert "Jenny" not in result.reason


engine: Engine
GREETINGS = dict.fromkeys(REASONS, "Please try again.")


@pytest.fixture(autouse=True)
def database(tmp_path: Path) -> Iterator[None]:
    # Handlers are functions of the module, as authors write them.
    global engine, folder  # noqa: PLW0603
    folder = tmp_path
    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool)
    create_table(engine)
    with engine.begin() as db:
        db.execute(text("CREATE TABLE effects (word VARCHAR(100))"))
        db.execute(text("CREATE TABLE seen (word VARCHAR(100))"))
    yield
    engine.dispose()


def effects() -> object:
    with engine.connect() as db:
        return db.scalars(text("SELECT word FROM effects")).all()


def reset() -> None:
    with engine.begin() as db:
        for table in ("effects", "seen", TABLE):
            db.execute(text(f"DELETE FROM {table}"))  # noqa: S608


def insert(table: str, word: str) -> None:
    with engine.begin() as db:
        db.execute(text(f"INSERT INTO {table} VALUES (:word)"), {"word": word})  # noqa: S608


@on("verified")
def good(v: Verification) -> None:
    @v.once(engine)
    def grant(db: Connection) -> None:
        db.execute(text("INSERT INTO effects VALUES (:word)"), {"word": v.event.session})

    v.log.info("granted", subject=v.subject, status=str(grant))


@on("*")
def good_for_some(v: Verification) -> None:
    """Has an effect for one kind of event, which is not the first."""
    if v.event.kind == "canceled":

        @v.once(engine)
        def undo(db: Connection) -> None:
            db.execute(text("INSERT INTO effects VALUES ('canceled')"))


@on("verified")
def not_idempotent(v: Verification) -> None:
    insert("effects", v.event.session)


@on("verified")
def effect_before_its_key(v: Verification) -> None:
    with engine.connect() as db:
        if v.idempotency_key in db.scalars(text("SELECT word FROM seen")).all():
            return
    insert("effects", v.event.session)
    insert("seen", v.idempotency_key)


@on("verified")
def key_before_its_effect(v: Verification) -> None:
    with engine.connect() as db:
        if v.idempotency_key in db.scalars(text("SELECT word FROM seen")).all():
            return
    insert("seen", v.idempotency_key)
    insert("effects", v.event.session)


@on("*", superseded=True)
def blind_to_redaction(v: Verification) -> None:
    if v.event.kind == "verified":
        v.log.info("verified", count=len(v.session.verified_outputs.first_name or ""))


@on("requires_input")
def knows_every_reason(v: Verification) -> None:
    v.log.info(GREETINGS[v.outcome.reason])


@on("verified")
def needs_a_reference(v: Verification) -> None:
    v.log.info("granted", count=len(v.session.client_reference_id))


@on("requires_input")
def needs_a_report(v: Verification) -> None:
    v.log.info(v.report.type)


@on("verified", needs="verified_outputs.dob")
def needs_a_birthday(v: Verification) -> None:
    v.log.info("granted", count=v.sensitive.dob.year // 1000)


@on("verified")
def undeclared(v: Verification) -> None:
    v.log.info("granted", count=v.sensitive.dob.year // 1000)


@on("verified")
def logs_a_name(v: Verification) -> None:
    v.log.info(f"hello {getattr(v.session.verified_outputs, 'first_name', '')}")  # noqa: G004


@on("verified", needs="verified_outputs.dob")
def logs_a_birthday_elsewhere(v: Verification) -> None:
    logging.getLogger("crm").warning("born %s", v.sensitive.dob)


@on("verified")
def prints(v: Verification) -> None:
    print(getattr(v.session.verified_outputs, "last_name", ""))  # noqa: T201


@on("verified")
def raises_a_name(v: Verification) -> None:
    raise Retry(f"no account for {getattr(v.session.verified_outputs, 'first_name', '')}")


@on("verified", "canceled")
def twice_for_its_second_event(v: Verification) -> None:
    if v.event.kind == "verified":
        good(v)
    else:
        insert("effects", v.event.session)


@on("verified")
def in_another_file(v: Verification) -> None:
    with engine.connect() as db:
        if v.idempotency_key in db.scalars(text("SELECT word FROM seen")).all():
            return
    helpers().do(lambda: insert("seen", v.idempotency_key), lambda: insert("effects", "granted"))


@on("requires_input")
def knows_a_reason(v: Verification) -> None:
    v.log.info((v.outcome.reason or 3).upper())  # type: ignore[union-attr]


@on("verified", superseded=True)
def takes_it_for_verified(v: Verification) -> None:
    v.log.info("verified", count=len(v.session.verified_outputs.address.country))


@on("*")
def knows_its_own_account(v: Verification) -> None:
    v.log.info("seen", account={None: "own"}[v.event.account])


@on("verified")
def fails_at_last(v: Verification) -> None:
    if v.last_attempt:
        raise LookupError


@on("verified")
def bare_retry(v: Verification) -> None:
    raise Retry  # type: ignore[call-arg]


@on("verified")
def long_retry(v: Verification) -> None:
    raise Retry("later", delay=7 * 86_400)


@on("verified")
def bare_discard(v: Verification) -> None:
    raise Discard  # type: ignore[call-arg]


@on("verified", timeout=0.05)
def slow(v: Verification) -> None:
    time.sleep(0.1)


@on("verified")
def leaves(v: Verification) -> None:
    sys.exit("no")


@on("verified")
def raises_from_a_name(v: Verification) -> None:
    name = getattr(v.session.verified_outputs, "first_name", "")
    try:
        {}[name]
    except KeyError as error:
        raise Retry("no account") from error


@on("verified")
def prints_an_address(v: Verification) -> None:
    address = getattr(v.session.verified_outputs, "address", None)
    print(address and address.line1)  # noqa: T201


@on("created")
def logs_a_link(v: Verification) -> None:
    v.log.info("created", link=v.session.url)


@on("created")
def logs_a_secret(v: Verification) -> None:
    v.log.info("created", secret=getattr(v.session, "client_secret", None))


@on("requires_input")
def prints_what_was_not_verified(v: Verification) -> None:
    for name in ("email", "phone"):
        print(getattr(getattr(v.report, name, None), name, None))  # noqa: T201


class Soon(Retry):
    delay = "soon"  # type: ignore[assignment]

    def __init__(self) -> None: ...


@on("verified")
def retries_soon(v: Verification) -> None:
    raise Soon


async def later() -> None: ...


@on("verified")
def runs_nothing(v: Verification) -> Any:
    return later()


@on("*")
def does_nothing(v: Verification) -> None:
    v.log.info("seen", outcome=v.outcome.kind)


@on("verified")
def discards_everything(v: Verification) -> None:
    raise Discard("no")


@on("verified")
def shares_a_name(v: Verification) -> None:
    for word in ("one", "two"):

        @v.once(engine)
        def grant(db: Connection, word: str = word) -> None:
            db.execute(text("INSERT INTO effects VALUES (:word)"), {"word": word})


connections: list[sqlite3.Connection] = []


@on("verified")
def leaves_a_transaction_open(v: Verification) -> None:
    db = sqlite3.connect(str(folder / "effects.db"), timeout=0.05)
    connections.append(db)
    db.execute("INSERT OR IGNORE INTO effects VALUES ('granted')")
    db.commit()


folder: Path


def helpers() -> ModuleType:
    """Return a module of the author's in another file."""
    path = folder / "theirs.py"
    path.write_text("def do(first, second):\n    first()\n    second()\n")
    module = ModuleType("theirs")
    exec(compile(path.read_text(), str(path), "exec"), vars(module))  # noqa: S102
    return module


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A database in a file, of which a connection can be locked out."""
    with closing(sqlite3.connect(tmp_path / "effects.db")) as db:
        db.execute("CREATE TABLE effects (word PRIMARY KEY)")
    yield tmp_path / "effects.db"
    for db in connections:
        db.close()
    connections.clear()


BAD: dict[str, tuple[Callable[..., Any], str]] = {
    "not marked": (
        nothing,
        "nothing is not marked with @on(...), so that no worker would run it: write @on(",
    ),
    "twice": (not_idempotent, "It has its effect twice when it is run twice with one key"),
    "effect first": (effect_before_its_key, "When it is stopped before line "),
    "key first": (key_before_its_effect, "When it is stopped before line "),
    "redaction": (blind_to_redaction, "when the session of a verified event has been redacted."),
    "unknown reason": (knows_every_reason, "when the reason is one that Stripe may add."),
    "reference": (needs_a_reference, "has no more fields than Stripe promises."),
    "report": (needs_a_report, "has no more fields than Stripe promises."),
    "birthday": (needs_a_birthday, "fails with AttributeError on line"),
    "undeclared": (undeclared, "fails with AttributeError on line"),
    "log": (logs_a_name, "It lets first_name out by v.log."),
    "other log": (logs_a_birthday_elsewhere, "It lets dob out by print, logging or a warning."),
    "print": (prints, "It lets last_name out by print, logging or a warning."),
    "error": (raises_a_name, "It lets first_name out in the text of what it raises."),
    "coroutine": (runs_nothing, "It returned a coroutine, and nothing of it ran"),
    "nothing": (does_nothing, "It has no effect, whatever the event: what effects= returns is"),
    "discard": (discards_everything, "It has no effect, whatever the event: what effects= returns"),
    "second event": (twice_for_its_second_event, "with one key and the event is canceled."),
    "another file": (
        in_another_file,
        "When it is stopped before line 3 of theirs.py and run again",
    ),
    "no reason": (knows_a_reason, "is requires_input and has no reason, as somebody set it back."),
    "overtaken": (takes_it_for_verified, "the session of a verified event is canceled by now."),
    "account": (
        knows_its_own_account,
        "the session of a canceled event is of a connected account.",
    ),
    "last attempt": (fails_at_last, "when the attempt for a verified event is the last."),
    "bare Retry": (
        bare_retry,
        "It raises Retry wrongly when the event is verified: no reason given",
    ),
    "long Retry": (long_retry, "It raises Retry wrongly when the event is verified: delay=604800"),
    "bare Discard": (bare_discard, "It raises Discard wrongly when the event is verified: no reas"),
    "slow": (slow, "It runs for longer than its timeout= of 0.05 s when the event is verified:"),
    "exit": (leaves, "It fails with SystemExit on line"),
    "chain": (raises_from_a_name, "It lets first_name out in the text of what it raises."),
    "address": (prints_an_address, "It lets line1 out by print, logging or a warning."),
    "link": (logs_a_link, "It lets url out by v.log."),
    "secret": (logs_a_secret, "It lets client_secret out by v.log."),
    "e-mail": (prints_what_was_not_verified, "It lets email out by print, logging or a warning."),
    "phone": (prints_what_was_not_verified, "It lets phone out by print, logging or a warning."),
    "delay of a class": (
        retries_soon,
        "It raises Soon wrongly when the event is verified: delay= is a str",
    ),
    "line": (
        fails_at_last,
        f"It fails with LookupError on line {fails_at_last.__code__.co_firstlineno + 3} when",
    ),
    "one name": (shares_a_name, "v.once was used before in this run with the same name"),
}


WAYS_OUT: dict[str, Callable[[str], object]] = {
    "logging at debug": lambda text: logging.getLogger("crm").debug("born %s", text),
    "logging at info": lambda text: logging.getLogger("crm").info("born %s", text),
    "logging at warning": lambda text: logging.getLogger("crm").warning("born %s", text),
    "logging at critical": lambda text: logging.getLogger("crm").critical("born %s", text),
    "a logger below": lambda text: logging.getLogger("crm.people.new").info(text),
    "the root logger": lambda text: logging.getLogger().info(text),
    "standard output": print,
    "standard error": lambda text: print(text, file=sys.stderr),  # noqa: T201
}


@pytest.mark.parametrize("say", WAYS_OUT.values(), ids=WAYS_OUT)
def test_whatever_way_a_value_goes_out_is_heard(say) -> None:
    @on("verified")
    def lets_out(v: Verification) -> None:
        say(getattr(v.session.verified_outputs, "first_name", ""))

    assert "It lets first_name out by print, logging or a warning." in " ".join(
        conformance(lets_out)
    )


SPELLINGS: dict[str, Callable[[Any], object]] = {
    "as it is": str,
    "repr": repr,
    "of a list": lambda value: [value],
    "upper case": lambda value: str(value).upper(),
    "letters": lambda value: list(str(value)),
    "with dashes": lambda value: "-".join(str(value)),
    "JSON": lambda value: json.dumps({"value": str(value)}),
    "JSON in JSON": lambda value: json.dumps(json.dumps([str(value)])),
    "escapes": lambda value: "".join(f"\\u{ord(each):04x}" for each in str(value)),
    "hexadecimal escapes": lambda value: "".join(f"\\x{ord(each):02x}" for each in str(value)),
    "in a URL": lambda value: quote(f"name={value}&x=", safe=""),
    "all in per cent": lambda value: "".join(f"%{ord(each):02X}" for each in str(value)),
    "bytes": lambda value: str(value).encode(),
    "base64": lambda value: base64.b64encode(str(value).encode()),
    "base64 of more": lambda value: base64.b64encode(f"user:{value}:more".encode()).decode(),
    "base64 of still more": lambda value: base64.b64encode(f"users:{value}".encode()).decode(),
    "base64 in lines": lambda value: base64.encodebytes(f"{'x' * 52}{value}".encode()).decode(),
    "base64 of URLs": lambda value: base64.urlsafe_b64encode(f"??>>{value}??>>".encode()),
    "hexadecimal": lambda value: str(value).encode().hex(),
    "reversed words": lambda value: f"<b>{value}</b>",
}
DATES: dict[str, Callable[[date], object]] = {
    "of Germany": lambda day: day.strftime("%d.%m.%Y"),
    "of America": lambda day: day.strftime("%m/%d/%Y"),
    "short": lambda day: f"{day.month}/{day.day}/{day.year}",
    "compact": lambda day: day.strftime("%Y%m%d"),
    "with a time": lambda day: datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat(),
    "Stripe's": lambda day: {"day": day.day, "month": day.month, "year": day.year},
    "Stripe's as JSON": lambda day: json.dumps(
        {"year": day.year, "month": day.month, "day": day.day}
    ),
}


class TestLeaks:
    @pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
    @pytest.mark.parametrize("name", ["first_name", "dob", "id_number"])
    def test_a_value_is_found_however_it_is_written(self, name, spell) -> None:
        @on("verified", needs=["verified_outputs.dob", "verified_outputs.id_number"])
        def handle(v: Verification) -> None:
            outputs = v.session.verified_outputs
            value = getattr(v.sensitive if name != "first_name" else outputs, name, None)
            if value:
                v.log.info("seen", value=spell(value))

        assert conformance(handle) == [f"It lets {name} out by v.log."]

    @pytest.mark.parametrize("spell", DATES.values(), ids=DATES)
    def test_a_date_is_found_however_it_is_written(self, spell) -> None:
        @on("verified", needs="verified_outputs.dob")
        def handle(v: Verification) -> None:
            if v.sensitive.dob:
                print("born", spell(v.sensitive.dob))  # noqa: T201

        assert conformance(handle) == ["It lets dob out by print, logging or a warning."]

    def test_every_field_that_holds_personal_data_is_found(self) -> None:
        @on("*", needs=list(SENSITIVE))
        def handle(v: Verification) -> None:
            v.log.info("seen", fields=v.sensitive.values())
            print(v.session.to_dict(), v.report and v.report.to_dict())  # noqa: T201

        found = set(conformance(handle))
        short = {"sex", "unparsed_sex", "document_sex", "document_unparsed_sex"}
        names = set(SENSITIVE.values()) - short
        assert {f"It lets {name} out by v.log." for name in names} <= found
        names = {"first_name", "last_name", "line1", "email", "phone", "url", "client_secret"}
        for name in names:
            assert f"It lets {name} out by print, logging or a warning." in found
        nobodys = ("status", "type", "country", "issuing_country", "files", "id_number_type", "id")
        assert not [said for said in found if any(f" {name} out " in said for name in nobodys)]

    @given(text=strategies.text(max_size=200), value=strategies.text("Zyx7", min_size=9))
    def test_what_is_not_there_is_not_found(self, text, value) -> None:
        found = list(leaked(text, {"value": value, "day": DOB}))
        assert not found or value.lower() in "".join(filter(str.isalnum, text.casefold()))


class TestConformance:
    @pytest.mark.parametrize(("handler", "finding"), BAD.values(), ids=BAD)
    def test_a_bad_handler_is_found_out(self, handler, finding) -> None:
        found = conformance(handler, effects=effects, reset=reset)
        assert [sentence for sentence in found if finding in sentence], found
        assert all(sentence.endswith(".") for sentence in found)

    @pytest.mark.parametrize("handler", [good, good_for_some])
    def test_a_good_one_has_no_findings(self, handler) -> None:
        assert conformance(handler, effects=effects, reset=reset) == []
        assert conformance(handler) == []

    @pytest.mark.parametrize("handler", [good, leaves, raises_a_name])
    def test_it_leaves_logging_as_it_was(self, handler) -> None:
        root, out = logging.getLogger(), (sys.stdout, sys.stderr)
        before = root.level, list(root.handlers)
        conformance(handler)
        assert (root.level, root.handlers) == before
        assert (sys.stdout, sys.stderr) == out

    def test_one_without_an_effect_of_its_own(self) -> None:
        assert conformance(audit.log_event) == []

    def test_a_lock_that_is_left_is_a_finding(self, file: Path) -> None:
        def ask(statement: str) -> list[Any]:
            with closing(sqlite3.connect(file, timeout=0.05, isolation_level=None)) as db:
                return db.execute(statement).fetchall()

        (said,) = conformance(
            leaves_a_transaction_open,
            effects=lambda: ask("SELECT * FROM effects"),
            reset=lambda: ask("DELETE FROM effects"),
        )
        assert "it leaves behind what is in the way afterwards (OperationalError" in said

    def test_effects_that_cannot_be_looked_at_are_a_finding(self) -> None:
        def broken() -> None:
            raise LookupError

        said = "Its effects cannot be looked at or undone after it was run: LookupError in broken."
        assert conformance(good, effects=broken, reset=reset) == [said]
        assert conformance(good, effects=effects, reset=broken) == [said]

    def test_one_with_a_lock_of_its_own(self) -> None:
        """A process that ends leaves none behind."""
        lock = threading.Lock()

        @on("verified")
        def handle(v: Verification) -> None:
            with lock:
                good(v)

        assert conformance(handle, effects=effects, reset=reset) == []

    def test_it_is_stopped_on_each_way_that_it_goes(self) -> None:
        @on("created", "canceled")
        def handle(v: Verification) -> None:
            way = key_before_its_effect if v.event.kind == "canceled" else good
            way(v)

        (said,) = conformance(handle, effects=effects, reset=reset)
        assert said.startswith("When it is stopped before line ")
        assert said.endswith(" It is so when the event is canceled.")

    @pytest.mark.parametrize("given", [{"effects": effects}, {"reset": reset}])
    def test_half_of_what_it_needs_is_refused(self, given) -> None:
        with pytest.raises(TypeError, match="both effects= and reset="):
            conformance(good, **given)

    def test_what_comes_is_what_a_worker_would_give(self) -> None:
        seen: list[Verification] = []
        assert conformance(on("verified")(lambda v: seen.append(v))) == []  # noqa: PLW0108
        assert [v.superseded for v in seen] == [False] * 4, "it does not ask for any other"
        assert [(v.attempt, v.last_attempt) for v in seen if v.attempt > 1] == [(9, True)]
        assert {v.event.account for v in seen} == {None, "acct_1Connected"}
        (bare,) = [v for v in seen if v.report is None]
        assert (bare.outcome.kind, bare.subject, dict(bare.metadata)) == ("verified", None, {})
        assert bare.session.verified_outputs.to_dict() == {}
        assert {v.subject for v in seen if v is not bare} == {"user-1"}

    def test_the_same_event_comes_a_second_time_as_another_attempt(self) -> None:
        seen: list[tuple[str, int]] = []

        @on("verified")
        def handle(v: Verification) -> None:
            seen.append((v.idempotency_key, v.attempt))
            good(v)

        assert conformance(handle, effects=effects, reset=reset) == []
        assert len({key for key, _ in seen}) == 2, "one's own and that of a connected account"
        assert {attempt for _, attempt in seen} == {1, 2, 9, 10}

    def test_only_late_states_are_superseded(self) -> None:
        seen: list[Verification] = []
        conformance(on("processing", superseded=True)(lambda v: seen.append(v)))  # noqa: PLW0108
        late = [v.outcome.kind for v in seen if v.superseded]
        # The redacted one is verified, and nothing but its own event calls a session created.
        assert sorted(late) == ["canceled", *["needs_input"] * 2, *["verified"] * 2]
        assert all(v.event.kind == "processing" for v in seen)

    def test_every_kind_of_event_is_tried(self) -> None:
        seen = []
        conformance(on("*", superseded=True)(lambda v: seen.append(v)))  # noqa: PLW0108
        assert {v.event.kind for v in seen} == set(KINDS)
        assert {v.outcome.reason for v in seen} >= set(REASONS)


def test_every_sensitive_field_can_be_built() -> None:
    v = verification(**dict.fromkeys(SENSITIVE.values(), "x"))
    assert {getattr(v.sensitive, name) for name in SENSITIVE.values()} == {"x"}

"""The built-in handler `database`: rows that do not go back in time, and are erased."""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, delete, insert, select, text
from sqlalchemy.orm import Session

from identity_webhooks import KINDS, Kind, Verification
from identity_webhooks.database import SESSIONS, create_table, is_verified, save
from identity_webhooks.event import Event
from identity_webhooks.testing import conformance, run, verification
from identity_webhooks.testing.stack import Stack
from tests.conftest import ROOT
from workers.handlers.database import Database

MARKER = "Zyxmarker7"
CREATED = 1_790_000_000


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/sessions.db")
    else:
        database = Database(f"postgresql+psycopg://{request.getfixturevalue('postgres')}")
    SESSIONS.metadata.drop_all(database.engine)
    database.connect()
    yield database
    database.disconnect()


def told(
    outcome: str, *, at: int = 0, session: str = "vs_1", kind: Kind | None = None, **given: Any
) -> Verification:
    """Return what the handler gets for an event that was made so many seconds after the first."""
    v = verification(outcome, kind=kind, **given)
    event = Event(
        f"evt_{session}_{at}",
        v.event.kind,
        "snapshot",
        session,
        CREATED + at,
        False,
        v.event.account,
    )
    return replace(v, event=event)


# A session's life; the person is set back in the Dashboard after having been verified.
# What happens in one second is told apart by the order in which workers took it up.
LIFE = (
    told("created", order=1),
    told("processing", order=2),
    told("document_expired", at=5, order=3),
    told("verified", at=30, order=4),
    told("created", at=900, kind="requires_input", order=5),
    told("redacted", at=5_000, order=6),
)


def rows(engine: Engine) -> dict[str, tuple[str | None, str, str | None]]:
    """Return subject, outcome and reason by session."""
    columns = SESSIONS.c
    query = select(columns.session, columns.subject, columns.outcome, columns.reason)
    with engine.connect() as db:
        return {session: (subject, *rest) for session, subject, *rest in db.execute(query)}


def expected(v: Verification) -> tuple[str | None, str, str | None]:
    if v.event.kind == "redacted":
        return None, "redacted", None
    return v.subject, v.outcome.kind, v.outcome.reason


@pytest.mark.walk
def test_in_every_order_the_latest_event_is_what_stays(database: Database) -> None:
    wanted = {}
    with database.engine.begin() as db:
        for length in range(1, len(LIFE) + 1):
            for order in itertools.permutations(range(length)):
                session = f"vs_{'_'.join(map(str, order))}"
                for number in order:
                    v = LIFE[number]
                    save(db, replace(v, event=replace(v.event, session=session)))
                wanted[session] = expected(LIFE[length - 1])
    assert len(wanted) == 873
    assert rows(database.engine) == wanted


ONE_SECOND = tuple(
    told(outcome, order=order)
    for order, outcome in enumerate(
        # Two attempts that fail for one reason and another, and what a reviewer does to them.
        ("created", "processing", "document_expired", "processing", "abandoned", "verified")
    )
)


@pytest.mark.sample(4)
@pytest.mark.parametrize("length", range(1, len(ONE_SECOND) + 1))
def test_within_a_second_too_what_was_read_last_stays(length: int, database: Database) -> None:
    """In every order in which writers that were held up may come to write."""
    wanted = expected(ONE_SECOND[length - 1])
    orders = list(itertools.permutations(range(length)))
    with database.engine.begin() as db:
        for count, order in enumerate(orders):
            for number in order:
                v = ONE_SECOND[number]
                save(db, replace(v, event=replace(v.event, session=f"vs_{count}")))
    assert rows(database.engine) == {f"vs_{n}": wanted for n in range(len(orders))}


def test_a_second_run_of_the_last_event_says_what_is_known_by_then(database: Database) -> None:
    run(database.save, told("document_expired", at=5))
    run(database.save, told("abandoned", at=5))
    assert rows(database.engine)["vs_1"] == ("user-1", "needs_input", "abandoned")


def test_an_earlier_event_that_is_read_later_takes_no_session_back(database: Database) -> None:
    run(database.save, told("verified", at=30, order=4))
    run(database.save, told("processing", at=29, order=9))
    assert rows(database.engine)["vs_1"] == ("user-1", "verified", None)
    run(database.save, told("canceled", at=31, order=1))
    assert rows(database.engine)["vs_1"] == ("user-1", "canceled", None)


WRITER = """
import random, sys
from tests.integration.identity_webhooks.test_database import LIFE, replace
from workers.handlers.database import Database

database = Database(sys.argv[1])
database.connect()
runs = [(session, v) for session in range(40) for v in LIFE[: 1 + session % len(LIFE)] * 3]
random.shuffle(runs)
for session, v in runs:
    database.save(replace(v, event=replace(v.event, session=f"vs_{session}")))
"""


@pytest.mark.sample(1)
def test_two_processes_in_orders_of_their_own_come_to_the_same_end(database: Database) -> None:
    """They create the table together, too."""
    SESSIONS.metadata.drop_all(database.engine)
    url = database.engine.url
    if url.get_backend_name() == "sqlite":
        url = url.update_query_dict({"timeout": "120"})  # whoever waits is not served in turn
    command = [sys.executable, "-c", WRITER, url.render_as_string(hide_password=False)]
    writers = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [writer.communicate(timeout=250)[1] for writer in writers] == ["", ""]
    wanted = {f"vs_{n}": expected(LIFE[n % len(LIFE)]) for n in range(40)}
    assert rows(database.engine) == wanted


def test_whether_a_subject_is_verified(database: Database) -> None:
    def ask(subject: str, account: str | None = None) -> bool:
        with database.engine.connect() as db, Session(database.engine) as session:
            answers = {is_verified(each, subject, account=account) for each in (db, session)}
        assert len(answers) == 1
        return answers.pop()

    assert not ask("user-1")
    run(database.save, told("verified", session="vs_2"))
    assert ask("user-1")
    assert not ask("user-2")
    run(database.save, told("document_expired", at=99, session="vs_3"))
    assert ask("user-1"), "one verified session is enough"
    run(database.save, told("created", at=99, session="vs_2", kind="requires_input"))
    assert not ask("user-1"), "it was set back"


def test_who_a_connected_account_calls_user_1_is_not_ours(database: Database) -> None:
    run(database.save, told("verified", account="acct_1"))
    with database.engine.connect() as db:
        assert not is_verified(db, "user-1")
        assert is_verified(db, "user-1", account="acct_1")
        assert not is_verified(db, "user-1", account="acct_2")


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "created"])
def test_a_redacted_session_is_erased_by_whatever_event_tells_it(kind, database: Database) -> None:
    run(database.save, told("verified"))
    redacted = told("redacted", at=50, kind=kind)
    assert run(database.save, redacted).status == "done"
    assert rows(database.engine)["vs_1"] == (None, "redacted", None)
    run(database.save, told("verified", at=99))  # one that was held up
    assert rows(database.engine)["vs_1"] == (None, "redacted", None)


def test_of_a_redacted_session_no_reason_comes_back(database: Database) -> None:
    """One that failed keeps its last error at Stripe, and a late event tells it."""
    failed = told("document_expired", at=5)
    run(database.save, failed)
    run(database.save, told("redacted", at=50))
    late = replace(told("redacted", at=60, kind="requires_input"), outcome=failed.outcome)
    assert late.redacted
    assert run(database.save, late).status == "done"
    assert rows(database.engine)["vs_1"] == (None, "redacted", None)


def test_it_holds_nothing_else_of_a_person(database: Database) -> None:
    personal = {"first_name": MARKER, "last_name": MARKER, "metadata": {"note": MARKER}}
    run(database.save, told("verified", **personal))
    with database.engine.connect() as db:
        assert MARKER not in str(db.execute(select(SESSIONS)).all())


def test_conformance(database: Database) -> None:
    def reset() -> None:
        with database.engine.begin() as db:
            db.execute(delete(SESSIONS))

    found = conformance(database.save, effects=lambda: rows(database.engine), reset=reset)
    assert found == []


def files_with_the_marker(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*"):
        if path.is_file() and MARKER.encode() in path.read_bytes():
            found.add(str(path.relative_to(folder)))
    return found


def write_and_erase(database: Database, count: int) -> None:
    """Write subjects of many lengths over and over, so that pages split; erase in another order."""
    dice = random.Random(1)
    sessions = [f"vs_{n}" for n in range(count)]
    for at in range(3):
        dice.shuffle(sessions)
        with database.engine.begin() as db:
            for session in sessions:
                reference = f"{MARKER}-{session}-{'x' * dice.randrange(300)}"
                save(db, told("verified", at=at, session=session, reference=reference))
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.execute(text("ANALYZE"))
    dice.shuffle(sessions)
    for session in sessions:
        assert run(database.save, told("redacted", at=9, session=session)).status == "done"


@pytest.mark.walk
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_on_sqlite_what_is_erased_is_in_no_file(journal: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    sqlite3.connect(path).execute(f"PRAGMA journal_mode = {journal}").connection.close()
    database = Database(f"sqlite:///{path}")
    database.connect()
    run(database.save, told("verified", reference=MARKER))
    assert files_with_the_marker(tmp_path), "nothing is found where something is"
    write_and_erase(database, 500)
    run(database.save, told("redacted", at=9))
    assert files_with_the_marker(tmp_path) == set()
    database.disconnect()


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("what", ["SELECT * FROM identity_webhooks_sessions", "a write"])
def test_who_has_the_database_in_use_delays_the_erasure(
    what: str, journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader holds the log, a writer the file."""
    path = tmp_path / "sessions.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(f"PRAGMA journal_mode = {journal}")
    database = Database(f"sqlite:///{path}?timeout=0.1")
    database.connect()
    run(database.save, told("verified", reference=MARKER))
    write_anew = database._write_anew

    def use_and_write_anew() -> None:
        other.execute("BEGIN IMMEDIATE" if what == "a write" else "BEGIN")
        if what != "a write":
            other.execute(what).fetchall()
        write_anew()

    with monkeypatch.context() as patch:
        patch.setattr(database, "_write_anew", use_and_write_anew)
        result = run(database.save, told("redacted", at=9))
    assert (result.status, result.reason[:6]) == ("retry", "retry:")
    other.close()
    assert run(database.save, told("redacted", at=9)).status == "done"
    assert files_with_the_marker(tmp_path) == set()
    database.disconnect()


POSTGRES_NEEDS = (
    "VACUUM (FULL, ANALYZE) identity_webhooks_sessions",
    "VACUUM FULL pg_statistic",
    "SELECT pg_switch_wal()",
    "CHECKPOINT",
)
"""What docs/privacy.md tells to run; and wal_recycle=off, which this server has."""


def test_on_postgresql_what_is_erased_is_in_no_file_after_a_full_vacuum(postgres: str) -> None:
    database = Database(f"postgresql+psycopg://{postgres}")
    SESSIONS.metadata.drop_all(database.engine)
    database.connect()
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        folder = Path(db.scalar(text("SHOW data_directory")))
        write_and_erase(database, 200)
        db.execute(text("CHECKPOINT"))
        assert files_with_the_marker(folder), "nothing is found where something is"
        for statement in POSTGRES_NEEDS:
            db.execute(text(statement))
        assert files_with_the_marker(folder) == set()
    page = (ROOT / "docs/privacy.md").read_text(encoding="utf-8")
    assert all(f"`{statement}`" in page for statement in POSTGRES_NEEDS)
    assert "`wal_recycle=off`" in page
    database.disconnect()


@pytest.mark.walk
def test_a_hundred_thousand_rows_are_found_by_an_index(database: Database) -> None:
    count = 100_000
    with database.engine.begin() as db:
        columns = ("account", "subject", "outcome", "position", "taken")
        made = (
            dict(zip(columns, ("", f"user-{n}", "verified", CREATED, 0), strict=True))
            | {"session": f"vs_{n}"}
            for n in range(count)
        )
        for chunk in iter(lambda: list(itertools.islice(made, 10_000)), []):
            db.execute(insert(SESSIONS), chunk)
        db.execute(text("ANALYZE"))
    for v in (told("redacted", at=9, session="vs_7"), told("canceled", at=9, session="vs_8")):
        assert run(database.save, v).status == "done"
    with database.engine.connect() as db:
        answers = {n: is_verified(db, f"user-{n}") for n in (6, 7, 8, count - 1, count)}
        explain = "EXPLAIN QUERY PLAN " if database.engine.dialect.name == "sqlite" else "EXPLAIN "
        query = "SELECT 1 FROM identity_webhooks_sessions WHERE subject = 'user-6' AND account = ''"
        plan = str(db.execute(text(explain + query)).all())
    assert answers == {6: True, 7: False, 8: False, count - 1: True, count: False}
    assert "identity_webhooks_sessions_subject" in plan


def test_a_user_without_the_right_to_create_tables_needs_it_only_once(postgres: str) -> None:
    address = postgres.partition("@")[2]
    owner = sqlalchemy.create_engine(f"postgresql+psycopg://{postgres}")
    SESSIONS.metadata.drop_all(owner)
    with owner.begin() as db:
        db.execute(text("DROP ROLE IF EXISTS worker"))
        db.execute(text("CREATE ROLE worker LOGIN"))
    worker = Database(f"postgresql+psycopg://worker@{address}")
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="permission denied"):
        worker.connect()
    create_table(owner)
    with owner.begin() as db:
        db.execute(text(f"GRANT SELECT, INSERT, UPDATE ON {SESSIONS.name} TO worker"))
    worker.connect()
    assert run(worker.save, told("verified")).status == "done"
    with owner.begin() as db:
        db.execute(text(f"REVOKE ALL ON {SESSIONS.name} FROM worker"))
        db.execute(text("DROP ROLE worker"))
    worker.disconnect()
    owner.dispose()


def test_in_a_worker(stack: Stack, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sessions.db"
    stack.start(IDENTITY_DATABASE=url)
    database = Database(url)
    event = stack.verify("verified", reference=MARKER)
    assert rows(database.engine)[event["session"]] == (MARKER, "verified", None)
    stack.redact(event["session"])
    assert rows(database.engine)[event["session"]] == (None, "redacted", None)
    database.disconnect()
    assert {path for path in files_with_the_marker(tmp_path) if "sessions.db" in path} == set()


@pytest.mark.parametrize(
    ("variables", "listed"),
    [
        ({}, False),
        ({"IDENTITY_DATABASE": ""}, False),
        ({"IDENTITY_DATABASE": "sqlite:///sessions.db"}, True),
    ],
    ids=["nothing set", "empty", "set"],
)
def test_it_is_off_until_it_is_configured(variables: dict[str, str], listed: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers", "handlers"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "STRIPE_API_KEY": "sk_test_reader", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ("database.save" in done.stdout) is listed

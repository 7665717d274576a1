"""`v.once`: an effect and its key in one transaction, on PostgreSQL and SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import StaticPool

from identity_webhooks import Discard, Retry
from identity_webhooks.handlers import Misuse
from identity_webhooks.once import TABLE, create_table, once
from identity_webhooks.testing import verification
from tests.conftest import ROOT


@pytest.fixture(params=["postgresql", "sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/effects.db")
    else:
        url = f"postgresql+psycopg://{request.getfixturevalue('postgres')}"
        engine = sqlalchemy.create_engine(url, pool_size=30)
    with engine.begin() as db:
        db.execute(text(f"DROP TABLE IF EXISTS {TABLE}"))
        db.execute(text("DROP TABLE IF EXISTS effects"))
        db.execute(text("CREATE TABLE effects (word VARCHAR(100))"))
    create_table(engine)
    create_table(engine)  # is there already
    yield engine
    engine.dispose()


def effects(engine: Engine) -> list[str]:
    with engine.connect() as db:
        return list(db.scalars(text("SELECT word FROM effects ORDER BY word")))


def add(db: Connection | Session, word: str = "granted") -> None:
    db.execute(text("INSERT INTO effects VALUES (:word)"), {"word": word})


def handler(engine: Engine, how: str) -> Callable[[], bool]:
    """Return what runs an effect once, through one of the forms of a database."""

    def run() -> bool:
        with opened(engine, how) as database:
            return once(database, "evt_1:p.grant")(add)

    return run


@contextmanager
def opened(engine: Engine, how: str) -> Iterator[Any]:  # noqa: PLR0912, PLR0915
    """Open a database in one of the ways that a handler may."""
    nothing, autocommit = text("SELECT * FROM effects"), {"isolation_level": "AUTOCOMMIT"}
    match how:
        case "engine":
            yield engine
        case "connection":
            with engine.connect() as db:
                yield db
        case "connection that has committed":
            with engine.connect() as db:
                db.execute(nothing)
                db.commit()
                yield db
        case "connection that has read":
            with engine.connect() as db:
                db.execute(nothing)
                yield db
        case "connection that was begun":
            with engine.begin() as db:
                yield db
        case "connection with a savepoint":
            with engine.begin() as db, db.begin_nested():
                yield db
        case "session":
            with Session(engine) as session:
                yield session
        case "session without autobegin":
            with Session(engine, autobegin=False) as session:
                yield session
        case "session that has read":
            with Session(engine) as session:
                session.execute(nothing)
                yield session
        case "session that has written":
            with Session(engine) as session:
                session.execute(text("UPDATE effects SET word = word"))
                yield session
        case "session that was begun":
            with sessionmaker(engine).begin() as session:
                yield session
        case "session with a savepoint":
            with Session(engine) as session, session.begin_nested():
                yield session
        case "session on a connection":
            with engine.connect() as db, Session(db) as session:
                yield session
        case "session on a connection that has read":
            with engine.connect() as db, Session(db) as session:
                db.execute(nothing)
                yield session
        case "session on a connection that was begun":
            with engine.begin() as db, Session(db) as session:
                yield session
        case "scoped session":
            scoped = scoped_session(sessionmaker(engine))
            try:
                yield scoped
            finally:
                scoped.remove()
        case "scoped session that has read":
            scoped = scoped_session(sessionmaker(engine))
            scoped.execute(nothing)
            try:
                yield scoped
            finally:
                scoped.remove()
        case "autocommit by option":
            yield engine.execution_options(**autocommit)
        case "autocommit of a connection":
            with engine.connect().execution_options(**autocommit) as db:
                yield db
        case "autocommit of a session":
            with Session(engine.execution_options(**autocommit)) as session:
                yield session
        case "autocommit of an engine":
            url = engine.url
            own = sqlalchemy.create_engine(url, **autocommit)
            try:
                yield own
            finally:
                own.dispose()
        case _:
            raise AssertionError(how)


FORMS = (
    *("engine", "connection", "connection that has committed"),
    *("session", "session without autobegin", "session that has read", "session that has written"),
    *("session on a connection", "scoped session", "scoped session that has read"),
)
"""In which the effect is committed together with its key."""

LOST = "in a transaction already"
REFUSED = {
    "connection that has read": LOST,
    "connection that was begun": LOST,
    "connection with a savepoint": LOST,
    "session that was begun": "was begun for it",
    "session with a savepoint": "in a savepoint",
    "session on a connection that has read": "bound to a connection that is in a transaction",
    "session on a connection that was begun": "bound to a connection that is in a transaction",
    "autocommit by option": "AUTOCOMMIT",
    "autocommit of a connection": "AUTOCOMMIT",
    "autocommit of a session": "AUTOCOMMIT",
    "autocommit of an engine": "AUTOCOMMIT",
}
"""In which an effect could be lost, or had without its key."""


@pytest.mark.parametrize(("how", "words"), REFUSED.items(), ids=REFUSED)
def test_a_transaction_that_once_does_not_commit_is_refused(how, words, engine) -> None:
    with pytest.raises(Misuse, match=words), opened(engine, how) as database:
        once(database, "evt_1:p.grant")(add)
    assert effects(engine) == []
    with opened(engine, "engine") as database:
        if "AUTOCOMMIT" in words:
            with engine.begin() as db:  # committed by then, which nobody can undo
                db.execute(text(f"DELETE FROM {TABLE}"))  # noqa: S608
        assert once(database, "evt_1:p.grant")(add) is True


def test_what_emits_begin_itself_is_no_autocommit(tmp_path: Path) -> None:
    """SQLAlchemy's recipe for SQLite."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/effects.db")
    sqlalchemy.event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    sqlalchemy.event.listen(engine, "begin", lambda db: db.exec_driver_sql("BEGIN"))
    with engine.begin() as db:
        db.execute(text("CREATE TABLE effects (word VARCHAR(100))"))
    create_table(engine)
    assert [once(engine, "k")(add), once(engine, "k")(add)] == [True, False]
    assert effects(engine) == ["granted"]
    engine.dispose()


def commits(db: Any) -> None:
    add(db)
    db.commit()
    add(db, "after")


def commits_at_its_end(db: Any) -> None:
    add(db)
    db.commit()


def commits_below(db: Any) -> None:
    add(db)
    (db.connection() if hasattr(db, "get_bind") else db.get_transaction()).commit()
    add(db, "after")


def rolls_back(db: Any) -> None:
    add(db)
    db.rollback()


def rolls_back_and_goes_on(db: Any) -> None:
    add(db)
    db.rollback()
    add(db, "after")


def closes(db: Any) -> None:
    add(db)
    db.close()


def returns_something(db: Any) -> Any:
    return db.execute(text("SELECT 1"))


def swallows_an_error(db: Any) -> None:
    with suppress(sqlalchemy.exc.DBAPIError):
        db.execute(text("SELECT * FROM nowhere"))


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize(
    "effect",
    [
        *(rolls_back, rolls_back_and_goes_on, closes, returns_something),
        *(commits, commits_at_its_end, commits_below),
    ],
    ids=lambda effect: effect.__name__,
)
def test_an_effect_that_ends_the_transaction_is_no_success(effect, how, engine) -> None:
    with (
        pytest.raises((Misuse, sqlalchemy.exc.InvalidRequestError)),
        opened(engine, how) as database,
    ):
        once(database, "k")(effect)
    assert effects(engine) == []
    with opened(engine, how) as database:  # nor was its key kept: what is mended runs
        assert once(database, "k")(add) is True


@pytest.mark.parametrize("how", FORMS)
def test_an_effect_may_use_savepoints(how, engine) -> None:
    def effect(db: Any) -> None:
        with db.begin_nested():
            add(db)
        with suppress(ValueError), db.begin_nested():
            add(db, "undone")
            raise ValueError
        add(db, "after")

    for expected in (True, False):
        with opened(engine, how) as database:
            assert once(database, "k")(effect) is expected
    assert effects(engine) == ["after", "granted"]


@pytest.mark.parametrize("how", FORMS)
def test_an_error_that_is_caught_loses_no_effect(how, engine) -> None:
    """PostgreSQL rolls back at the commit, and says nothing; SQLite goes on."""

    def effect(db: Any) -> None:
        add(db)
        swallows_an_error(db)

    with opened(engine, how) as database:
        if engine.dialect.name == "sqlite":
            assert once(database, "k")(effect) is True
            assert effects(engine) == ["granted"]
        else:
            with pytest.raises(Misuse, match="an error was caught in the function below it"):
                once(database, "k")(effect)
            assert effects(engine) == []


@pytest.fixture
def without_table(engine: Engine) -> Engine:
    with engine.begin() as db:
        db.execute(text(f"DROP TABLE {TABLE}"))
    return engine


@pytest.mark.parametrize("how", FORMS)
def test_its_table_is_made_through_each_form(how, without_table) -> None:
    """Committed, unless a transaction is open: that is left to whoever has begun it."""
    with opened(without_table, how) as database:
        create_table(database)
        if "has read" in how or "has written" in how:
            database.commit()
    assert handler(without_table, "engine")() is True


@pytest.mark.parametrize("kind", [Connection, Session])
def test_a_migration_that_is_undone_is_undone_as_a_whole(kind, without_table) -> None:
    with kind(without_table) as database:
        add(database, "of the migration")
        create_table(database)
        database.rollback()
    assert effects(without_table) == []


@pytest.mark.parametrize("how", FORMS)
def test_the_first_run_counts_and_every_other_is_skipped(how, engine) -> None:
    run = handler(engine, how)
    assert [run(), run(), run()] == [True, False, False]
    assert effects(engine) == ["granted"]


@pytest.mark.parametrize("how", FORMS)
def test_an_effect_that_fails_leaves_no_key_behind(how, engine, monkeypatch) -> None:
    def fail(db: Connection | Session) -> None:
        add_before(db)
        raise ValueError("no")

    add_before = add
    run = handler(engine, how)
    monkeypatch.setitem(globals(), "add", fail)
    with pytest.raises(ValueError, match="no"):
        run()
    assert effects(engine) == []
    monkeypatch.undo()
    assert run() is True
    assert effects(engine) == ["granted"]


@pytest.mark.parametrize("how", [form for form in FORMS if form != "engine"])
def test_who_goes_on_after_an_effect_that_fails_commits_nothing_of_it(how, engine) -> None:
    def fail(db: Connection | Session) -> None:
        add(db, "half")
        raise ValueError("no")

    with opened(engine, how) as database:
        with pytest.raises(ValueError, match="no"):
            once(database, "k")(fail)
        if "autobegin" in how:
            database.begin()
        add(database, "after")
        database.commit()
        assert once(database, "k")(add) is True
    assert effects(engine) == ["after", "granted"]


def test_an_update_that_hits_no_row_counts_too(engine) -> None:
    calls = []

    def update(db: Connection) -> None:
        calls.append(db.execute(text("UPDATE effects SET word = 'x' WHERE word = 'none'")).rowcount)

    assert [once(engine, "k")(update), once(engine, "k")(update)] == [True, False]
    assert calls == [0]


def test_at_one_instant_one_runs_and_the_others_wait_for_it_and_skip(engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    barrier, answers = threading.Barrier(20), []

    def slowly(db: Connection) -> None:
        add(db)
        time.sleep(0.1)

    def run() -> None:
        barrier.wait()
        answers.append(once(engine, "k")(slowly))

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(answers) == {True: 1, False: 19}
    assert effects(engine) == ["granted"]


def test_who_waits_runs_when_the_first_one_fails(engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    begun, answers = threading.Event(), []

    def fail(db: Connection) -> None:
        begun.set()
        time.sleep(0.2)
        raise LookupError

    def first() -> None:
        with pytest.raises(LookupError):
            once(engine, "k")(fail)

    def second() -> None:
        assert begun.wait(120)
        answers.append(once(engine, "k")(add))

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True]


def test_a_missing_table_says_what_makes_it(engine) -> None:
    with engine.begin() as db:
        db.execute(text(f"DROP TABLE {TABLE}"))
    said = rf"there is no table {TABLE}: identity_webhooks\.once\.create_table makes it$"
    for how in FORMS:
        with pytest.raises(Retry, match=said), opened(engine, how) as database:
            once(database, "k")(add)


@pytest.mark.parametrize("how", FORMS)
def test_a_lock_of_another_says_so(how, engine) -> None:
    """A missing table is not what is wrong then."""
    if engine.dialect.name == "sqlite":
        options, lock = {"timeout": 0.05}, "BEGIN IMMEDIATE"
    else:
        options, lock = {"options": "-c lock_timeout=50"}, f"LOCK TABLE {TABLE}"
    blocked = sqlalchemy.create_engine(engine.url, connect_args=options)
    with engine.connect() as other:
        if engine.dialect.name == "sqlite":
            other.connection.dbapi_connection.isolation_level = None
        other.exec_driver_sql(lock)
        with (
            pytest.raises(Retry, match=f"the table {TABLE} is locked by another transaction: "),
            opened(blocked, "session" if how == "session that has written" else how) as database,
        ):
            once(database, "k")(add)
        other.exec_driver_sql("ROLLBACK")
        if engine.dialect.name == "sqlite":
            other.connection.dbapi_connection.isolation_level = ""
    blocked.dispose()
    assert once(engine, "k")(add) is True


def test_a_right_that_is_missing_is_no_missing_table(engine, tmp_path) -> None:
    if engine.dialect.name == "sqlite":
        weak = sqlalchemy.create_engine(f"sqlite:///file:{tmp_path}/effects.db?mode=ro&uri=true")
        name = "SQLITE_READONLY"
    else:
        with engine.begin() as db:
            db.execute(text("DROP ROLE IF EXISTS weak"))
            db.execute(text("CREATE ROLE weak LOGIN"))
        weak = sqlalchemy.create_engine(engine.url.set(username="weak"))
        name = "InsufficientPrivilege 42501"
    said = f"{name}: the table {TABLE} cannot be written to: look at the database and its rights"
    with pytest.raises(Retry, match=said):
        once(weak, "k")(add)
    weak.dispose()


class DriverError(Exception):
    def __init__(self, *args: object, **codes: str) -> None:
        super().__init__(*args)
        vars(self).update(codes)


NO_TABLE = f"there is no table {TABLE}: identity_webhooks.once.create_table makes it"
LOCKED = f"the table {TABLE} is locked by another transaction: "
OTHER = f"the table {TABLE} cannot be written to: look at the database and its rights"
CODES = {
    "no table in psycopg": (DriverError("Jenny R", sqlstate="42P01"), f" 42P01: {NO_TABLE}"),
    "no table in psycopg2": (DriverError("Jenny R", pgcode="42P01"), f" 42P01: {NO_TABLE}"),
    "no table by sqlstate": (DriverError("Jenny R", sqlstate="42S02"), f" 42S02: {NO_TABLE}"),
    "no table in MySQL": (DriverError(1146, "Jenny R"), f": {NO_TABLE}"),
    "no table in SQLite": (DriverError(f"no such table: {TABLE}"), f": {NO_TABLE}"),
    "another table": (DriverError("no such table: Jenny"), f": {OTHER}"),
    "locked in psycopg": (DriverError("Jenny R", sqlstate="55P03"), f" 55P03: {LOCKED}"),
    "locked in MySQL": (DriverError(1205, "Jenny R"), f": {LOCKED}"),
    "busy": (DriverError(sqlite_errorname="SQLITE_BUSY"), f" SQLITE_BUSY: {LOCKED}"),
    "locked in SQLite": (
        DriverError(sqlite_errorname="SQLITE_LOCKED"),
        f" SQLITE_LOCKED: {LOCKED}",
    ),
    "denied in MySQL": (DriverError(1142, "Jenny R"), f": {OTHER}"),
}


@pytest.mark.parametrize("by", ["SQLAlchemy", "Django"])
@pytest.mark.parametrize(("error", "words"), CODES.values(), ids=CODES)
def test_what_the_driver_says_is_told_by_its_code_alone(error, words, by) -> None:
    engine = sqlalchemy.create_engine("sqlite://")

    @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
    def fail(*_: object) -> None:
        if by == "SQLAlchemy":
            raise sqlalchemy.exc.DBAPIError("INSERT", {}, error)
        raise RuntimeError("Jenny R") from error

    with pytest.raises(Retry) as caught:
        once(engine, "k")(add)
    assert str(caught.value).startswith(f"DriverError{words}")
    assert "Jenny" not in str(caught.value)
    engine.dispose()


@pytest.mark.parametrize("dialect", ["mysql", "mariadb"])
def test_in_the_words_of_mysql_too(dialect) -> None:
    """There is no such server here: SQLite does what these words mean."""
    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool)
    create_table(engine)
    engine.dialect.name = dialect

    @sqlalchemy.event.listens_for(engine, "before_cursor_execute", retval=True)
    def translate(
        _: object, cursor: object, statement: str, parameters: Any, *more: object
    ) -> tuple[str, Any]:
        assert "ON CONFLICT" not in statement
        return statement.replace("INSERT IGNORE", "INSERT OR IGNORE"), parameters

    assert [once(engine, "k")(effect_of_nothing) for _ in range(2)] == [True, False]
    engine.dispose()


def effect_of_nothing(db: Any) -> None: ...


def test_a_database_that_it_does_not_know_is_refused() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool)
    create_table(engine)
    engine.dialect.name = "oracle"
    with pytest.raises(Misuse, match=r"^v\.once does not know the database oracle$"):
        once(engine, "k")(effect_of_nothing)
    engine.dispose()


@pytest.mark.parametrize("name", ["", "invoice", "A.b-c_9", "x" * 100])
def test_a_name_is_letters_digits_dots_and_dashes(name) -> None:
    assert callable(verification().once(sqlalchemy.create_engine("sqlite://"), name))


@pytest.mark.parametrize("name", ["x" * 101, "invoice\n", "my invoice", "a:b", "ä", 5, None, b"x"])
def test_and_nothing_else(name) -> None:
    with pytest.raises(Misuse, match=r"^the name of a v\.once is up to 100 letters"):
        verification().once(sqlalchemy.create_engine("sqlite://"), name)


@pytest.mark.parametrize(("key", "name"), [(500, ""), (492, "invoice")])
def test_a_key_that_no_database_can_hold_is_refused(key, name) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    assert callable(verification(key="k" * key).once(engine, name))
    with pytest.raises(Misuse, match=r"^the key of a v\.once is longer than 500 characters$"):
        verification(key="k" * (key + 1)).once(engine, name)


NESTED = {
    "the same": lambda engine, db: once(engine, "k")(add),
    "another": lambda engine, db: once(engine, "other")(add),
    "on what it was given": lambda engine, db: once(db, "other")(add),
    "on a new session": lambda engine, db: once(Session(engine), "other")(add),
    "in a context that was copied": lambda engine, db: copy_context().run(
        lambda: once(engine, "other")(add)
    ),
}


@pytest.mark.parametrize("inner", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("how", FORMS)
def test_one_inside_of_another_is_refused(how, inner, engine) -> None:
    """PostgreSQL would wait for ever for the first, and SQLite until its limit."""

    def effect(db: Any) -> None:
        add(db)
        inner(engine, db)

    with (
        pytest.raises(Misuse, match=r"inside of the function below another v\.once"),
        opened(engine, how) as database,
    ):
        once(database, "k")(effect)
    assert effects(engine) == []
    assert [once(engine, key)(add) for key in ("k", "other")] == [True, True]


UNRAISED = {
    "returned": lambda: Retry("later"),
    "made": lambda: bool(Retry("later")) and None,
    "discard": lambda: bool(Discard("gone")) and None,
    "kept": lambda: setattr(sys, "_kept", Retry("later")),
}


@pytest.mark.parametrize("answer", UNRAISED.values(), ids=UNRAISED)
@pytest.mark.parametrize("how", FORMS)
def test_an_answer_that_is_not_raised_keeps_no_key(how, answer, engine) -> None:
    def effect(db: Any) -> Any:
        add(db)
        return answer()

    with (
        pytest.raises(Misuse, match=r"^the function below v.once (returned|made) (Retry|Discard)"),
        opened(engine, how) as database,
    ):
        once(database, "k")(effect)
    assert effects(engine) == []
    assert once(engine, "k")(add) is True


def test_one_that_is_raised_and_caught_is_none(engine) -> None:
    def effect(db: Any) -> None:
        with suppress(Retry):
            raise Retry("later")
        add(db)

    assert once(engine, "k")(effect) is True


class Base(DeclarativeBase): ...


class Word(Base):
    __tablename__ = "effects"
    word: Mapped[str] = mapped_column(primary_key=True)


class Other(Base):
    __tablename__ = "others"
    word: Mapped[str] = mapped_column(primary_key=True)


class TestSeveralDatabases:
    """Their commits come one after the other: the process may die in between."""

    @pytest.fixture
    def second(self, tmp_path) -> Iterator[Engine]:
        second = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/second.db")
        Base.metadata.create_all(second)
        create_table(second)
        yield second
        second.dispose()

    def routed(self, engine: Engine, second: Engine) -> Session:
        class Routed(Session):
            def get_bind(self, mapper: Any = None, **more: Any) -> Any:
                return second if mapper and mapper.class_ is Other else engine

        return Routed()

    FORMS: ClassVar = {
        "a default and another": lambda self, one, two: Session(one, binds={Other: two}),
        "by classes": lambda self, one, two: Session(binds={Word: one, Other: two}),
        "routed": routed,
    }

    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    @pytest.mark.parametrize("before", [True, False])
    def test_is_refused(self, form, before, engine, second) -> None:
        def effect(session: Session) -> None:
            session.add(Word(word="granted"))
            session.add(Other(word="granted"))
            session.flush()

        with form(self, engine, second) as session:
            if before:
                session.scalars(sqlalchemy.select(Other)).all()
            with pytest.raises(Misuse, match=r"several databases|a database for each class"):
                once(session, "k")(effect)
        assert effects(engine) == effects(second) == []
        assert once(engine, "k")(add) is True

    @pytest.mark.parametrize("name", ["a default and another", "routed"])
    def test_one_of_them_is_enough_for_an_effect(self, name, engine, second) -> None:
        for expected in (True, False):
            with self.FORMS[name](self, engine, second) as session:
                effect = lambda db: db.add(Word(word="granted"))  # noqa: E731
                assert once(session, "k")(effect) is expected
        assert effects(engine) == ["granted"]


RUNS = {
    "two without names": ("", ""),
    "three without names": ("", "", ""),
    "one name twice": ("invoice", "invoice"),
    "the first one again": ("", "invoice", ""),
    "the second one again": ("", "invoice", "invoice"),
    "one without a name": ("invoice", "", "mail"),
    "names": ("invoice", "mail", "letter"),
}
"""The names of the effects of a handler, in order."""


@pytest.mark.parametrize("names", RUNS.values(), ids=RUNS)
def test_wherever_a_run_fails_each_effect_is_had_once_or_refused_in_every_run(
    names, engine
) -> None:
    """One that shares a name would be skipped by the next run, which would then be done."""
    shared = next((n for n, name in enumerate(names) if name in names[:n]), len(names))

    def run(key: str, *failing: object) -> None:
        v = verification(key=key)
        for place, name in enumerate(names):

            def effect(db: Connection, place: int = place) -> None:
                add(db, f"{key} {place}")
                if failing == (place, "inside"):
                    raise LookupError

            if failing == (place, "before"):
                raise LookupError
            v.once(engine, name)(effect)
            if failing == (place, "after"):
                raise LookupError

    for place in range(len(names)):
        for when in ("before", "inside", "after"):
            reached = place < shared or (place, when) == (shared, "before")
            with pytest.raises(LookupError if reached else Misuse):
                run("one", place, when)
            had = min(place + (when == "after"), shared)
            assert effects(engine) == [f"one {n}" for n in range(had)]
    # Of another event all is had, whatever was skipped of the first.
    for key in ("one", "one", "two", "two"):
        with nullcontext() if shared == len(names) else pytest.raises(Misuse, match="same name"):
            run(key)
    assert effects(engine) == [f"{key} {n}" for key in ("one", "two") for n in range(shared)]


def test_an_effect_that_failed_may_be_tried_again_in_the_same_run(engine) -> None:
    def fail(db: Connection) -> None:
        add(db)
        raise LookupError

    v = verification()
    with pytest.raises(LookupError):
        v.once(engine, "mail")(fail)
    assert v.once(engine, "mail")(add) is True
    assert effects(engine) == ["granted"]


@pytest.mark.parametrize("effect", [None, "add", 3], ids=repr)
def test_what_cannot_be_called_is_no_effect(engine, effect: Any) -> None:
    said = f"v.once was given a {type(effect).__name__} to run: write @v.once"
    with pytest.raises(Misuse, match=said):
        once(engine, "k")(effect)
    assert once(engine, "k")(add) is True


def test_a_coroutine_is_no_effect(engine) -> None:
    async def later(db: Connection) -> None: ...

    with pytest.raises(Misuse, match="nothing of it ran"):
        once(engine, "k")(later)
    assert once(engine, "k")(add) is True


@pytest.mark.parametrize(
    "database",
    [None, object(), {"url": "sqlite://"}, add, sessionmaker()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_database_is_refused(database: Any) -> None:
    with pytest.raises(Misuse, match="once takes an engine, a connection or a session"):
        once(database, "k")


DJANGO = """
import sys
import django
from django.conf import settings
other = {"ENGINE": "django.db.backends.sqlite3", "NAME": "%(folder)s/other.db"}
settings.configure(DATABASES={"default": %(database)s, "other": other}, USE_TZ=True)
django.setup()
from django.db import DatabaseError, connection, connections, transaction
from identity_webhooks.handlers import Misuse, Retry
from identity_webhooks.once import create_table, once

for each in connections.all():
    with each.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS identity_webhooks_once")
        cursor.execute("DROP TABLE IF EXISTS effects")
        cursor.execute("CREATE TABLE effects (word VARCHAR(100))")
    create_table(each)

def count(db=connection):
    with db.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM effects")
        return cursor.fetchone()[0]

def effect(db):
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO effects VALUES ('granted')")

def fail(db):
    effect(db)
    raise ValueError("no")

def undo(db):
    effect(db)
    transaction.set_rollback(True)

def commit(db):
    effect(db)
    db.commit()

def swallow(db):
    effect(db)
    try:
        with db.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")
    except DatabaseError:
        pass

def read_before():
    count()
    return once("default", "k")(effect)

def nested():
    with transaction.atomic():
        return once("default", "k")(effect)

def autocommit_off():
    transaction.set_autocommit(False)
    try:
        return once("default", "k")(effect)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

def another_database():
    there = connections["other"]
    try:
        once("other", "k")(fail)
    except ValueError:
        undone = count(there)
    return [undone, once("other", "k")(effect), once(there, "k")(effect), count(there)]

def in_a_test():
    from django.test import TestCase
    class Test(TestCase):
        def test(self):
            self.answers = [once("default", "k")(effect), once("default", "k")(effect), count()]
    Test.setUpClass()
    test = Test("test")
    result = test.run()
    Test.tearDownClass()
    return test.answers if result.wasSuccessful() else result.errors

def inner(db):
    effect(db)
    once("default", "other")(effect)

def unraised(db):
    effect(db)
    Retry("later")

def no_table():
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE identity_webhooks_once RENAME TO away")
    try:
        return once("default", "k")(effect)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO identity_webhooks_once")

forms = {
    "alias": lambda: once("default", "k")(effect),
    "connection": lambda: once(connection, "k")(effect),
    "read before": read_before,
    "fails": lambda: once("default", "k")(fail),
    "nested": nested,
    "autocommit off": autocommit_off,
    "set_rollback": lambda: once("default", "k")(undo),
    "commit": lambda: once("default", "k")(commit),
    "swallow": lambda: once("default", "k")(swallow),
    "one in another": lambda: once("default", "k")(inner),
    "Retry not raised": lambda: once("default", "k")(unraised),
    "no table": no_table,
    "another database": another_database,
    "in a test": in_a_test,
}
for name, form in forms.items():
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM identity_webhooks_once")
        cursor.execute("DELETE FROM effects")
    try:
        answer = form()
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    left = count()
    again = once("default", "k")(effect)
    print(name, answer, left, again, count(), sep=" | ")
"""

DJANGO_FORMS = {
    "alias": "True | 1 | False | 1",
    "connection": "True | 1 | False | 1",
    "read before": "True | 1 | False | 1",
    "fails": "ValueError: no | 0 | True | 1",
    "nested": "Misuse: v.once is in a transaction.atomic block, which may undo it: use it outside,"
    " and write into its function what belongs together | 0 | True | 1",
    "autocommit off": "Misuse: the autocommit of Django's connection is off, and v.once would not"
    " be committed: leave it on | 0 | True | 1",
    "set_rollback": "Misuse: the function below v.once has ended its transaction: leave commit and"
    " rollback to v.once, and raise to undo | 0 | True | 1",
    "commit": "TransactionManagementError: This is forbidden when an 'atomic' block is active."
    " | 0 | True | 1",
    "another database": "[0, True, False, 1] | 0 | True | 1",
    "in a test": "[True, False, 1] | 0 | True | 1",
    "one in another": "Misuse: v.once is used inside of the function below another v.once, and the"
    " one would be committed without the other: write both effects into one function, or one v.once"
    " below the other | 0 | True | 1",
    "Retry not raised": "Misuse: the function below v.once made Retry(...) and did not raise it:"
    " write raise Retry(...) | 0 | True | 1",
}
"""By form of use: what comes back, the effects left, what a second one says, and the effects."""


@pytest.mark.parametrize("vendor", ["postgresql", "sqlite3"])
def test_django(vendor, tmp_path, request) -> None:
    if vendor == "sqlite3":
        database = {"NAME": f"{tmp_path}/django.db"}
    else:
        address = request.getfixturevalue("postgres").removeprefix("tester@127.0.0.1:")
        port, name = address.split("/")
        database = {"NAME": name, "USER": "tester", "HOST": "127.0.0.1", "PORT": port}
    database["ENGINE"] = f"django.db.backends.{vendor}"
    done = subprocess.run(
        [sys.executable, "-c", DJANGO % {"database": database, "folder": tmp_path}],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    said = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    swallowed, missing = said.pop("swallow"), said.pop("no table")
    assert said == DJANGO_FORMS
    assert f"there is no table {TABLE}: identity_webhooks.once.create_table makes it |" in missing
    if vendor == "sqlite3":
        assert swallowed == "True | 1 | False | 1"
    else:
        assert swallowed.startswith("Misuse: the transaction of v.once has failed (")
        assert swallowed.endswith(" | 0 | True | 1")


WORKER = """
import os, random, sys
import sqlalchemy
from sqlalchemy import text
from identity_webhooks.once import once

engine = sqlalchemy.create_engine(sys.argv[1])
count, chance = int(sys.argv[2]), float(sys.argv[3])
keys = [f"evt_{n}" for n in range(count)]
random.shuffle(keys)
repeated = 0

def effect(db):
    die()
    db.execute(text("INSERT INTO effects VALUES (:word)"), {"word": key})
    die()

def die():
    if random.random() < chance:
        os.kill(os.getpid(), 9)

for key in keys:
    repeated += not once(engine, key)(effect)
    die()
print(repeated)
"""


@pytest.mark.sample(1)
def test_kills_at_any_moment_and_every_effect_once(postgres, engine) -> None:
    """Two processes run all keys in an order of their own, and are killed inside and outside."""
    if engine.dialect.name == "sqlite":
        pytest.skip("run on PostgreSQL")
    count = int(os.environ.get("ONCE_EVENTS", "500"))
    url = engine.url.render_as_string(hide_password=False)
    kills = Counter[str]()

    def run(name: str) -> None:
        command = [sys.executable, "-c", WORKER, url, str(count)]
        for chance in [3 / count] * 8 + [0.0]:
            done = subprocess.run(
                [*command, str(chance)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            kills[name] += done.returncode == -9
            if done.returncode == 0:
                kills["skipped"] += int(done.stdout)
                if not chance:
                    return
            elif done.returncode != -9:
                pytest.fail(done.stderr)

    threads = [threading.Thread(target=run, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert effects(engine) == sorted(f"evt_{n}" for n in range(count))
    assert kills["one"] + kills["two"] >= 4
    assert kills["skipped"] > 0

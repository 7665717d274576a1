"""Commit an effect together with its key, so that it happens once: `Verification.once`.

Works with SQLAlchemy 2 (an engine, a connection or a session) and Django (a connection, or its
alias); on PostgreSQL, SQLite, MySQL and MariaDB. Neither library is imported unless it is used.

The key is inserted first, in the transaction of the effect. A second process with the same key
waits there until the first has committed, and then skips, or has rolled back, and then runs. That
holds whatever the effect does, also for an UPDATE that hits no row.

`once` begins and commits the transaction. One that is open already, one that somebody else would
have to commit and one that does not hold anything together (autocommit) are refused: an effect
would be lost, or happen twice, without an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from identity_webhooks.answers import unraised, wrong_return
from identity_webhooks.handlers import Misuse, Retry, not_raised

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    Database = TypeVar("Database", Connection, Session)

TABLE = "identity_webhooks_once"
KEY_LENGTH = 500
"""Characters of a key, at most: MySQL can index no more (3,072 bytes)."""

_NAME = re.compile(r"[A-Za-z0-9._-]{0,100}")
_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (idempotency_key VARCHAR({KEY_LENGTH}) PRIMARY KEY,"
    " created TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)"
)
_FIND = f"SELECT COUNT(*) FROM {TABLE} WHERE idempotency_key = %s"  # noqa: S608 (our constant)
_CONFLICT = f"INSERT INTO {TABLE} (idempotency_key) VALUES (%s) ON CONFLICT DO NOTHING"  # noqa: S608
_IGNORE = f"INSERT IGNORE INTO {TABLE} (idempotency_key) VALUES (%s)"  # noqa: S608
_INSERT = {
    "postgresql": _CONFLICT,
    "sqlite": _CONFLICT,
    "mysql": _IGNORE,
    "mariadb": _IGNORE,
}
_WRITE = "write @v.once(engine) above a function that takes a connection"


@dataclass(slots=True)
class Blocks:
    """The effects of one run of a handler, by their keys."""

    _waiting: set[str] = field(default_factory=set)
    _over: set[str] = field(default_factory=set)

    def block(self, database: Any, key: str, name: str = "") -> Block:
        """Return what runs the effect of this name; it has to be called before the run ends.

        Raises:
            Misuse: it is no database, or no name.
        """
        _kind_of(database)
        if not (_is_text(name) and _NAME.fullmatch(name)):
            raise Misuse(
                "the name of a v.once is up to 100 letters, digits, dots and dashes, such as"
                ' v.once(engine, "invoice")'
            )
        key = f"{key}:{name}" if name else key
        if len(key) > KEY_LENGTH:
            raise Misuse(f"the key of a v.once is longer than {KEY_LENGTH} characters")
        self._waiting.add(key)
        return Block(self, database, key)

    def begin(self, key: str) -> None:
        """Note that an effect is about to be run.

        Raises:
            Misuse: one with this key has been, and this would be skipped.
        """
        self._waiting.discard(key)
        if key in self._over:
            raise Misuse(
                "v.once was used before in this run with the same name, so that this effect would"
                ' be skipped: give each a name of its own, v.once(engine, "invoice")'
            )

    def end(self, key: str) -> None:
        """Note that an effect has run, or was skipped."""
        self._over.add(key)

    def left(self) -> str:
        """Say what is wrong when a block has run nothing; else an empty text."""
        return f"v.once(...) has run nothing: {_WRITE}" if self._waiting else ""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What `v.once(...)` returns: to be called with the effect, as a decorator does."""

    _blocks: Blocks
    _database: Any
    _key: str

    def __call__(self, effect: Callable[[Any], None]) -> bool:
        """Run the effect unless it has been run for this key; whether it was."""
        self._blocks.begin(self._key)
        if not callable(effect):
            raise Misuse(f"v.once was given a {type(effect).__name__} to run: {_WRITE}")
        if _in_an_effect.get():
            raise Misuse(_NESTED)
        with _transaction(self._database) as open_:
            ran = open_.insert(self._key) == 1
            if ran:
                with open_.uncommitted():
                    _have(effect, open_.given)
                open_.check(self._key)
        self._blocks.end(self._key)
        return ran

    def _refuse(self, *_: object) -> NoReturn:
        raise Misuse(f"v.once is no context manager, and tells nothing by itself: {_WRITE}")

    # With one of these it would run nothing, or in no transaction.
    __enter__ = __bool__ = __iter__ = __await__ = _refuse

    def __exit__(self, *_: object) -> None:
        """Let `with` come to `__enter__`, which says what to write."""


_in_an_effect: ContextVar[bool] = ContextVar("in_an_effect", default=False)
_NESTED = (
    "v.once is used inside of the function below another v.once, and the one would be committed"
    " without the other: write both effects into one function, or one v.once below the other"
)


def _have(effect: Callable[[Any], None], given: Any) -> None:
    """Call an effect.

    Raises:
        Misuse: it returned something, or made a `Retry` and did not raise it: a `Retry` means that
            nothing was done, so its key must not be kept.
    """
    token = _in_an_effect.set(True)
    try:
        with not_raised() as made:
            answer: object = effect(given)  # type: ignore[func-returns-value]
    finally:
        _in_an_effect.reset(token)
    if wrong := wrong_return(answer) or unraised(made):
        raise Misuse(f"the function below v.once {wrong}")


def once(database: Any, key: str) -> Block:
    """Return a decorator that runs a function at once, unless it has been run for this key.

    It is `Verification.once` with a key of the caller's.
    """
    return Blocks().block(database, key)


def create_table(database: Any) -> None:
    """Create the table if it is not there.

    In a migration: `create_table(op.get_bind())` for Alembic, and for Django
    `RunPython(lambda apps, editor: create_table(editor.connection))`. In a transaction that is open
    it is created there; else it is committed.

    Args:
        database: what `once` takes.

    Raises:
        Misuse: it is no such database.
    """
    match _kind_of(database):
        case "django":
            with _django_connection(database).cursor() as cursor:
                cursor.execute(_CREATE)
        case "engine":
            with database.begin() as connection:
                _run(connection, _CREATE)
        case _:
            opened = _of_this_thread(database)
            begun = opened.in_transaction()
            if not begun:
                opened.begin()  # a session may be told to begin none by itself
            _run(opened, _CREATE)
            if not begun:
                opened.commit()


@dataclass(frozen=True, slots=True)
class _Open:
    """A transaction of one of the libraries.

    Attributes:
        given: what the effect gets.
        dialect: of SQL.
        run: executes a statement with a key, and returns its result.
        whole: raises `Misuse` unless the transaction is still the one that was begun.
        uncommitted: a block in which a commit raises `Misuse` before it is sent. Else the key would
            be kept, and what the effect has still to do would be skipped for good.
    """

    given: Any
    dialect: str
    run: Callable[[str, str], Any]
    whole: Callable[[], None]
    uncommitted: Callable[[], AbstractContextManager[None]] = nullcontext

    def insert(self, key: str) -> int:
        """Write the key down; how many rows that are, 0 if it was there."""
        if self.dialect not in _INSERT:
            raise Misuse(f"v.once does not know the database {self.dialect}")
        try:
            rows = self.run(_INSERT[self.dialect], key).rowcount
        except Exception as error:
            raise Retry(_why_not_written(error)) from error
        self.whole()
        return int(rows)

    def check(self, key: str) -> None:
        """Read the key again: it is gone if the effect ended the transaction or an error undid it.

        PostgreSQL rolls back at the COMMIT after an error that was caught, and says nothing.
        """
        self.whole()
        try:
            ((found,),) = self.run(_FIND, key).fetchall()
        except Exception as error:
            raise Misuse(
                f"the transaction of v.once has failed ({type(error).__name__}): an error was"
                " caught in the function below it; let it out, or use a savepoint"
            ) from error
        if found != 1:
            raise Misuse(_ENDED)


_ENDED = (
    "the function below v.once has ended its transaction: leave commit and rollback to v.once, and"
    " raise to undo"
)


_NO_TABLE = {"42P01", "42S02", 1146}
"""What PostgreSQL (sqlstate), MySQL and MariaDB (number) call a table that is missing."""

_LOCKED = {"SQLITE_BUSY", "SQLITE_LOCKED", "55P03", 1205}
"""What SQLite, PostgreSQL and MySQL call a lock that was not given in time."""


def _why_not_written(error: Exception) -> str:
    """Say why a key was not written down, and what to do. No text of the database's: it may hold
    what a session wrote before, and is in the database's language.
    """
    # The driver's exception is what SQLAlchemy and Django were raised from.
    driver = getattr(error, "orig", None) or error.__cause__ or error
    names = ("sqlite_errorname", "sqlstate", "pgcode")
    codes = {getattr(driver, name, None) for name in names} | set(driver.args[:1])
    name = next(
        (each for each in codes if isinstance(each, str) and re.fullmatch(r"\w+", each)), ""
    )
    what = f"{type(driver).__name__}{f' {name}' if name else ''}"
    if codes & _NO_TABLE or f"no such table: {TABLE}" in str(driver):
        return f"{what}: there is no table {TABLE}: identity_webhooks.once.create_table makes it"
    if codes & _LOCKED:
        return (
            f"{what}: the table {TABLE} is locked by another transaction: commit what the handler"
            " has begun before v.once, keep transactions short, or wait longer (timeout)"
        )
    return f"{what}: the table {TABLE} cannot be written to: look at the database and its rights"


def _is_text(value: object) -> bool:
    return isinstance(value, str)  # not every author runs a type checker


def _kind_of(database: Any) -> str:
    """Say which kind of database it is.

    Raises:
        Misuse: it is none.
    """
    sqlalchemy, orm = sys.modules.get("sqlalchemy"), sys.modules.get("sqlalchemy.orm")
    if orm and isinstance(database, orm.Session | orm.scoped_session):
        return "session"
    if sqlalchemy and isinstance(database, sqlalchemy.Engine):
        return "engine"
    if sqlalchemy and isinstance(database, sqlalchemy.Connection):
        return "connection"
    if isinstance(database, str) or (
        hasattr(database, "vendor") and hasattr(database, "in_atomic_block")
    ):
        return "django"
    raise Misuse(
        "v.once takes an engine, a connection or a session of SQLAlchemy, or a connection of Django"
        f" or its alias, and not a {type(database).__name__}: write @v.once(engine)"
    )


def _of_this_thread(database: Any) -> Any:
    """Return the session that a scoped one stands for, and anything else as it is."""
    from sqlalchemy.orm import scoped_session  # noqa: PLC0415 (optional)

    return database() if isinstance(database, scoped_session) else database


@contextmanager
def _transaction(database: Any) -> Iterator[_Open]:
    """Begin a transaction; commit it, or roll it back when something is raised."""
    kind = _kind_of(database)
    if kind == "django":
        with _django(database) as open_:
            yield open_
    elif kind == "session":
        with _session(database) as open_:
            yield open_
    elif kind == "engine":
        with database.connect() as connection, _begun(connection) as open_:
            yield open_
    else:
        with _begun(database) as open_:
            yield open_


@contextmanager
def _begun(connection: Any) -> Iterator[_Open]:
    """Begin a transaction of a SQLAlchemy connection."""
    if connection.in_transaction():
        # It began by itself with whatever was read before, or somebody has to commit it.
        raise Misuse(
            "the connection given to v.once is in a transaction already: give v.once the engine, or"
            " a connection on which nothing was run since its last commit"
        )

    def whole() -> None:
        if not begun.is_active:
            raise Misuse(_ENDED)
        _refuse_autocommit(connection)

    with connection.begin() as begun:
        uncommitted = partial(_uncommitted, connection)
        yield _Open(connection, connection.dialect.name, _executor(connection), whole, uncommitted)


@contextmanager
def _session(session: Any) -> Iterator[_Open]:
    """Begin a transaction of a SQLAlchemy session, or go on in the one that reading has begun."""
    from sqlalchemy import Connection  # noqa: PLC0415 (optional)
    from sqlalchemy.exc import UnboundExecutionError  # noqa: PLC0415
    from sqlalchemy.orm import SessionTransactionOrigin  # noqa: PLC0415

    session = _of_this_thread(session)
    try:
        bind = session.get_bind()
    except UnboundExecutionError:
        raise Misuse(
            "the session given to v.once has a database for each class, and none of its own: give"
            " it the one of the effect, Session(engine)"
        ) from None
    begun = session.get_transaction()
    if session.in_nested_transaction():
        raise Misuse("the session given to v.once is in a savepoint: use v.once outside of it")
    if begun is not None and begun.origin is not SessionTransactionOrigin.AUTOBEGIN:
        raise Misuse(
            "the session given to v.once is in a transaction that was begun for it: give v.once a"
            " session of its own, and it begins and commits"
        )
    if isinstance(bind, Connection) and bind.in_transaction():
        raise Misuse(
            "the session given to v.once is bound to a connection that is in a transaction, which"
            " it would not commit: bind it to the engine"
        )
    ours = session.begin() if begun is None else begun

    def whole() -> None:
        if session.get_transaction() is not ours or not ours.is_active:
            raise Misuse(_ENDED)
        # One after the other would be committed. SQLAlchemy has no public word for them.
        if len({id(entry[0]) for entry in ours._connections.values()}) > 1:
            raise Misuse(
                "the session given to v.once works on several databases, of which one could be"
                " committed without the other: give it a session of one, Session(engine)"
            )
        _refuse_autocommit(session.connection())

    try:
        uncommitted = partial(_uncommitted, session.connection(), session)
        yield _Open(session, bind.dialect.name, _executor(session), whole, uncommitted)
        session.commit()
    except BaseException:
        session.rollback()
        raise


@contextmanager
def _uncommitted(connection: Any, session: Any = None) -> Iterator[None]:
    """Refuse a commit of SQLAlchemy's, of the connection or of the session on it."""
    from sqlalchemy import event  # noqa: PLC0415 (optional)

    def refuse(ending: Any) -> None:
        if ending is session and session.in_nested_transaction():
            return  # of a savepoint
        # SQLAlchemy takes a commit that raises for one that ended the transaction.
        connection.connection.rollback()
        raise Misuse(_ENDED)

    heard = [(connection, "commit"), *([(session, "before_commit")] if session else [])]
    for target, name in heard:
        event.listen(target, name, refuse)
    try:
        yield
    finally:
        for target, name in heard:
            event.remove(target, name, refuse)


def _refuse_autocommit(connection: Any) -> None:
    """Refuse a connection of SQLAlchemy that commits each statement; the key is inserted by now."""
    raw = connection.connection.dbapi_connection
    if (open_ := getattr(raw, "in_transaction", None)) is not None:
        alone = not open_  # sqlite3; whoever emits BEGIN has a transaction, whatever its settings
    elif hasattr(connection.dialect, "detect_autocommit_setting"):  # from SQLAlchemy 2.0.45 on
        alone = connection.dialect.detect_autocommit_setting(raw)
    else:
        alone = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    if alone:
        raise Misuse(
            "the database given to v.once commits each statement by itself (AUTOCOMMIT): give it an"
            " engine without that isolation level"
        )


def _run(connection: Any, statement: str, *key: str) -> Any:
    from sqlalchemy import text  # noqa: PLC0415 (optional)

    return connection.execute(text(statement.replace("%s", ":key")), {"key": key[0]} if key else {})


def _executor(connection: Any) -> Callable[[str, str], Any]:
    return lambda statement, key: _run(connection, statement, key)


def _django_connection(database: Any) -> Any:
    from django.db import connections  # noqa: PLC0415 (optional)

    return connections[database] if isinstance(database, str) else database


@contextmanager
def _django(database: Any) -> Iterator[_Open]:
    """Begin a transaction of Django's."""
    from django.db import transaction  # noqa: PLC0415 (optional)

    connection = _django_connection(database)
    if not connection.in_atomic_block and not connection.get_autocommit():
        raise Misuse(
            "the autocommit of Django's connection is off, and v.once would not be committed: leave"
            " it on"
        )

    def whole() -> None:
        if connection.needs_rollback:
            raise Misuse(_ENDED)

    def run(statement: str, key: str) -> Any:
        cursor = connection.cursor()
        cursor.execute(statement, [key])
        return cursor

    with ExitStack() as stack:
        try:
            stack.enter_context(transaction.atomic(using=connection.alias, durable=True))
        except RuntimeError:  # what Django says of a block that is not the outermost one
            raise Misuse(
                "v.once is in a transaction.atomic block, which may undo it: use it outside, and"
                " write into its function what belongs together"
            ) from None
        yield _Open(connection, connection.vendor, run, whole)

"""Commit an effect together with its key, so that it happens once: `Verification.once`.

Works with SQLAlchemy 2 (an engine, a connection or a session) and Django (a connection, or its
alias); on PostgreSQL, SQLite, MySQL and MariaDB. Neither library is imported unless it is used.

The key is inserted first, in the transaction of the effect. A second process with the same key
waits there until the first has committed, and then skips, or has rolled back, and then runs. That
holds whatever the effect does, also for an UPDATE that hits no row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, overload

from identity_webhooks.answers import wrong_return
from identity_webhooks.handlers import Retry

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

    Database = TypeVar("Database", Connection, Session)

TABLE = "identity_webhooks_once"
KEY_LENGTH = 500
"""Characters of a key, at most: MySQL can index no more (3,072 bytes)."""

_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (idempotency_key VARCHAR({KEY_LENGTH}) PRIMARY KEY,"
    " created TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)"
)
_CONFLICT = f"INSERT INTO {TABLE} (idempotency_key) VALUES (%s) ON CONFLICT DO NOTHING"  # noqa: S608 (our constant)
_IGNORE = f"INSERT IGNORE INTO {TABLE} (idempotency_key) VALUES (%s)"  # noqa: S608
_INSERT = {
    "postgresql": _CONFLICT,
    "sqlite": _CONFLICT,
    "mysql": _IGNORE,
    "mariadb": _IGNORE,
}


@overload
def once(database: Engine, key: str) -> Callable[[Callable[[Connection], None]], bool]: ...


@overload
def once(database: Database, key: str) -> Callable[[Callable[[Database], None]], bool]: ...


@overload
def once(database: Any, key: str) -> Callable[[Callable[[Any], None]], bool]: ...


def once(database: Any, key: str) -> Callable[[Callable[[Any], None]], bool]:
    """Return a decorator that runs a function at once, unless it has been run for this key.

    The function gets the connection or session of the transaction, and returns nothing. What the
    decorator leaves behind is True when it was run, and False when it was skipped.

    An engine, or a session that has not begun, is begun here and committed. A transaction that you
    began yourself stays yours: commit it. A session that only reading has begun is committed.

    Raises:
        TypeError: it is no such database, or the function returned a coroutine or a generator.
        Retry: the key cannot be written down, which is most often a missing table.
    """

    def run(effect: Callable[[Any], None]) -> bool:
        with _transaction(database) as (transaction, dialect, execute):
            if dialect not in _INSERT:
                raise TypeError(f"once does not know the database {dialect}")
            try:
                inserted = execute(_INSERT[dialect], key)
            except Exception as error:
                raise Retry(
                    f"{type(error).__name__}: cannot write to the table {TABLE}:"
                    " identity_webhooks.once.create_table makes it"
                ) from error
            if inserted != 1:
                return False
            answer: object = effect(transaction)  # type: ignore[func-returns-value]
            if wrong := wrong_return(answer):
                raise TypeError(wrong)
            return True

    return run


def create_table(database: Any) -> None:
    """Create the table if it is not there; the same databases as for `once`.

    In a migration: `create_table(op.get_bind())` for Alembic, and for Django
    `RunPython(lambda apps, editor: create_table(editor.connection))`.
    """
    with _transaction(database) as (_, _, execute):
        execute(_CREATE)


Execute = Callable[..., int]
"""Executes a statement, with the key where it has one, and returns how many rows it changed."""


@contextmanager
def _transaction(database: Any) -> Iterator[tuple[Any, str, Execute]]:
    """Yield what the effect is given, the name of the SQL dialect, and how to execute.

    A library is imported if the database is one of its.
    """
    sqlalchemy, orm = sys.modules.get("sqlalchemy"), sys.modules.get("sqlalchemy.orm")
    if orm and isinstance(database, orm.scoped_session):
        database = database()
    if isinstance(database, str) or hasattr(database, "vendor"):
        with _django(database) as given:
            yield given
    elif orm and isinstance(database, orm.Session):
        with _session(database) as given:
            yield given
    elif sqlalchemy and isinstance(database, sqlalchemy.Engine):
        with database.begin() as connection:
            yield connection, connection.dialect.name, _executor(connection)
    elif sqlalchemy and isinstance(database, sqlalchemy.Connection):
        with nullcontext() if database.in_transaction() else database.begin():
            yield database, database.dialect.name, _executor(database)
    else:
        raise TypeError(
            "once takes an engine, a connection or a session of SQLAlchemy, or a connection of"
            f" Django or its alias, and not a {type(database).__name__}"
        )


@contextmanager
def _session(session: Session) -> Iterator[tuple[Any, str, Execute]]:
    from sqlalchemy.orm import SessionTransactionOrigin  # noqa: PLC0415 (optional)

    begun = session.get_transaction()
    ours = begun is None or begun.origin is SessionTransactionOrigin.AUTOBEGIN
    try:
        yield session, session.get_bind().dialect.name, _executor(session)
        if ours:
            session.commit()
    except BaseException:
        if ours:
            session.rollback()
        raise


def _executor(connection: Any) -> Execute:
    from sqlalchemy import text  # noqa: PLC0415 (optional)

    def execute(statement: str, *key: str) -> int:
        parameters = {"key": key[0]} if key else {}
        return int(connection.execute(text(statement.replace("%s", ":key")), parameters).rowcount)

    return execute


@contextmanager
def _django(database: Any) -> Iterator[tuple[Any, str, Execute]]:
    from django.db import connections, transaction  # noqa: PLC0415 (optional)

    connection = connections[database] if isinstance(database, str) else database

    def execute(statement: str, *key: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute(statement, key or None)
            return int(cursor.rowcount)

    with transaction.atomic(using=connection.alias):
        yield connection, connection.vendor, execute

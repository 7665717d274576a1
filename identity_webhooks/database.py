"""The table of the built-in handler `database`: where each session stands, and whose it is.

Needs SQLAlchemy 2 (the extra `sqlalchemy`); on PostgreSQL and SQLite. A row holds the session's id,
the subject, the outcome and its reason: no names, no documents. When the session is redacted, the
subject and the reason are erased. The rest of the row stays, so that nothing can write them again.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    MetaData,
    String,
    Table,
    Text,
    exists,
    inspect,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from identity_webhooks.verification import Verification

SESSIONS = Table(
    "identity_webhooks_sessions",
    MetaData(),
    Column("session", String(255), primary_key=True),
    Column("account", String(255), nullable=False),  # empty for one's own: NULL equals nothing
    Column("subject", Text),
    Column("outcome", String(255), nullable=False),
    Column("reason", String(255)),
    Column("position", BigInteger, nullable=False),  # when the event was made
    Column("taken", BigInteger, nullable=False),  # v.order
)
Index("identity_webhooks_sessions_subject", SESSIONS.c.subject, SESSIONS.c.account)

LAST = 2**62
"""The position of a redaction: nothing comes after it."""

_INSERT: dict[str, Callable[[Table], postgresql.Insert | sqlite.Insert]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}


def create_table(database: Engine | Connection) -> None:
    """Create the table and its index if they are not there; `op.get_bind()` in Alembic."""
    try:
        SESSIONS.metadata.create_all(database)
    except DBAPIError:  # another process created it at the same moment, or there is no right to
        if not inspect(database).has_table(SESSIONS.name):
            raise


def save(database: Connection, v: Verification) -> None:
    """Write where the session stands, unless the row tells of a later event; commit it yourself.

    One statement: the database compares under the lock of the row, so a process that was held up
    cannot take a session back in time. Of two events of one second, the one with the
    greater `v.order` counts: its worker has read the session later.
    """
    redacted = v.redacted
    values = {
        "session": v.event.session,
        "account": v.event.account or "",
        "subject": None if redacted else v.subject,
        "outcome": "redacted" if redacted else v.outcome.kind,
        "reason": None if redacted else v.outcome.reason,
        "position": LAST if redacted else v.event.created,
        "taken": v.order,
    }
    statement = _INSERT[database.dialect.name](SESSIONS).values(values)
    database.execute(
        statement.on_conflict_do_update(
            index_elements=[SESSIONS.c.session],
            set_={name: statement.excluded[name] for name in values if name != "session"},
            # Equal, too: the same event, run again.
            where=tuple_(statement.excluded.position, statement.excluded.taken)
            >= tuple_(SESSIONS.c.position, SESSIONS.c.taken),
        )
    )


def is_verified(
    database: Connection | Session, subject: str, *, account: str | None = None
) -> bool:
    """Whether a session of this subject stands at verified now. After redaction: False.

    Args:
        database: a connection or a session of SQLAlchemy.
        subject: what `v.subject` was: `client_reference_id`, else `metadata["user_id"]`.
        account: the connected account that the session belongs to; None for one's own. Another
            account's subjects are never yours, whatever it calls them.
    """
    where = exists().where(
        SESSIONS.c.subject == subject,
        SESSIONS.c.account == (account or ""),
        SESSIONS.c.outcome == "verified",
    )
    return bool(database.scalar(select(where)))

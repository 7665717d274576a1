"""Keeps where each session stands in a database of yours: on when IDENTITY_DATABASE is set.

What is kept, and how to ask for it, stands in `identity_webhooks.database`.
"""

from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from identity_webhooks import Retry, Verification, on, on_start, on_stop
from identity_webhooks.database import create_table, save


class Database:
    """The handler and its engine.

    Args:
        url: as SQLAlchemy takes it; of PostgreSQL or SQLite.
    """

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, pool_pre_ping=True)  # connects when it is first used
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        if self._is_sqlite:
            event.listen(self.engine, "connect", _erase_securely)

    @on_start
    def connect(self) -> None:
        """Create the table where it is missing."""
        create_table(self.engine)

    @on_stop
    def disconnect(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @on("*")
    def save(self, v: Verification) -> None:
        """Keep where the session stands; erase whose it is once it is redacted."""
        with self.engine.begin() as db:
            save(db, v)
        if v.redacted and self._is_sqlite:
            self._write_anew()

    def _write_anew(self) -> None:
        """Leave nothing of what was erased in the file, nor in the write-ahead log.

        `secure_delete` overwrites a row where it stands. Where it stood before its page was split
        is overwritten by VACUUM only.
        """
        alone = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            with alone.connect() as db:
                db.execute(text("VACUUM"))
                busy = db.scalar(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        except OperationalError:
            busy = 1
        if busy:
            raise Retry("the SQLite database is in use, and its files hold what is to be erased")


def _erase_securely(connection: Any, _: object) -> None:
    connection.execute("PRAGMA secure_delete = ON")

"""Keeps the world in one SQLite file, so that it outlives the process."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from stripe_identity_sandbox import objects
from stripe_identity_sandbox.objects import Record, Session

TABLE = (
    "CREATE TABLE record (n INTEGER PRIMARY KEY, kind TEXT, id TEXT, body BLOB, UNIQUE (kind, id))"
)
#: Seconds for which a start waits for a sandbox that is about to end.
PATIENCE = 1.0


class Unusable(Exception):
    """The file cannot keep the state; the message is one sentence that says why."""


class Store:
    """One table of JSON records, in the order in which they were made.

    The file is one process's while it runs: SQLite's lock, which ends with the process. Only its
    owner can read it.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            Unusable: it cannot be written, another sandbox has it, or it holds something else.
        """
        self._path = path
        with self._or_unusable():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            regular = stat.S_ISREG(os.fstat(file).st_mode)
            os.close(file)
            if not regular:
                raise Unusable(f"{path} is no regular file.")
            self._db = sqlite3.connect(
                path, timeout=PATIENCE, check_same_thread=False, isolation_level=None
            )
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        tables = [
            sql for (sql,) in self._db.execute("SELECT sql FROM sqlite_master WHERE sql > ''")
        ]
        if tables not in ([], [TABLE]):
            raise Unusable(f"{self._path} is a database, but none of a sandbox's.")
        # WAL and NORMAL: a crash of the process loses nothing, a power cut the last moments.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA temp_store = MEMORY")
        if not tables:
            self._db.execute(TABLE)
        for file in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            file.chmod(0o600)
        # A process that was killed may have left what a redaction was about to erase.
        self._tidy()

    def save(self, touched: dict[tuple[str, str], Record | None]) -> None:
        """Write one step: all of it or nothing. None deletes."""
        with self._db:
            self._db.execute("BEGIN")
            for (kind, id_), record in touched.items():
                if record is None:
                    self._db.execute("DELETE FROM record WHERE kind = ? AND id = ?", (kind, id_))
                else:
                    self._db.execute(
                        "INSERT INTO record (kind, id, body) VALUES (?, ?, ?)"
                        " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                        (kind, id_, msgspec.json.encode(record)),
                    )
        if any(
            isinstance(one, Session) and one.redaction == "redacted" for one in touched.values()
        ):
            self._tidy()

    def _tidy(self) -> None:
        """Leave no byte of earlier states in the file and its log.

        ``PRAGMA secure_delete`` is not enough: pages that were split keep copies of their rows.
        """
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def load(self) -> list[Record]:
        """Return every record, oldest first.

        Raises:
            Unusable: one cannot be read.
        """
        with self._or_unusable():
            rows = self._db.execute("SELECT kind, body FROM record ORDER BY n")
            return [msgspec.json.decode(body, type=getattr(objects, kind)) for kind, body in rows]

    def close(self) -> None:
        """Close the file; its log is gone then."""
        self._db.close()

    @contextlib.contextmanager
    def _or_unusable(self) -> Iterator[None]:
        """Say in one sentence what is wrong with the file."""
        try:
            yield
        except OSError as error:
            raise Unusable(
                f"{self._path} cannot be opened for writing: {error.strerror} ({error.filename})."
            ) from error
        except sqlite3.Error as error:
            # The low byte is the kind of the error, the rest says more of it.
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise Unusable(
                    f"Another sandbox has {self._path}: give each its own file."
                ) from error
            raise Unusable(f"{self._path} cannot keep the state: {error}.") from error
        except (msgspec.MsgspecError, AttributeError, TypeError) as error:
            raise Unusable(f"{self._path} holds records that cannot be read: {error}.") from error

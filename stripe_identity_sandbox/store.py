"""Keeps the world in one SQLite file, so that it outlives the process."""

import sqlite3
from pathlib import Path

import msgspec

from stripe_identity_sandbox import objects
from stripe_identity_sandbox.objects import Record


class Store:
    """One table of JSON records, in the order in which they were made."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        # WAL and NORMAL: a crash of the process loses nothing, a power cut the last moments.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS record"
            " (n INTEGER PRIMARY KEY, kind TEXT, id TEXT, body BLOB, UNIQUE (kind, id))"
        )

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

    def load(self) -> list[Record]:
        """Return every record, oldest first."""
        rows = self._db.execute("SELECT kind, body FROM record ORDER BY n")
        return [msgspec.json.decode(body, type=getattr(objects, kind)) for kind, body in rows]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

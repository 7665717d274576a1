"""Numbers that the processes forked from one have in common, without Redis.

gunicorn forks the web processes of an instance from one, and a scrape is answered by any of them.
So what they count is added up in memory that all of them have: a file without a name, of a few
kilobytes, which is read and written under a lock that ends with its holder.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec


class Ledger:
    """A dict of numbers or of plain data. Made before a fork, it is shared by what was forked."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("ledger")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        self._lock = threading.Lock()

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Let the block change the entries; nobody else does meanwhile."""
        # The lock of the file is a process's, so its threads need one beside it.
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                entries = self._read()
                yield entries
                # In one write, which a signal does not cut: a process may be killed here.
                os.pwrite(self._file, msgspec.json.encode(entries) + b"\n", 0)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def read(self) -> dict[str, Any]:
        """Return the entries."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_SH)
            try:
                return self._read()
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read(self) -> dict[str, Any]:
        size = os.fstat(self._file).st_size
        text = os.pread(self._file, size, 0).partition(b"\n")[0]
        entries: dict[str, Any] = msgspec.json.decode(text) if text else {}
        return entries

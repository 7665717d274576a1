"""The heartbeat file that `python -m workers health` reads.

The worker's parent process and the periodic process beat while their loops run, whether Redis
answers or not: a failed check makes the platform restart the process, which would not repair
Redis. A dead child is replaced by its parent, and a hung handler is ended by the heartbeat thread;
what remains is a process that is stopped, stuck or gone.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

STALE = 120.0
"""Seconds without a beat after which a process counts as stuck. Looking up the name of Redis can
block for a minute where DNS does not answer (5 s for each server, try and search domain:
resolv.conf(5))."""


def beat() -> None:
    """Renew the file's time. Where it cannot be written, `age` finds none."""
    with suppress(OSError):
        # The directory is everyone's: no link of somebody else's is followed.
        file = os.open(_file(), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.utime(file)
        finally:
            os.close(file)


def end() -> None:
    """Leave nothing behind. Another process of this user makes the file anew with its next beat."""
    with suppress(OSError):
        _file().unlink()


def age() -> float | None:
    """Return the seconds since the last beat of a process of this user on this machine.

    None: there was none, or its file cannot be looked at.
    """
    try:
        return max(0.0, time.time() - _file().stat(follow_symlinks=False).st_mtime)
    except OSError:
        return None


def _file() -> Path:
    return Path(tempfile.gettempdir(), f"identity-webhooks-workers-{os.getuid()}")

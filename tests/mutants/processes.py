"""Processes that end with everything they started, whatever ends them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class Processes:
    """Those that run now, in any thread.

    Attributes:
        is_stopped: no more are started.
    """

    def __init__(self) -> None:
        self.is_stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(
        self, command: Sequence[str], *, limit: float | None = None, **options: Any
    ) -> int | None:
        """Run a command with `options` of Popen, and return its exit code.

        None: it took more than `limit` seconds, or `stop` was called.
        """
        if self.is_stopped:
            return None
        child = subprocess.Popen(command, start_new_session=True, **options)
        self._running.add(child)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        else:
            return None if self.is_stopped else code
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # fixtures stop what they started
                with suppress(subprocess.TimeoutExpired):
                    child.wait(30)
            self._running.discard(child)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def stop(self) -> None:
        """End what runs, as Ctrl-C would."""
        self.is_stopped = True
        for child in list(self._running):
            child.send_signal(signal.SIGINT)

"""Processes that end with everything they started, whatever ends them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class Processes:
    """Those that run now, in any thread.

    Attributes:
        is_stopped: none is started any more, and each that runs ends within seconds.
    """

    is_stopped = False

    def run(self, command: Sequence[str], *, limit: float = math.inf, **options: Any) -> int | None:
        """Run a command with `options` of Popen, and return its exit code.

        None: it took more than `limit` seconds, or was stopped.
        """
        until = time.monotonic() + limit
        if self.is_stopped:
            return None
        child = subprocess.Popen(command, start_new_session=True, **options)
        try:
            while not self.is_stopped and (left := until - time.monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(min(left, 1))
            return None
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # fixtures stop what they started
                with suppress(subprocess.TimeoutExpired):
                    child.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

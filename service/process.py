"""What every long-running process of ours does about itself."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Leave no core dump, and let no process of the same user read our memory or environment.

    Personal data and keys are in there. Holds for the processes forked from here on. Debuggers and
    profilers then need root, or CAP_SYS_PTRACE. The second half is Linux's (prctl(2)).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

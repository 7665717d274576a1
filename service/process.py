"""Hardening that every long-running process applies."""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
import threading
from contextlib import suppress
from types import TracebackType

from service import logs

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def keep_memory_private() -> None:
    """Leave no core dump, and let no process of the same user read our memory or environment.

    Memory holds personal data and keys. Holds for the processes forked from here on. Debuggers and
    profilers then need root, or CAP_SYS_PTRACE. The second half is Linux's (prctl(2)).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(*, at_once: bool) -> None:
    """Have the kernel kill this process when the thread that started it is gone, or no longer.

    For code that keeps the interpreter's lock, which no thread of ours could end. Linux only
    (prctl(2)).
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if at_once else 0)


def hook_exceptions() -> None:
    """Log uncaught exceptions of threads, finalizers and the main program.

    Python would print it with its text, past the pipeline.
    """
    log = logs.get(__name__)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            log.error("thread_failed", exc_info=args.exc_value)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        log.error("finalizer_failed", exc_info=args.exc_value)

    def uncaught(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        log.critical("process_failed", exc_info=error)

    threading.excepthook, sys.unraisablehook, sys.excepthook = in_thread, unraisable, uncaught

"""What importing a plugin leaves: threads, connections and databases, which do not survive the fork
into the worker's child, and signal handlers, which the worker has of its own.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from workers.import_faults import at


class Signals:
    """What this process does about signals at one moment."""

    def __init__(self) -> None:
        self._handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore(self) -> list[tuple[str, str]]:
        """Make it as it was then; what had been changed since, in words, and where that is."""
        changed = []
        for number, handler in self._handlers.items():
            now = signal.getsignal(number)
            if now is not handler and handler is not None:
                place = _place(getattr(now, "__code__", None))
                changed.append((f"sets what is done about {_name(number)}", place))
                signal.signal(number, handler)
        blocked = signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        added = sorted(blocked - self._blocked)
        return changed + [(f"blocks {_name(number)}", "") for number in added]


def _place(code: CodeType | None) -> str:
    """Return where a function of Python is, in brackets."""
    return f" ({at(code.co_filename, code.co_firstlineno)})" if code else ""


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class Held:
    """The threads, open files and signal handlers of this process at one moment."""

    def __init__(self) -> None:
        self._signals = Signals()
        self._threads = set(_frames())
        self._open = {key for key, _ in _open()}

    def added(self) -> list[str]:
        """Return what has been started and opened since, and is still there, as faults."""
        # Also those that were started without `threading`; not those of C code.
        threads = set(_frames()) - self._threads
        names = {thread.ident: repr(thread.name) for thread in threading.enumerate()}
        found = [
            (f"starts the thread {names.get(ident, 'without a name')}", _running(ident))
            for ident in threads
        ]
        # One that was there before is not new when it is cut, or connected, meanwhile.
        now = sorted(_open())
        found += [(what, "") for key, what in now if what and key not in self._open]
        return [
            *(
                f"{what} when it is imported, which the process that runs handlers would not have:"
                f" do it in a function marked @on_start{place}"
                for what, place in found
            ),
            *(
                f"{what} when it is imported, which the worker does itself: take that out, and"
                f" mark what is to be done at the end with @on_stop{place}"
                for what, place in self._signals.restore()
            ),
        ]


def _frames() -> dict[int, FrameType]:
    """Return what each thread runs.

    Before Python 3.11.9 a collection of garbage within the call may stop the process for ever:
    another thread may start then, and wait for the lock that the call holds
    (https://github.com/python/cpython/issues/106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if was_enabled:
            gc.enable()


def _running(ident: int) -> str:
    """Return where the function is that a thread runs, in brackets; of C code nothing."""
    frame, found = _frames().get(ident), None
    while frame:
        if frame.f_code.co_filename != threading.__file__:
            found = frame.f_code
        frame = frame.f_back
    return _place(found)


def _open() -> Iterator[tuple[str, str]]:
    """Yield each open file, and what it is, in words, if two processes must not share it.

    Whatever library opened it, and in C, too. Linux only: elsewhere none is seen.
    """
    folder = Path("/proc/self/fd")
    for path in list(folder.iterdir()) if folder.exists() else []:
        with suppress(OSError):  # closed since it was listed, such as that of the list
            target, number = str(path.readlink()), int(path.name)
            status = os.fstat(number)
            if stat.S_ISSOCK(status.st_mode):
                what = _socket(number)
            # One without a name is memory of this process, which may be shared on purpose.
            elif stat.S_ISREG(status.st_mode) and status.st_nlink and _is_database(number):
                what = f"keeps the file {target} open for reading and writing, as a database is,"
            else:
                what = ""
            yield f"{target} {number}", what


def _socket(number: int) -> str:
    """Say what a socket is; an empty text if it holds no state that could be mixed up."""
    with closing(socket.socket(fileno=os.dup(number))) as copy:
        if copy.type != socket.SOCK_STREAM:
            return ""  # a datagram (syslog) is whole by itself
        try:
            peer = copy.getpeername()
        except OSError:  # not connected, or not yet
            here = copy.getsockname()
            is_bound = here[1] if isinstance(here, tuple) else here
            return f"opens a socket at {_address(here)}" if is_bound else ""
        return f"opens a connection to {_address(peer)}" if peer else ""  # a pair is nameless


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        return ":".join(map(str, address[:2]))
    return address.decode() if isinstance(address, bytes) else str(address)


def _is_database(number: int) -> bool:
    """Whether a file is open for reading and writing in any place: a log is appended to."""
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    return flags & os.O_ACCMODE == os.O_RDWR and not flags & os.O_APPEND

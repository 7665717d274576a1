"""What importing a plugin leaves: threads and connections, which do not survive the fork into the
worker's child, and signal handlers, which the worker has of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path


class Signals:
    """What this process does about signals at one moment."""

    def __init__(self) -> None:
        self._handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore(self) -> list[str]:
        """Make it as it was then; what had been changed since, in words."""
        changed = []
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                changed.append(f"sets what is done about {_name(number)}")
                signal.signal(number, handler)
        blocked = signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        return changed + [f"blocks {_name(number)}" for number in sorted(blocked - self._blocked)]


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class Held:
    """The threads, connections and signal handlers of this process at one moment."""

    def __init__(self) -> None:
        self._signals = Signals()
        self._threads = set(threading.enumerate())
        self._connections = set(_connections())

    def added(self) -> list[str]:
        """Return what has been started and opened since, and is still there, as faults."""
        threads = set(threading.enumerate()) - self._threads
        connections = set(_connections()) - self._connections
        found = [f"starts the thread {thread.name!r}" for thread in threads]
        found += [f"opens a connection to {peer}" for _, peer in connections]
        return [
            *(
                f"{what} when it is imported, which the process that runs handlers would not have:"
                " do it in a function marked @on_start"
                for what in found
            ),
            *(
                f"{what} when it is imported, which the worker does itself: take that out, and"
                " mark what is to be done at the end with @on_stop"
                for what in self._signals.restore()
            ),
        ]


def _connections() -> Iterator[tuple[str, str]]:
    """Yield inode and peer of each connection (Linux only: elsewhere none is seen)."""
    folder = Path("/proc/self/fd")
    for path in list(folder.iterdir()) if folder.exists() else []:
        with suppress(OSError):
            inode = str(path.readlink())
            if not inode.startswith("socket:"):
                continue
            with closing(socket.socket(fileno=os.dup(int(path.name)))) as copy:
                peer = copy.getpeername()
                # Both ends of a pair are nameless, and a datagram socket (syslog) holds no state.
                if peer and copy.type == socket.SOCK_STREAM:
                    yield inode, ":".join(map(str, peer[:2])) if isinstance(peer, tuple) else peer

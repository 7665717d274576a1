"""What importing a plugin leaves running: it does not survive the fork into the worker's child."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path


class Held:
    """The threads and connections of this process at one moment."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._connections = set(_connections())

    def added(self) -> list[str]:
        """Return what has been started and opened since, and is still there, as faults."""
        threads = set(threading.enumerate()) - self._threads
        connections = set(_connections()) - self._connections
        found = [f"starts the thread {thread.name!r}" for thread in threads]
        found += [f"opens a connection to {peer}" for _, peer in connections]
        return [
            f"{what} when it is imported, which the process that runs handlers would not have:"
            " do it in a function marked @on_start"
            for what in found
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

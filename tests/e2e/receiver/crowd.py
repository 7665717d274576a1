"""A crowd of clients that connect, trickle, reset, reconnect, pipeline and do not read.

    python tests/e2e/receiver/crowd.py PORT SIZE

It goes on until it is ended, a minute at most.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from contextlib import suppress

HEAD = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"
PIECES = (
    *(b"P", b"\r\n", b"X: y\r\n", HEAD, HEAD + b"Content-Length: 200000\r\n\r\n{", b"x" * 1000),
    *(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 50, b"\x00"),
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 16,
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 16,
    HEAD + b"Content-Length: 2\r\n\r\n{}",
    b"POST /webhooks/stripe HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
    b"GET /readyz HTTP/1.0\r\n\r\n",
    b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n",
)
RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER, on and 0 s: closing resets the connection."""


def connect(port: int, some: random.Random) -> socket.socket:
    one = socket.socket()
    if some.random() < 0.3:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    return one


def act(one: socket.socket, some: random.Random) -> bool:
    """Send something and read nothing; False when the connection is to be closed."""
    action = some.random()
    if action < 0.05:
        with suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return False
    if action < 0.08:
        return False
    try:
        one.send(some.choice(PIECES))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def main(port: int, size: int) -> None:
    some, ends = random.Random(size), time.monotonic() + 120
    crowd = [connect(port, some) for _ in range(size)]
    while time.monotonic() < ends:
        for at in some.sample(range(size), size // 50):
            if not act(crowd[at], some):
                crowd[at].close()
                crowd[at] = connect(port, some)
        time.sleep(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

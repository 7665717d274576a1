"""The gunicorn worker class of the receiver: a thread gets a request when all of it is there.

gunicorn's own threads read from the connection and wait for its end, so that a handful of clients
that send slowly, or stay after their answer, stop the whole server for as long as they like
(measured on 27.0.1: five on `gthread` with four threads). Here the main loop, which waits for
nobody, does both. Threads parse and answer what is complete, with gunicorn's parser. What a slow
client can hold is a place among `worker_connections`, for `READ_DEADLINE` at most; and when
places or memory run short, those that have been sending longest go first, since a good request
is there within milliseconds.

It speaks plain HTTP/1: TLS ends in front of it.
"""

from __future__ import annotations

import functools
import socket
import struct
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from selectors import EVENT_READ
from typing import Any

from gunicorn.http import RequestParser, wsgi
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
)
from gunicorn.http.message import Request
from gunicorn.workers.gthread import ThreadWorker

from service import logs
from service.framing import Answer, Incoming

READ_DEADLINE = 6.0
"""Seconds in which a request must arrive whole. Stripe's are one or two packets."""

LINGER = 2.0
"""Seconds a connection is kept after its last answer, for the client to close it first: closing
with bytes unread makes TCP throw the answer away (RFC 9112, 9.6)."""

SEND_TIMEOUT = 5
"""Seconds a thread waits for a client to take its answer. Answers fit into the socket's buffer, so
only one who asks again and again without reading comes that far."""

BATCH = 16
"""Requests that a thread answers together, at most: by then a round trip to Redis costs each next
to nothing, and the first waits for a millisecond or two."""

MAX_HELD = 16 << 20
"""Bytes of unfinished requests a process keeps, at most."""

_REFUSALS: dict[type[Exception], str] = {
    LimitRequestLine: "414 URI Too Long",
    LimitRequestHeaders: "431 Request Header Fields Too Large",
    ExpectationFailed: "417 Expectation Failed",
}
log = logs.get(__name__)


class Connection:
    """A client's connection. While `serving` a thread owns it, otherwise the main loop."""

    def __init__(self, sock: socket.socket, client: Any, server: Any) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.incoming = Incoming()
        self.deadline = time.monotonic() + READ_DEADLINE
        self.serving = False
        self.parked = False  # out of the poller, since bytes came while it was served
        self.lingering = False  # the last answer is sent

    def is_free(self) -> bool:
        """Whether no thread has it."""
        return not self.serving


class WholeRequests(ThreadWorker):
    """gunicorn's threaded worker, reading in the main loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # As plain attributes: gunicorn looks one up twenty times a request.
        vars(self.cfg).update((name, each.get()) for name, each in self.cfg.settings.items())
        self.tpool: Any
        self._connections: set[Connection] = set()
        self._held = 0  # bytes of unfinished requests
        self._next_look = 0.0

    def get_thread_pool(self) -> Any:
        """Return what `submit`s to threads; gunicorn asks after its fork."""
        return _Threads(self.cfg.threads)

    # --- the main loop, which never waits for a client ---------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection in; its bytes are read when they are there."""
        try:
            sock, client = listener.accept()
        except OSError:  # taken by another process, or gone already
            return
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT, 0))
        conn = Connection(sock, client, listener.getsockname())
        self._connections.add(conn)
        self.nr_conns += 1
        if self.nr_conns >= self.worker_connections:
            self._make_room()
        self.poller.register(sock, EVENT_READ, functools.partial(self._read, conn))

    def _read(self, conn: Connection, _: object = None) -> None:
        if conn.serving:
            # Ahead of its answer: looked at again when that is sent.
            conn.parked = True
            self.poller.unregister(conn.sock)
            if conn.is_free():  # sent meanwhile, without a look at `parked`
                self._unpark(conn)
            return
        try:
            data = conn.sock.recv(16_384, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._drop(conn)
            return
        if conn.lingering:
            if not data:
                self._drop(conn)
            return
        if not conn.incoming.buffer:
            conn.deadline = time.monotonic() + READ_DEADLINE
        conn.incoming.buffer += data
        self._held += len(data)
        if not self._hand_over(conn, ended=not data) and not data:
            self._drop(conn)
        if self._held > MAX_HELD:
            self._make_room()

    def _hand_over(self, conn: Connection, *, ended: bool = False) -> bool:
        """Give the next request to a thread, if it is there."""
        request = conn.incoming.take(ended=ended)
        if request is None:
            if conn.incoming.wants_continue:
                conn.incoming.wants_continue = False
                with suppress(OSError):
                    conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n", socket.MSG_DONTWAIT)
            return False
        self._held -= len(request[0])
        conn.serving = True
        self.tpool.submit(self._serve(conn, *request))
        return True

    def _end(self, conn: Connection, keep: bool) -> None:
        """Take back a connection that was served: for the next request, or to be closed."""
        conn.serving = False
        self._unpark(conn)
        if keep:
            self._hand_over(conn)
        else:
            conn.lingering = True
            conn.deadline = time.monotonic() + LINGER

    def _unpark(self, conn: Connection) -> None:
        if conn.parked:
            conn.parked = False
            self.poller.register(conn.sock, EVENT_READ, functools.partial(self._read, conn))

    def _make_room(self) -> None:
        """Drop the tenth part of the waiting connections that has been at it longest."""
        waiting = sorted(
            (conn for conn in self._connections if not conn.serving),
            key=lambda conn: conn.deadline,
        )
        for conn in waiting[: len(waiting) // 10 + 1]:
            self._drop(conn)

    def _drop(self, conn: Connection) -> None:
        if not conn.parked:
            self.poller.unregister(conn.sock)
        conn.sock.close()
        self._connections.discard(conn)
        self._held -= len(conn.incoming.buffer)
        self.nr_conns -= 1

    # --- what gunicorn's loop calls once in a while -------------------------------------------

    def murder_pending(self) -> None:
        """Drop every connection whose deadline has passed."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 0.5
        for conn in [c for c in self._connections if c.deadline < now and not c.serving]:
            self._drop(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Drop all connections when the worker ends."""
        for conn in list(self._connections) if force else ():
            self._drop(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        for conn in self._connections:
            conn.deadline = min(conn.deadline, deadline)

    # --- threads -----------------------------------------------------------------------------

    def _serve(self, conn: Connection, raw: bytes, whole: bool) -> Iterator[None]:
        keep = False
        try:
            keep = yield from self._respond(conn, raw, whole)
        except NoMoreData:
            pass  # no request at all
        except ParseException as error:
            log.warning("request_refused", reason=type(error).__name__)
            self._refuse(conn, _REFUSALS.get(type(error), "400 Bad Request"))
        except OSError:
            log.warning("client_gone")
        except Exception:
            log.exception("request_failed")
            self._refuse(conn, "500 Internal Server Error")
        if keep and not conn.incoming.buffer:
            conn.deadline = time.monotonic() + self.cfg.keepalive
            conn.serving = False
            if conn.parked:
                self.method_queue.defer(self._unpark, conn)
        else:
            if not keep:
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_WR)
            self.method_queue.defer(self._end, conn, keep)

    def _respond(self, conn: Connection, raw: bytes, whole: bool) -> Generator[None, None, bool]:
        """Answer a request; whether the connection may be used for another one."""
        parser: Any = _Parser(self.cfg, [raw], conn.client)
        request = next(parser, None)
        if request is None:
            return False
        if not whole:
            request.force_close()
        answer: Any
        nowhere: Any = _Nowhere()
        answer, environ = wsgi.create(
            request, nowhere, conn.client, conn.server, self.cfg, response_class=Answer
        )
        environ["wsgi.multithread"] = True
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            log.info("worker_renewed", count=self.nr)
            self.alive = False
        parts = self.wsgi(environ, answer.start_response)
        yield
        try:
            answer.body += b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        keep = self.alive and not request.should_close() and parser.finish_body()
        conn.sock.sendall(answer.encode(keep=keep))
        return keep and not parser.unreader.take_buffered()

    def _refuse(self, conn: Connection, status: str) -> None:
        # Constant: gunicorn's own quotes the request.
        with suppress(OSError):
            conn.sock.sendall(
                f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n"
                "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n".encode()
            )


class _Threads:
    """Serves requests, in two steps each: the application is called, and its answer is sent.

    A thread takes all that waits, up to `BATCH`, and does the first step of each before the second
    of any. What the application asks of Redis for all of them can so go together.
    """

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[Iterator[None] | None] = SimpleQueue()
        self._count = count
        for _ in range(count):
            threading.Thread(target=self._run, name="request", daemon=True).start()

    def submit(self, serving: Iterator[None]) -> None:
        self._queue.put(serving)

    def shutdown(self, wait: bool = False) -> None:
        for _ in range(self._count):
            self._queue.put(None)

    def _run(self) -> None:
        while batch := self._take():
            for serving in batch:
                next(serving, None)
            for serving in batch:
                next(serving, None)

    def _take(self) -> list[Iterator[None]]:
        """Wait for a request, and take those that are there with it; none at the end."""
        batch: list[Iterator[None]] = []
        with suppress(Empty):
            while len(batch) < BATCH:
                serving = self._queue.get(block=not batch)
                if serving is None:
                    if batch:
                        self._queue.put(None)  # for this thread, when it comes again
                    break
                batch.append(serving)
        return batch


class _Request(Request):
    """gunicorn's request. No client may say that it speaks for another."""

    def _peer_is_trusted_proxy(self) -> bool:
        return False


class _Parser(RequestParser):
    mesg_class = _Request


class _Nowhere:
    """Where interim answers go: the main loop has sent `100 Continue`."""

    def send(self, data: bytes) -> int:
        """Say that it was sent."""
        return len(data)

    sendall = send

"""Connections: who listens, what comes in, and when a thread has to do with it."""

import contextlib
import errno
import functools
import json
import logging
import os
import re
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, cast

import httptools
from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn, ThreadWorker

from stripe_identity_sandbox.faults import MOST_WAITING
from stripe_identity_sandbox.wire import ApiError, new_request_id

log = logging.getLogger("stripe_identity_sandbox.connections")

#: What is answered when the sandbox fails; the traceback is in its log.
BUG = "The sandbox has a bug: see its log."
#: Answers that may wait at a time for their clients to read.
MOST_SLOW = 16
#: Threads are started when they are needed. These are more than may wait, so that others are
#: answered.
THREADS = MOST_WAITING + MOST_SLOW + 16
#: Connections at a time, and files that are left for all else that is open.
MOST_CONNECTIONS, SPARE_FILES = 1000, 100
#: Connections that wait to be accepted.
BACKLOG = 1024
#: Seconds after which a client that reads no more of its answer frees its thread.
SILENCE = 10
#: Seconds for which a connection that ends waits for what its client still sends.
LINGER = 2.0
#: Bytes that are read at a time.
PIECE = 65_536
#: In bytes. The longest that the API takes has less than a third of it.
MAX_BODY = 1_048_576
#: In bytes, with its head, and with the marks of its chunks.
MAX_REQUEST = 2 * MAX_BODY
UPGRADE = re.compile(rb"^upgrade:.*\r\n", re.IGNORECASE | re.MULTILINE)


class CannotListen(Exception):
    """Nothing can be served there; ``option`` of the command is the one to change."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        CannotListen: the host or the port cannot be had, with what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        why = f"{host!r} is no address and no name that this machine knows; try 127.0.0.1."
        raise CannotListen("--host", why) from error
    except OSError as error:
        taken = f"{port} is in use: end what listens there, or choose another one; 0 takes any."
        barred = f"{port} needs more rights than yours: choose one above 1023."
        known = {
            errno.EADDRINUSE: ("--port", taken),
            errno.EACCES: ("--port", barred),
            errno.EADDRNOTAVAIL: ("--host", f"{host!r} is no address of this machine."),
        }
        other = ("--host", f"{host!r} cannot be listened on: {error.strerror}.")
        raise CannotListen(*known.get(error.errno or 0, other)) from error
    # The sockets of accepted connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SILENCE, 0))
    return listener


class Application(BaseApplication):
    """What gunicorn's worker asks for: a configuration and a WSGI callable."""

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limited = files != resource.RLIM_INFINITY
        room = min(MOST_CONNECTIONS, files - SPARE_FILES) if limited else MOST_CONNECTIONS
        for name, value in {
            "threads": THREADS,
            "worker_connections": room,
            "keepalive": 75,
            # A long URL or header gets an answer of the application, not gunicorn's own page.
            "limit_request_line": 0,
            "limit_request_field_size": 65_536,
            "loglevel": "warning",
        }.items():
            self.cfg.set(name, value)


class Incoming:
    """The bytes of a connection's next request, until llhttp finds its end."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.whole = False
        #: Why no thread gets it.
        self.refusal: ApiError | None = None
        #: The client sends the body when it is told to.
        self.expects = False
        self._announced = self._came = 0
        self._parser = httptools.HttpRequestParser(self)

    def add(self, data: bytes) -> bool:
        """Take more of it; say whether that is enough to answer."""
        self.received += data
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self.refusal = ApiError(400, f"This is no HTTP request: {error}.")
        if max(self._announced, self._came) > MAX_BODY or len(self.received) > MAX_REQUEST:
            self.refusal = ApiError(413, f"The body is longer than {MAX_BODY} bytes.")
        return self.whole or self.refusal is not None

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # What follows would be another protocol for llhttp; none is spoken here.
            plain, found = UPGRADE.subn(b"", bytes(self.received), count=1)
            if found:
                self.received, self.whole, self._came = bytearray(plain), False, 0
                self._parser = httptools.HttpRequestParser(self)
                self._feed(plain)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Look at what is said of the body; llhttp checks that its length is a number."""
        match name.lower():
            case b"content-length":
                self._announced = int(value)
            case b"expect":
                self.expects = value.lower() == b"100-continue"

    def on_body(self, data: bytes) -> None:
        """Count what came of the body."""
        self._came += len(data)

    def on_message_complete(self) -> None:
        """Take the parser's word that the request ends here."""
        self.whole = True


class _Answering:
    """The socket of a connection while a thread answers on it.

    What the system takes at once is sent. ``places`` bounds the threads that wait for clients to
    read the rest; a client that finds none free is dropped.
    """

    def __init__(self, connected: socket.socket, places: threading.Semaphore) -> None:
        self._connected = connected
        self._places = places

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)

    def sendall(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            BrokenPipeError: the client does not read.
        """
        rest = memoryview(data)
        with contextlib.suppress(BlockingIOError):
            rest = rest[self._connected.send(rest, socket.MSG_DONTWAIT) :]
        if not rest:
            return
        if not self._places.acquire(blocking=False):
            raise BrokenPipeError(errno.EPIPE, "too many do not read")
        try:
            self._connected.sendall(rest)
        except BlockingIOError as error:
            raise BrokenPipeError(errno.EPIPE, "it does not read") from error
        finally:
            self._places.release()


def _answer(error: ApiError) -> bytes:
    """Return an answer that comes from no application, and ends the connection."""
    body = json.dumps(error.envelope(new_request_id()), indent=2).encode()
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _send(client: socket.socket, few: bytes) -> None:
    # They find room, or a client that does not read.
    with contextlib.suppress(OSError):
        client.send(few)


class Worker(ThreadWorker):
    """gunicorn's threaded worker without a master: a second process would have a second state.

    A thread gets a request when all of it is here, and is free when its answer is sent. Before and
    after, the one thread that accepts connections looks after them: clients that are silent hold no
    other. When there are too many, the one that has waited longest ends.
    """

    #: Called before the process ends.
    stop: Callable[[], None]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asking: dict[TConn, Incoming] = {}
        #: Connections whose last answer is sent: what the client still sends is thrown away for a
        #: while, because closing at once would take the answer from it.
        self._ending: dict[TConn, None] = {}
        self._places = threading.BoundedSemaphore(MOST_SLOW)

    def handle(self, conn: TConn) -> Any:
        """Answer a request; returns whether the connection is kept."""
        connected = conn.sock
        conn.sock = cast("socket.socket", _Answering(connected, self._places))
        try:
            return super().handle(conn)
        finally:
            conn.sock = connected

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer a request that gunicorn cannot read, or a bug, in Stripe's envelope."""
        if isinstance(exc, LimitRequestHeaders):
            error = ApiError(431, f"The headers are too many or too long: {exc}.")
        elif isinstance(exc, ParseException):
            error = ApiError(400, f"This is no HTTP request: {exc}.")
        else:
            log.error("answering a request", exc_info=exc)
            error = ApiError(500, BUG, kind="api_error")
        _send(client, _answer(error))

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, without a thread."""
        with contextlib.suppress(OSError):  # it is gone again, or no file is left
            client, address = listener.accept()
            self.nr_conns += 1
            self._ask(TConn(self.cfg, client, address, listener.getsockname()))
            while self.nr_conns >= self.worker_connections and (self._ending or self._asking):
                self._drop(next(iter(self._ending or self._asking)))

    def finish_request(self, conn: TConn, done: Future[bool]) -> None:
        """Look after a connection whose request was answered."""
        if done.result() and isinstance(conn.parser, RequestParser):
            self._ask(conn, conn.parser.unreader.take_buffered())
        else:
            self._end(conn)

    def _ask(self, conn: TConn, received: bytes = b"") -> None:
        """Wait for the next request; a part of it may be here."""
        self._asking[conn] = Incoming()
        self._watch(conn, self.cfg.keepalive)
        if received:
            self._take(conn, received)

    def _end(self, conn: TConn) -> None:
        """Wait for the client to end, too."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)
        else:
            self._ending[conn] = None
            self._watch(conn, LINGER)

    def _watch(self, conn: TConn, seconds: float) -> None:
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + seconds
        self.poller.register(
            conn.sock, selectors.EVENT_READ, functools.partial(self._receive, conn)
        )

    def _receive(self, conn: TConn, client: socket.socket) -> None:
        try:
            data = client.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(conn)
        elif conn in self._asking:
            self._take(conn, data)

    def _take(self, conn: TConn, data: bytes) -> None:
        incoming = self._asking[conn]
        if not incoming.add(data):
            if incoming.expects:
                incoming.expects = False
                _send(conn.sock, b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        del self._asking[conn]
        self.poller.unregister(conn.sock)
        if incoming.refusal and not incoming.whole:
            self._refuse(conn, incoming.refusal)
            return
        # gunicorn reads what is here, and nothing else: no thread waits for a client.
        conn.parser = RequestParser(self.cfg, [bytes(incoming.received)], conn.client)
        conn.initialized = conn.data_ready = True
        self.enqueue_req(conn)

    def _refuse(self, conn: TConn, error: ApiError) -> None:
        _send(conn.sock, _answer(error))
        self._end(conn)

    def _drop(self, conn: TConn) -> None:
        self._asking.pop(conn, None)
        self._ending.pop(conn, None)
        with contextlib.suppress(KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """End the connections that were silent for too long."""
        now = time.monotonic()
        for waiting in (self._asking, self._ending):
            while waiting and ((conn := next(iter(waiting))).timeout or 0) <= now:
                self._drop(conn)

    def handle_exit(self, sig: int, frame: object) -> None:
        """Have the loop end the process: here it may be that a lock of this thread is held."""
        self.method_queue.defer(self._end_process)

    handle_quit = handle_exit

    def is_parent_alive(self) -> bool:
        """Return True: there is no master."""
        return True

    def _end_process(self) -> None:
        # Every step is stored when it is made, so there is nothing to finish or to lose.
        self.stop()
        os._exit(0)

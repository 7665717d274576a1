"""One client's connection in the event loop: deadlines, backpressure, and the end of it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

from service import logs
from service.limits import (
    ANSWER_DEADLINE,
    KEEP_ALIVE,
    LINGER,
    MAX_HELD,
    READ_DEADLINE,
    SEND_DEADLINE,
)
from service.server.http import Exchange, HttpConnection, Refusal, Response

if TYPE_CHECKING:
    from asyncio import Transport

log = logs.get(__name__)


class Server(Protocol):
    """What a connection needs of the server."""

    clients: set[Client]
    held: int
    """Bytes of requests that are unfinished or wait for a response, of all connections."""

    def dispatch(self, client: Client, exchange: Exchange) -> None:
        """See to it that the exchange gets its response."""

    def refused(self, refusal: Refusal) -> None:
        """Log and count a request that is refused."""

    def relieve(self) -> None:
        """Drop clients while requests exceed their memory limit."""


class Client(asyncio.Protocol):
    """A connection. It has a deadline at any time; the server ends those that are past it.

    Its requests are handled one after the other, at most one per turn of the loop, so that a client
    that sends many does not delay the others. An error of a client ends only its connection.
    """

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop
        self._http = HttpConnection(_now)
        self._transport: Transport
        self.held = 0
        """Bytes of its requests that are unfinished or wait for a response."""
        self._write_paused = False
        self._lingering = False
        self._eof = False
        self._queue: deque[Exchange] = deque()
        self._in_hand: Exchange | None = None
        self.since = loop.time()
        """When it connected, began the request that is being read, or was last answered."""
        self.deadline = self.since + READ_DEADLINE
        self.delivers = False
        """Whether a delivery of it is under way: such a client is not dropped."""
        self.address = ""
        self.server_address = ("", 0)

    # --- what asyncio calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment]  # of a stream
        self._transport.set_write_buffer_limits(high=65_536)
        self.address = _host(transport.get_extra_info("peername"))[0]
        self.server_address = _host(transport.get_extra_info("sockname"))
        self._server.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """Read, and have the server see to what is whole."""
        if self._lingering:
            return
        with self._guarded():
            was_reading = self._http.reads_request
            exchanges, refusal = self._http.receive(data)
            self._queue += exchanges
            if refusal:
                self._server.refused(refusal)
            if self._http.reads_request and not was_reading and not self._http.waiting:
                self._wait_for_client()
            self._advance()
            self._update()

    def eof_received(self) -> bool:
        """Read no more; what was asked for is still answered."""
        self._eof = True
        with self._guarded():
            if not self._lingering and (refusal := self._http.receive_eof()):
                self._server.refused(refusal)
            self._update()
        return not self._lingering

    def connection_lost(self, _: Exception | None) -> None:
        """End."""
        self._http.close()
        self._queue.clear()
        self._count(0)
        self._server.clients.discard(self)

    def pause_writing(self) -> None:
        """Pause writing for a client that does not read, up to a deadline."""
        self._write_paused = True
        self._begin_waiting(SEND_DEADLINE)

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        self._wait_for_client()
        with self._guarded():
            self._advance()
            self._update()

    # --- what the server calls ----------------------------------------------------------------

    def respond(self, exchange: Exchange, response: Response) -> None:
        """Send a response."""
        self.delivers, self._in_hand = False, None
        if self._transport.is_closing():
            return
        with self._guarded():
            self._http.respond(exchange, response)
            if not self._write_paused:
                self._wait_for_client()
            self._update()
        if self._queue:
            self._loop.call_soon(self._advance)

    def retire(self) -> None:
        """Let the next response be the last of this connection."""
        self._http.retiring = True

    def drop(self) -> None:
        """End the connection at once. May be called twice."""
        self._server.clients.discard(self)
        self._http.close()
        self._queue.clear()
        self._count(0)
        self._transport.abort()

    def close(self) -> None:
        """End the connection when what waits is answered and sent."""
        with self._guarded():
            self._http.close()
            self._update()

    def close_if_quiet(self, seconds: float) -> None:
        """End the connection if nothing is under way and nothing came for some seconds."""
        quiet = not self._http.waiting and not self._http.reads_request
        if quiet and self._loop.time() > self.since + seconds:
            self.close()

    def expire(self) -> None:
        """End the connection at its deadline: say so to one that has begun a request."""
        if self._in_hand:
            log.error("request_not_answered", seconds=ANSWER_DEADLINE)
        if self._lingering or self._write_paused or self._http.waiting:
            self.drop()
        elif self._http.reads_request:
            self._server.refused(self._http.refuse(Refusal(408, "request_too_slow")))
            self.close()
        else:
            self.close()

    # --- inside -------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            log.exception("client_failed")
            self.drop()

    def _advance(self) -> None:
        """Have the server see to the next request, if the one before is answered and read."""
        if self._queue and self._in_hand is None and not self._write_paused:
            self._in_hand = self._queue.popleft()
            self._begin_waiting(ANSWER_DEADLINE)
            self._server.dispatch(self, self._in_hand)

    def _update(self) -> None:
        """Send what is there, and read on, wait, or end."""
        if self._transport.is_closing():
            return
        if output := self._http.take_output():
            self._transport.write(output)
        self._count(self._http.held)
        if self._http.finished:
            self._linger()
        elif self._queue or self._write_paused:
            self._transport.pause_reading()  # it has enough to be answered
        else:
            self._transport.resume_reading()

    def _wait_for_client(self) -> None:
        """Wait for the rest of a request, for the next one, or for the client's end."""
        if self._lingering:
            self._begin_waiting(LINGER)
        else:
            self._begin_waiting(READ_DEADLINE if self._http.reads_request else KEEP_ALIVE)

    def _begin_waiting(self, seconds: float) -> None:
        self.since = self._loop.time()
        self.deadline = self.since + seconds

    def _linger(self) -> None:
        """Send the end, and wait for the client's; what it still sends is thrown away."""
        if self._lingering:
            return
        self._lingering = True
        self._begin_waiting(SEND_DEADLINE if self._write_paused else LINGER)
        if self._eof:
            self._transport.close()
            return
        self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:  # it has reset the connection
            self.drop()

    def _count(self, held: int) -> None:
        more, self.held = held - self.held, held
        self._server.held += more
        if more > 0 and self._server.held > MAX_HELD:
            self._server.relieve()


def _now() -> str:
    return _http_date(int(time.time()))


@functools.lru_cache(1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _host(name: object) -> tuple[str, int]:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("unix", 0)

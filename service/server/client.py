"""One client's connection in the event loop: deadlines, backpressure, and the end of it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

from service.limits import KEEP_ALIVE, LINGER, MAX_PARTIAL, READ_DEADLINE, SEND_DEADLINE
from service.server.http import Exchange, HttpConnection, Refusal, Response

if TYPE_CHECKING:
    from asyncio import Transport


class Server(Protocol):
    """What a connection needs of the server."""

    clients: set[Client]
    partial: int
    """Bytes of unfinished requests, of all connections."""

    def dispatch(self, client: Client, exchange: Exchange) -> None:
        """See to it that the exchange gets its response."""

    def start_page(self, client: Client, exchange: Exchange) -> None:
        """The same, for a request that waited for earlier ones of its connection."""

    def refused(self, refusal: Refusal) -> None:
        """Log and count a request that is refused."""

    def relieve(self) -> None:
        """Drop clients while unfinished requests take more memory than they may."""


class Client(asyncio.Protocol):
    """A connection. It has a deadline at any time; the server ends those that are past it."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop
        self._http = HttpConnection(_now)
        self._transport: Transport
        self._counted = 0  # our part of `server.partial`
        self._write_paused = False
        self._lingering = False
        self._eof = False
        self._pages: deque[Exchange] = deque()
        self._page_runs = False
        self._heard = loop.time()  # when bytes came last
        self.deadline = self._heard + READ_DEADLINE
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
        self._heard = self._loop.time()
        began = self._http.partial == 0
        exchanges, refusal = self._http.receive(data)
        for exchange in exchanges:
            self._server.dispatch(self, exchange)
        if refusal:
            self._server.refused(refusal)
        self._update(began=began or bool(exchanges))

    def eof_received(self) -> bool:
        """Read no more; what was asked for is still answered."""
        self._eof = True
        if not self._lingering and (refusal := self._http.receive_eof()):
            self._server.refused(refusal)
        self._update()
        return not self._lingering  # what is asked for is still answered

    def connection_lost(self, _: Exception | None) -> None:
        """End."""
        self._http.close()
        self._pages.clear()
        self._count(0)
        self._server.clients.discard(self)

    def pause_writing(self) -> None:
        """Wait for a client that does not read, for a while."""
        self._write_paused = True
        self.deadline = self._loop.time() + SEND_DEADLINE

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        self._update()

    # --- what the server calls ----------------------------------------------------------------

    def respond(self, exchange: Exchange, response: Response) -> None:
        """Send a response, when the earlier ones of this connection are sent."""
        if self._transport.is_closing():
            return
        self._http.respond(exchange, response)
        self._update()

    def add_page(self, exchange: Exchange) -> None:
        """Have the server see to a request when the earlier pages of this client are sent."""
        self._pages.append(exchange)
        self._next_page()

    def page_done(self, exchange: Exchange, response: Response) -> None:
        """Send the response to a page."""
        self._page_runs = False
        self.respond(exchange, response)

    def retire(self) -> None:
        """Let the next response be the last of this connection."""
        self._http.retiring = True

    @property
    def idle(self) -> bool:
        """Whether no whole request waits for its response: it may be dropped for want of room."""
        return not self._http.waiting

    def drop(self) -> None:
        """End the connection at once. May be called twice."""
        self._count(0)
        self._transport.abort()

    def close(self) -> None:
        """End the connection when what waits is answered and sent."""
        self._http.close()
        self._update()

    def close_if_quiet(self, seconds: float) -> None:
        """End the connection if nothing is under way and nothing came for some seconds."""
        quiet = self.idle and not self._http.partial
        if quiet and self._loop.time() > self._heard + seconds:
            self.close()

    def expire(self) -> None:
        """End the connection at its deadline: say so to one that has begun a request."""
        if self._lingering or self._write_paused:
            self.drop()
        elif self._http.partial:
            self._server.refused(self._http.refuse(Refusal(408, "request_too_slow")))
            self._update()
        else:
            self.close()

    # --- inside -------------------------------------------------------------------------------

    def _update(self, *, began: bool = False) -> None:
        """Send what is there, and see what this connection waits for now."""
        if self._transport.is_closing():
            return
        if output := self._http.take_output():
            self._transport.write(output)
        self._count(self._http.partial)
        if self._http.finished:
            self._linger()
            return
        self._next_page()
        if self._write_paused:
            return
        if self._http.partial:
            if began:
                self.deadline = self._loop.time() + READ_DEADLINE
        elif output or began:
            self.deadline = self._loop.time() + KEEP_ALIVE
        self._pace()

    def _pace(self) -> None:
        """Read no more from a client that has enough to be answered."""
        if self._http.waiting > 1 and (self._pages or self._write_paused):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _next_page(self) -> None:
        """Start the next page, one at a time, and none for a client that does not read."""
        if self._pages and not self._page_runs and not self._write_paused:
            self._page_runs = True
            self._server.start_page(self, self._pages.popleft())

    def _linger(self) -> None:
        """Send the end, and wait for the client's; what it still sends is thrown away."""
        if self._lingering:
            return
        self._lingering = True
        self.deadline = self._loop.time() + (SEND_DEADLINE if self._write_paused else LINGER)
        self._transport.resume_reading()
        if self._eof:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def _count(self, partial: int) -> None:
        more, self._counted = partial - self._counted, partial
        self._server.partial += more
        if more > 0 and self._server.partial > MAX_PARTIAL:
            self._server.relieve()


def _now() -> str:
    return _http_date(int(time.time()))


@functools.lru_cache(1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _host(name: object) -> tuple[str, int]:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("unix", 0)

"""One client's connection: bytes in, requests out; responses in, bytes out. No I/O, no clock.

llhttp (Node's parser, by way of httptools) is the only reader: it alone decides where a request
ends and what its headers and body are. What it refuses, and what is allowed by HTTP but ambiguous
or of no use here, gets one refusal, and nothing after it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import httptools

from service.limits import (
    MAX_BODY,
    MAX_CHUNKS,
    MAX_HEAD,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_REQUEST,
)

PIECE = 16_384
"""Bytes that the parser is given at a time."""


@dataclass(slots=True)
class Request:
    """A whole request.

    Attributes:
        method: such as `POST`.
        target: the request target as it was sent; ASCII.
        path: the path in it, not decoded; `*` for OPTIONS of the whole server.
        version: `1.0` or `1.1`.
        headers: names and values as they were sent, trailers left out.
        body: the content, without its transfer coding.
        keep_alive: whether the client may send another request on this connection.
    """

    method: str
    target: str
    path: str
    version: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool

    def header(self, name: bytes) -> str:
        """Return the values of a header (`name` in lower case), joined as WSGI does."""
        values = [value for key, value in self.headers if key.lower() == name]
        return b",".join(values).strip().decode("latin-1")


@dataclass(slots=True)
class Response:
    """What a request is answered. The framing headers are added by `encode`."""

    status: int
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()


class Refusal(Exception):
    """A request that is not read any further: the status it gets, and why, in one word."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(eq=False, slots=True)
class Exchange:
    """A request and, once it is known, its response as it is sent."""

    request: Request
    size: int = 0  # bytes kept of the request
    response: bytes | None = None
    last: bool = False  # the connection ends after this response


@dataclass(slots=True)
class _Partial:
    """What is known of the request that is being read."""

    target: bytearray = field(default_factory=bytearray)
    path: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head_size: int = 0
    body: bytearray = field(default_factory=bytearray)
    chunks: int = 0
    head_is_whole: bool = False


class HttpConnection:
    """See the module. `closing` once set stays: no byte is read any more."""

    def __init__(self, date: Callable[[], str]) -> None:
        """`date` returns the time as HTTP writes it, for the header of that name."""
        self._date = date
        self._parser = httptools.HttpRequestParser(self)
        self._partial: _Partial | None = None
        self._piece = 0  # bytes of the piece that is being read
        self._read = 0  # bytes since the piece in which the unfinished request begins
        self._unanswered = 0  # bytes kept of the whole requests that wait for a response
        self._complete: list[Exchange] = []  # by the bytes that are being read
        self._refused: Refusal | None = None
        self._exchanges: deque[Exchange] = deque()
        self._output = bytearray()
        self.closing = False
        self.retiring = False
        """Set to answer every further request with `Connection: close`."""

    @property
    def reads_request(self) -> bool:
        """Whether a request has begun and is not whole."""
        return self._partial is not None and not self.closing

    @property
    def held(self) -> int:
        """Bytes kept, of the unfinished request and of those that wait for a response."""
        return self._unanswered + (self._read if self.reads_request else 0)

    @property
    def waiting(self) -> int:
        """Requests that wait for a response."""
        return len(self._exchanges)

    @property
    def finished(self) -> bool:
        """Whether the connection has nothing more to send than the output that is left."""
        return self.closing and not self._exchanges

    def receive(self, data: bytes) -> tuple[list[Exchange], Refusal | None]:
        """Read bytes; return the requests that are whole with them, and the refusal if one ends it.

        A refusal is answered by this method, after the responses to earlier requests.
        """
        if self.closing:
            return [], None
        self._complete = []
        refusal = None
        # llhttp does not tell where in the bytes a request begins. In small pieces it is known
        # well enough what an unfinished one takes.
        for start in range(0, len(data), PIECE):
            refusal = self._parse(data[start : start + PIECE]) or self._too_long()
            if refusal:
                self.refuse(refusal)
                break
            if self._complete and not self._complete[-1].request.keep_alive:
                break
        return self._complete, refusal

    def receive_eof(self) -> Refusal | None:
        """Note that the client sends no more; a request that is cut off is refused."""
        if self.reads_request:
            return self.refuse(Refusal(400, "request_incomplete"))
        self.closing = True
        return None

    def refuse(self, refusal: Refusal) -> Refusal:
        """Read no more, and answer the request that is being read with the refusal."""
        self.closing = True
        self._partial = None
        exchange = Exchange(Request("", "", "", "1.1", [], b"", keep_alive=False))
        self._exchanges.append(exchange)
        headers = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
        self.respond(exchange, Response(refusal.status, headers=headers))
        return refusal

    def close(self) -> None:
        """Read no more; what waits is still answered. May be called twice."""
        self.closing = True
        self._partial = None

    def respond(self, exchange: Exchange, response: Response) -> None:
        """Give the response to a request. It is sent when all earlier ones are."""
        request = exchange.request
        keep = request.keep_alive and not self.retiring
        exchange.response = encode(
            response, date=self._date(), keep=keep, head_only=request.method == "HEAD"
        )
        exchange.last = not keep
        while self._exchanges and (ready := self._exchanges[0]).response is not None:
            self._output += ready.response
            self._unanswered -= ready.size
            self._exchanges.popleft()
            if ready.last:
                self.closing = True
                self._unanswered = 0
                self._exchanges.clear()

    def take_output(self) -> bytes:
        """Return what is to be sent now."""
        output, self._output = bytes(self._output), bytearray()
        return output

    def _parse(self, piece: bytes) -> Refusal | None:
        self._piece = len(piece)
        self._read += self._piece
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self.closing = True  # what follows is another protocol, which is not spoken here
        except httptools.HttpParserCallbackError:
            return self._refused or Refusal(400, "malformed_request")
        except httptools.HttpParserError:
            # What follows the client's last request is ignored.
            return None if self.closing else Refusal(400, "malformed_request")
        return None

    def _too_long(self) -> Refusal | None:
        """Refuse a request that is not whole and takes too much."""
        if self._partial and not self._partial.head_is_whole and self._read > 2 * MAX_HEAD:
            return Refusal(431, "head_too_large")
        return Refusal(413, "request_too_large") if self._read > MAX_REQUEST else None

    # --- what the parser calls; what is raised in there ends `feed_data` -----------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self.closing:
            self._stop(Refusal(400, "data_after_close"))
        self._partial = _Partial()
        self._read = self._piece

    def on_url(self, part: bytes) -> None:
        """Take a part of the target."""
        partial = self._current()
        partial.target += part
        self._count_head(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        partial = self._current()
        self._count_head(len(name) + len(value))
        if partial.head_is_whole:
            return  # a trailer: read to its end, and not used
        partial.headers.append((name, value.rstrip(b" \t")))
        if len(partial.headers) > MAX_HEADERS:
            self._stop(Refusal(431, "too_many_headers"))

    def on_headers_complete(self) -> None:
        """Judge the head: what is ambiguous or of no use here is refused."""
        partial = self._current()
        partial.head_is_whole = True
        version = self._parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            self._stop(Refusal(505 if version >= "2" else 400, "http_version"))
        headers: dict[bytes, list[bytes]] = {}
        for name, value in partial.headers:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) > 1 or (version == "1.1" and not hosts):
            self._stop(Refusal(400, "host_missing_or_repeated"))
        coding = b",".join(headers.get(b"transfer-encoding", []))
        # llhttp has read it already: digits only. h11, like others, takes no more than 20 of them.
        length_digits = headers.get(b"content-length", [b"0"])[0]
        if len(length_digits) > _MAX_LENGTH_DIGITS:
            self._stop(Refusal(400, "malformed_request"))
        length = int(length_digits or b"0")
        if coding and coding.lower() != b"chunked":
            self._stop(Refusal(501, "unknown_transfer_coding"))
        if coding and version == "1.0":
            self._stop(Refusal(400, "chunks_in_http_1_0"))
        if length > MAX_BODY:
            self._stop(Refusal(413, "body_too_large"))
        method = self._parser.get_method()
        if method not in _METHODS:
            self._stop(Refusal(405, "unknown_method"))
        partial.path = _path_of(partial.target.decode())
        if not partial.path or (partial.path == "*" and method != b"OPTIONS"):
            self._stop(Refusal(400, "bad_target"))
        if self._parser.should_upgrade() and (coding or length):
            self._stop(Refusal(400, "upgrade_with_body"))
        expected = b",".join(headers.get(b"expect", [])).lower()
        if b"expect" in headers and expected != b"100-continue":
            self._stop(Refusal(417, "unknown_expectation"))
        if expected and version == "1.1" and not self._exchanges and (coding or length):
            self._output += b"HTTP/1.1 100 Continue\r\n\r\n"

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        partial = self._current()
        partial.body += part
        partial.chunks += 1
        if len(partial.body) > MAX_BODY:
            self._stop(Refusal(413, "body_too_large"))
        if partial.chunks > MAX_CHUNKS:
            self._stop(Refusal(400, "too_many_chunks"))

    def on_message_complete(self) -> None:
        """End the request."""
        partial = self._current()
        request = Request(
            method=self._parser.get_method().decode(),
            target=partial.target.decode(),
            path=partial.path,
            version=self._parser.get_http_version(),
            headers=partial.headers,
            body=bytes(partial.body),
            keep_alive=self._parser.should_keep_alive() and not self._parser.should_upgrade(),
        )
        exchange = Exchange(request, partial.head_size + len(partial.body))
        self._partial, self._read = None, 0
        if len(self._exchanges) >= MAX_PIPELINED:
            self._stop(Refusal(429, "too_many_pipelined"))
        self._unanswered += exchange.size
        self._exchanges.append(exchange)
        self._complete.append(exchange)
        if not request.keep_alive:
            self.closing = True

    def _current(self) -> _Partial:
        if self._partial is None:
            raise AssertionError("the parser calls on_message_begin first")
        return self._partial

    def _count_head(self, size: int) -> None:
        partial = self._current()
        partial.head_size += size
        if partial.head_size > MAX_HEAD:
            self._stop(Refusal(431, "head_too_large"))

    def _stop(self, refusal: Refusal) -> None:
        self._refused = refusal
        raise refusal


def _path_of(target: str) -> str:
    """Return the path of a target, empty when it has none."""
    if target.startswith("/"):
        return target.partition("?")[0]
    if target == "*":
        return target
    try:
        return urlsplit(target).path or "/"  # absolute form
    except ValueError:
        return ""


def encode(response: Response, *, date: str, keep: bool, head_only: bool = False) -> bytes:
    """Return the bytes of a response.

    `keep` tells the client that it may ask again, `head_only` leaves the body out, not its length.

    Raises:
        ValueError: a header that would end the head early.
    """
    status = response.status
    without_body = status < 200 or status in {204, 304}
    lines = [
        _STATUS_LINES.get(status) or f"HTTP/1.1 {status} ",
        f"Date: {date}",
        "Connection: keep-alive" if keep else "Connection: close",
        *[f"{name}: {value}" for name, value in response.headers if name.lower() not in _FRAMING],
    ]
    if not without_body:
        lines.append(f"Content-Length: {len(response.body)}")
    head = "\r\n".join(lines)
    if head.count("\r") + head.count("\n") != 2 * (len(lines) - 1):
        raise ValueError("a header with a line break in it")
    body = b"" if without_body or head_only else response.body
    return f"{head}\r\n\r\n".encode("latin-1") + body


_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"}
"""llhttp knows the methods of other protocols, too."""

_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}" for each in HTTPStatus}
_MAX_LENGTH_DIGITS = 20
_FRAMING = {"connection", "content-length", "date", "server", "transfer-encoding", "upgrade"}
"""Headers that only the server says."""

"""Makes streams of HTTP requests, right and wrong, and reads them with three parsers.

What our reader takes as a request, gunicorn's parser and h11 must take as the same request, ending
at the same byte: a proxy in front of us is likely to agree with one of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import h11
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request as GunicornRequest
from gunicorn.http.unreader import IterUnreader

from service.server.http import HttpConnection, Response


@dataclass(frozen=True)
class Taken:
    """A request as a parser took it. `end` is the offset of the first byte behind it."""

    method: str
    target: str
    headers: tuple[tuple[str, bytes], ...]
    body: bytes
    end: int


def ours(stream: bytes) -> list[Taken]:
    """Read a stream with our reader, byte by byte: so it is seen where each request ends."""
    connection = HttpConnection(lambda: "now")
    taken = []
    for offset in range(len(stream)):
        exchanges, _ = connection.receive(stream[offset : offset + 1])
        for exchange in exchanges:
            request = exchange.request
            headers = tuple((name.decode().lower(), value) for name, value in request.headers)
            found = Taken(request.method, request.target, headers, request.body, offset + 1)
            taken.append(found)
            connection.respond(exchange, Response(200))
        if connection.closing:
            break
    return taken


def by_gunicorn(stream: bytes, start: int) -> Taken | None:
    """Read the request at `start` with gunicorn's parser; None when it takes none."""
    config = Config()
    config.set("limit_request_field_size", 0)
    config.set("limit_request_line", 0)
    config.set("limit_request_fields", 1000)
    config.set("header_map", "dangerous")  # with underscores: left out later, by wsgi.environ
    unreader = IterUnreader(iter([stream[start:]]))
    try:
        request = GunicornRequest(config, unreader, ("127.0.0.1", 1), 1)
        body = request.body.read()
        while request.body.read(1024):  # what is left of the framing
            pass
    except (ParseException, StopIteration, ValueError, UnicodeDecodeError):
        return None
    left = unreader.buf.getvalue() + b"".join(iter(unreader.chunk, b""))
    headers = tuple((name.lower(), value.encode("latin-1")) for name, value in request.headers)
    return Taken(request.method, request.uri, headers, body, len(stream) - len(left))


def by_h11(stream: bytes, start: int) -> Taken | None:
    """Read the request at `start` with h11; None when it takes none."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(stream[start:])
    connection.receive_data(b"")
    body = b""
    request: h11.Request | None = None
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and request:
                headers = tuple((bytes(n).decode(), bytes(v)) for n, v in request.headers)
                left, _ = connection.trailing_data
                return Taken(
                    request.method.decode(),
                    request.target.decode("latin-1"),
                    headers,
                    body,
                    len(stream) - len(left),
                )
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def disagreement(stream: bytes) -> str | None:
    """Say how one of the other parsers takes a stream otherwise than ours; None if none does."""
    start = 0
    for taken in ours(stream):
        # Line breaks before a request are no part of it (RFC 9112, 2.2); gunicorn refuses some.
        while stream[start : start + 1] in (b"\r", b"\n"):
            start += 1
        piece = _single_spaces(stream, start)
        for name, read in (("gunicorn", by_gunicorn), ("h11", by_h11)):
            theirs = read(piece, start)
            if theirs is None:
                return f"{name} takes no request at {start}, we take {taken}"
            end = theirs.end + len(stream) - len(piece)
            if (theirs.method, theirs.target, theirs.body, end) != (
                taken.method,
                taken.target,
                taken.body,
                taken.end,
            ):
                return f"{name} takes {theirs}, we take {taken}"
            if sorted(theirs.headers) != sorted(taken.headers):
                return f"{name} reads {theirs.headers}, we read {taken.headers}"
        start = taken.end
    return None


def _single_spaces(stream: bytes, start: int) -> bytes:
    """Leave single spaces in the request line: llhttp takes several, which moves no boundary."""
    line, end, rest = stream[start:].partition(b"\r\n")
    return stream[:start] + b" ".join(filter(None, line.split(b" "))) + end + rest


METHODS = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"get", b"BREW", b"")
TARGETS = (
    *(b"/", b"/webhooks/stripe", b"/a?b=c&d", b"*", b"http://x/a", b"/%2e%2e/x", b"//a", b"a"),
    *(b"/\xc3\xa9", b"/a#b", b"/a b", b"http://x", b"/\x00", b"https://x:1/?q"),
)
VERSIONS = (b"HTTP/1.1",) * 9 + (
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"http/1.1",
    b"",
)
NAMES = (
    *(b"Accept", b"X-A", b"x_b", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host"),
    *(b"Transfer-Encoding-X", b"Content-Length-X", b"Expect", b"Upgrade", b"Trailer", b"", b"A b"),
    *(
        b"Content-Length ",
        b"Transfer-Encoding\t",
        b"\xe9",
        b"X\x00",
        b"Stripe-Signature",
        b"Cookie",
    ),
)
VALUES = (
    *(b"x", b"", b" x ", b"\tx\t", b"chunked", b"Chunked", b"gzip, chunked", b"chunked, gzip"),
    *(
        b"identity",
        b"chunked,chunked",
        b"xchunked",
        b"0",
        b"1",
        b"01",
        b"+1",
        b"-1",
        b"1, 1",
        b"0x1",
    ),
    *(b"1 1", b"5", b"99999999999999999999", b"close", b"keep-alive", b"upgrade", b"h2c", b"a\rb"),
    *(
        b"a\nb",
        b"a\x00b",
        b"a\x01b",
        b"\xff\xe9",
        b"a\r\n b",
        b"100-continue",
        b"\x0bchunked",
        b'"q"',
    ),
)
ENDS = (b"\r\n",) * 20 + (b"\n", b"\r", b"\r\n ", b"\n\r", b"\r\r\n", b" \r\n")


class Streams:
    """Streams made from a seed: mostly right, with a few faults in each."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.one()

    def one(self) -> bytes:
        """Return a stream of one to four requests, sometimes of a hundred, sometimes cut."""
        some = self._random
        count = 100 if some.random() < 0.002 else some.choice((1, 1, 1, 2, 3, 4))
        stream = b"".join(self._request() for _ in range(count))
        if some.random() < 0.1:
            stream = stream[: some.randrange(len(stream) + 1)]
        for _ in range(some.choice((0, 0, 0, 1, 2))):
            at = some.randrange(len(stream) + 1)
            piece = some.choice((b"", b"\r\n", b"\n", b" ", b"\x00", b"0", b"\xff", b":", b";"))
            stream = stream[:at] + piece + stream[at + some.randrange(3) :]
        return stream

    def _request(self) -> bytes:
        some = self._random
        odd = some.random() < 0.3
        method = self._pick(METHODS, odd, first=7)
        target = self._pick(TARGETS, odd, first=3)
        space = some.choice((b"  ", b"\t", b"")) if odd and some.random() < 0.1 else b" "
        version = some.choice(VERSIONS) if odd else b"HTTP/1.1"
        lines = [method + space + target + b" " + version, b"Host: x"]
        if odd and some.random() < 0.2:
            lines.pop()
        for _ in range(some.choice((0, 0, 1, 2, 5))):
            name = self._pick(NAMES, odd, first=2)
            lines.append(name + b":" + some.choice((b" ", b"", b"\t ")) + self._value(odd))
        framing, body = some.choice((self._length, self._chunks, self._nothing))(odd)
        lines += framing
        some.shuffle(rest := lines[1:])
        ends = ENDS if odd else (b"\r\n",)
        head = b"".join(line + some.choice(ends) for line in [lines[0], *rest])
        lead = some.choice((b"", b"", b"\r\n", b"\n")) if odd else b""
        return lead + head + (some.choice(ends) if odd else b"\r\n") + body

    def _value(self, odd: bool) -> bytes:
        return self._pick(VALUES, odd, first=4)

    def _pick(self, items: tuple[bytes, ...], odd: bool, first: int) -> bytes:
        some = self._random
        return some.choice(items if odd and some.random() < 0.4 else items[:first])

    def _nothing(self, _odd: bool) -> tuple[list[bytes], bytes]:
        return [], b""

    def _length(self, odd: bool) -> tuple[list[bytes], bytes]:
        some = self._random
        body = bytes(some.choices(b"ab{}\r\n0", k=some.randrange(40)))
        length = b"%d" % (len(body) + (some.choice((0, 1, -1)) if odd else 0))
        if odd:
            length = some.choice((length, length.zfill(20), b"+" + length, length + b" "))
        lines = [b"Content-Length: " + length]
        if odd and some.random() < 0.2:
            lines.append(
                some.choice((lines[0], b"Content-Length: 3", b"Transfer-Encoding: chunked"))
            )
        return lines, body

    def _chunks(self, odd: bool) -> tuple[list[bytes], bytes]:
        some = self._random
        parts = [bytes(some.choices(b"ab\r\n", k=some.randrange(1, 20))) for _ in range(3)]
        body = b""
        for part in parts:
            size = b"%x" % (len(part) + (some.choice((0, 0, 1, -1)) if odd else 0))
            if odd and some.random() < 0.3:
                size += some.choice((b";a", b";a=b", b" ", b';a="b"', b";", b"\t", b";a\rb", b"_"))
            ends = ENDS if odd else (b"\r\n",)
            body += size + some.choice(ends) + part + some.choice(ends)
        trailers = some.choice((b"", b"", b"X-T: 1\r\n", b"Content-Length: 5\r\n", b"Bad\r\n"))
        coding = self._value(odd=True) if odd else b"chunked"
        end = b"0\r\n" + (trailers if odd else b"") + b"\r\n"
        return [b"Transfer-Encoding: " + coding], body + end

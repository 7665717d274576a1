"""The CPU that the dearest requests of up to 512 kB cost the reader; none may grow as a square."""

from __future__ import annotations

import time
from statistics import median

from service.limits import MAX_CHUNKS, MAX_HEADERS
from service.server.http import HttpConnection, Response

POST = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REQUESTS = {
    "a body of 256 kB": POST + b"Content-Length: 262144\r\n\r\n" + b"x" * 262_144,
    "one-byte chunks": CHUNKED + b"1\r\nx\r\n" * 85_000,
    "as many chunks as are read": CHUNKED + b"3f\r\n" + (b"x" * 63 + b"\r\n3f\r\n") * MAX_CHUNKS,
    "a long extension": CHUNKED + b"1;" + b"x" * 510_000,
    "many trailers": CHUNKED + b"0\r\n" + b"a: b\r\n" * 85_000,
    "many headers": POST + b"a: b\r\n" * MAX_HEADERS * 800,
    "one long header": POST + b"a: " + b"b" * 510_000,
    "a long target": b"GET /" + b"x" * 510_000,
    "many small requests": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 18_000,
    "no request": b"\r\n" * 260_000,
}


def cost(stream: bytes) -> float:
    """Return the CPU of one reading, in pieces of 64 kB, in milliseconds."""
    connection = HttpConnection(lambda: "now")
    began = time.process_time()
    for start in range(0, len(stream), 65_536):
        exchanges, _ = connection.receive(stream[start : start + 65_536])
        for exchange in exchanges:
            connection.respond(exchange, Response(200))
    return (time.process_time() - began) * 1000


def test_the_dearest_requests() -> None:
    costs = {
        name: median(cost(stream[:524_288]) for _ in range(5)) for name, stream in REQUESTS.items()
    }
    for name, milliseconds in sorted(costs.items(), key=lambda item: -item[1]):
        print(f"{milliseconds:6.1f} ms of CPU  {name}")  # noqa: T201
    assert max(costs.values()) < 200, "generous: the goal is 20 ms"

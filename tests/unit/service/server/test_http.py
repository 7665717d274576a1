"""The connection without I/O: what is a request, what is refused, and the order of responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.limits import (
    MAX_BODY,
    MAX_CHUNKS,
    MAX_HEAD,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_REQUEST,
)
from service.server.http import PIECE, Exchange, HttpConnection, Refusal, Response, encode
from tests import streams

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"


def connection() -> HttpConnection:
    return HttpConnection(lambda: "now")


def read(stream: bytes) -> tuple[list[Exchange], Refusal | None]:
    return connection().receive(stream)


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + body + end


WHOLE = {
    "without a body": (GET, b""),
    "with a length": (POST + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "with a length of many digits": (
        POST + b"Content-Length: " + b"5".zfill(20) + b"\r\n\r\nhello",
        b"hello",
    ),
    "in chunks": (chunked(b"hel", b"lo"), b"hello"),
    "in chunks, in other letters": (
        POST + b"transfer-encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"x",
    ),
    "in chunks with an extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n",
        b"x",
    ),
    "with a trailer": (chunked(b"x", end=b"0\r\nX-T: 1\r\n\r\n"), b"x"),
    "with a header that begins like another": (
        POST + b"Transfer-Encoding-X: y\r\nContent-Length: 5\r\n\r\nhello",
        b"hello",
    ),
    "of HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", b""),
    "behind a blank line": (b"\r\n" + GET, b""),
    "in absolute form": (b"GET http://x/healthz?a HTTP/1.1\r\nHost: x\r\n\r\n", b""),
}


@pytest.mark.parametrize(("stream", "body"), WHOLE.values(), ids=WHOLE)
def test_a_request_is_taken_whole(stream: bytes, body: bytes) -> None:
    (exchange,), refusal = read(stream)
    assert refusal is None
    assert exchange.request.body == body
    assert read(stream[:-1])[0] == [], "and not before its last byte"


LAST = {
    "a client that asks for it": b"Connection: close\r\n",
    # What follows would be in the protocol that is offered.
    "one that offers an upgrade": b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "curl --http2": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n",
}


@pytest.mark.parametrize("lines", LAST.values(), ids=LAST)
def test_a_connection_that_reads_no_more_requests_says_so(lines: bytes) -> None:
    ends = connection()
    (exchange,), refusal = ends.receive(GET[:-2] + lines + b"\r\n" + GET)
    assert refusal is None
    ends.respond(exchange, Response(200))
    output = ends.take_output()
    assert output.count(b"HTTP/1.1 200") == output.count(b"Connection: close") == 1
    assert ends.finished


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "both framings": (
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "two lengths": (
        POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
        400,
        "malformed_request",
    ),
    "a list of lengths": (POST + b"Content-Length: 1, 1\r\n\r\na", 400, "malformed_request"),
    "a signed length": (POST + b"Content-Length: +1\r\n\r\na", 400, "malformed_request"),
    "a length of more than 20 digits": (
        POST + b"Content-Length: " + b"5".zfill(21) + b"\r\n\r\nhello",
        400,
        "malformed_request",
    ),
    "a length of very many digits": (
        POST + b"Content-Length: " + b"5".zfill(9000) + b"\r\n\r\nhello",
        400,
        "malformed_request",
    ),
    "an unknown coding": (
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        501,
        "unknown_transfer_coding",
    ),
    "two codings": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        501,
        "unknown_transfer_coding",
    ),
    "a coding twice": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "malformed_request",
    ),
    "chunks in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "chunks_in_http_1_0",
    ),
    "a space before the colon": (
        POST + b"Transfer-Encoding : chunked\r\n\r\n",
        400,
        "malformed_request",
    ),
    "a folded header": (POST + b"A: b\r\n c\r\n\r\n", 400, "malformed_request"),
    "a bare line feed": (b"GET / HTTP/1.1\nHost: x\n\n", 400, "malformed_request"),
    "a bare carriage return": (POST + b"A: b\rc\r\n\r\n", 400, "malformed_request"),
    "a NUL": (POST + b"A: \x00\r\n\r\n", 400, "malformed_request"),
    "chunks that are none": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        "malformed_request",
    ),
    "a chunk that goes on": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "host_missing_or_repeated"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "host_missing_or_repeated"),
    "two hosts in HTTP/1.0": (
        b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
        400,
        "host_missing_or_repeated",
    ),
    "another version": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http_version"),
    "a version before": (b"GET / HTTP/0.9\r\n\r\n", 400, "http_version"),
    "no method": (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
    "a tunnel": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "unknown_method"),
    "a target that is no URL": (b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_target"),
    "a method of another protocol": (b"SOURCE / ICE/1.0\r\n\r\n", 405, "unknown_method"),
    "all of it, but for OPTIONS": (b"POST * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_target"),
    "an upgrade with a body": (
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        400,
        "upgrade_with_body",
    ),
    "an upgrade with chunks": (
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "upgrade_with_body",
    ),
    "an empty expectation": (POST + b"Expect:\r\n\r\n", 417, "unknown_expectation"),
    "another expectation": (POST + b"Expect: more\r\n\r\n", 417, "unknown_expectation"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request"),
    "a long target": (b"GET /" + b"x" * (MAX_HEAD + 1) + b" HTTP/1.1\r\n", 431, "head_too_large"),
    "a long header": (POST + b"A: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431, "head_too_large"),
    "a long trailer": (
        chunked(b"x", end=b"0\r\nA: " + b"x" * MAX_HEAD + b"\r\n\r\n"),
        431,
        "head_too_large",
    ),
    "a header without end": (POST + b"A: " + b"x" * 2 * MAX_HEAD, 431, "head_too_large"),
    "many headers": (
        POST + b"".join(b"H%d: 1\r\n" % number for number in range(MAX_HEADERS)) + b"\r\n",
        431,
        "too_many_headers",
    ),
    "a long body": (POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413, "body_too_large"),
    "an endless length": (POST + b"Content-Length: 99999999999999\r\n\r\n", 413, "body_too_large"),
    "a long body in chunks": (chunked(*[b"x" * 65_536] * 5), 413, "body_too_large"),
    "many chunks": (chunked(*[b"x"] * (MAX_CHUNKS + 1)), 400, "too_many_chunks"),
    "a long extension of a chunk": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * MAX_REQUEST,
        413,
        "request_too_large",
    ),
    "many at once": (GET * (MAX_PIPELINED + 1), 429, "too_many_pipelined"),
}


@pytest.mark.parametrize(("stream", "status", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_ambiguous_or_too_much_is_refused_and_ends_it(
    stream: bytes, status: int, reason: str
) -> None:
    one = connection()
    exchanges, refusal = one.receive(stream)
    for exchange in exchanges:
        one.respond(exchange, Response(200))
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (status, reason)
    output = one.take_output()
    assert b"HTTP/1.1 %d " % status in output
    assert output.count(b"Connection: close") == 1
    for line in (b"Cache-Control: no-store", b"X-Content-Type-Options: nosniff"):
        assert output.rpartition(b"HTTP/1.1 ")[2].count(b"\r\n%b\r\n" % line) == 1
    assert one.finished
    assert one.receive(GET) == ([], None), "nothing after it is read"


AS_MUCH_AS_MAY_BE = {
    "headers": POST + b"".join(b"H%d: 1\r\n" % n for n in range(MAX_HEADERS - 1)) + b"\r\n",
    "bytes of a head": b"GET / HTTP/1.1\r\nHost: " + b"x" * (MAX_HEAD - 5) + b"\r\n\r\n",
    "bytes of a body": POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY + b"x" * MAX_BODY,
    "bytes of a body in chunks": chunked(*[b"x" * (MAX_BODY // 4)] * 4),
    "chunks": chunked(*[b"x"] * MAX_CHUNKS),
}


@pytest.mark.parametrize("stream", AS_MUCH_AS_MAY_BE.values(), ids=AS_MUCH_AS_MAY_BE)
def test_as_much_as_may_be_is_taken(stream: bytes) -> None:
    exchanges, refusal = read(stream)
    assert (len(exchanges), refusal) == (1, None)


def test_of_many_requests_at_once_no_more_are_read_than_may_wait() -> None:
    exchanges, refusal = read(GET * 8_000)
    assert refusal is not None
    assert len(exchanges) == MAX_PIPELINED


def test_a_request_in_the_rest_of_a_refused_one_is_none() -> None:
    smuggled = POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n" + GET
    exchanges, refusal = read(smuggled)
    assert exchanges == []
    assert refusal is not None


def test_a_trailer_is_no_header() -> None:
    (exchange,), _ = read(chunked(b"x", end=b"0\r\nStripe-Signature: t=1\r\n\r\n"))
    assert exchange.request.header(b"stripe-signature") == ""


def test_a_header_that_is_repeated_is_joined() -> None:
    (exchange,), _ = read(POST + b"STRIPE-Signature: a\r\nStripe-Signature:  b \r\n\r\n")
    assert exchange.request.header(b"stripe-signature") == "a,b"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/webhooks/stripe?x=/y", "/webhooks/stripe"),
        ("http://x/webhooks/stripe", "/webhooks/stripe"),
        ("http://x", "/"),
        ("http://x?y", "/"),
        ("//webhooks/stripe", "//webhooks/stripe"),
        ("*", "*"),
    ],
)
def test_the_path_of_a_target(target: str, path: str) -> None:
    (exchange,), _ = read(f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert exchange.request.path == path


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", True),
        (POST + b"expect: 100-Continue\r\nContent-Length: 1\r\n\r\n", True),
        (POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (POST + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", False),
        (GET[:-2] + b"Expect: 100-continue\r\n\r\n", False),
        (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", False),
        # It would be taken for the response to the first.
        (GET + POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", False),
    ],
    ids=repr,
)
def test_one_who_asks_before_sending_is_told_to_go_on(stream: bytes, told: bool) -> None:
    one = connection()
    _, refusal = one.receive(stream)
    assert refusal is None
    assert one.take_output() == (b"HTTP/1.1 100 Continue\r\n\r\n" if told else b"")


def test_a_request_that_is_cut_off_is_refused() -> None:
    one = connection()
    one.receive(POST + b"Content-Length: 5\r\n\r\nhel")
    refusal = one.receive_eof()
    assert refusal is not None
    assert refusal.reason == "request_incomplete"
    assert b"HTTP/1.1 400 " in one.take_output()


def test_an_end_between_requests_is_none_of_ours() -> None:
    one = connection()
    (exchange,), _ = one.receive(GET)
    assert one.receive_eof() is None
    assert not one.finished
    one.respond(exchange, Response(200))
    assert one.finished


@pytest.mark.parametrize("name", ["A: b\r\nSet-Cookie", "A\n"])
def test_a_response_header_with_a_line_break_is_not_sent(name: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        encode(Response(200, headers=[(name, "x")]), date="now", keep=True)


@pytest.mark.parametrize(
    ("status", "line", "body"),
    [
        (200, b"HTTP/1.1 200 OK", b"Content-Length: 5\r\n\r\nhello"),
        (404, b"HTTP/1.1 404 Not Found", b"Content-Length: 5\r\n\r\nhello"),
        (599, b"HTTP/1.1 599 ", b"Content-Length: 5\r\n\r\nhello"),
        (204, b"HTTP/1.1 204 No Content", b"\r\n"),
        (304, b"HTTP/1.1 304 Not Modified", b"\r\n"),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_how_a_message_is_framed_is_said_by_the_server_alone(status, line, body, keep) -> None:
    given = [
        *(("Connection", "upgrade"), ("content-length", "99"), ("Date", "then"), ("Server", "x")),
        *(("Transfer-Encoding", "chunked"), ("Upgrade", "h2c"), ("X-A", "1"), ("X-A", "2")),
    ]
    lines = [line, b"Date: now", b"Connection: " + (b"keep-alive" if keep else b"close")]
    head = b"\r\n".join([*lines, b"X-A: 1", b"X-A: 2", b""])
    assert encode(Response(status, b"hello", given), date="now", keep=keep) == head + body


def test_a_response_to_head_has_the_length_and_no_body() -> None:
    one = connection()
    (exchange,), _ = one.receive(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    one.respond(exchange, Response(200, b"hello"))
    output = one.take_output()
    assert output.endswith(b"Content-Length: 5\r\n\r\n")


@settings(max_examples=200)
@given(seed=st.integers(0, 1 << 32), cuts=st.lists(st.integers(1, 50)))
def test_it_does_not_matter_in_which_pieces_a_stream_comes(seed: int, cuts: list[int]) -> None:
    stream = streams.Streams(seed).one()
    assert _taken(_pieces(stream, cuts)) == _taken([stream])


def _pieces(stream: bytes, cuts: list[int]) -> Iterable[bytes]:
    start = 0
    for size in itertools.chain(cuts, itertools.repeat(len(stream) + 1)):
        if start >= len(stream):
            return
        yield stream[start : start + size]
        start += size


def _taken(pieces: Iterable[bytes]) -> tuple[list[tuple[str, str, bytes]], str | None]:
    """Return the requests of a stream; where many wait, how it is cut decides when that is seen."""
    one = connection()
    taken: list[tuple[str, str, bytes]] = []
    for piece in pieces:
        exchanges, refusal = one.receive(piece)
        for exchange in exchanges:
            request = exchange.request
            taken.append((request.method, request.target, request.body))
            one.respond(exchange, Response(200))
        if refusal:
            return taken, refusal.reason
    return taken, None


def test_other_parsers_take_the_same_requests() -> None:
    some = itertools.islice(streams.Streams(seed=1), 2_000)
    assert [found for stream in some if (found := streams.disagreement(stream))] == []


BEGUN = {
    "a line": b"GET /heal",
    "a header": POST + b"X-Long: " + b"x" * 20_000,
    "a body": POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 150_000,
    "a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n20000\r\n" + b"x" * 100_000,
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
@pytest.mark.parametrize("before", [b"", GET, GET * 3, chunked(b"x" * 30_000)])
def test_what_is_kept_of_a_request_that_has_begun_is_counted(before: bytes, begun: bytes) -> None:
    its = connection()
    exchanges, refusal = its.receive(before + begun)
    assert refusal is None
    assert its.reads_request
    for exchange in exchanges:
        its.respond(exchange, Response(200))
    assert len(begun) <= its.held <= len(begun) + PIECE


def test_blank_lines_between_requests_begin_none() -> None:
    its = connection()
    (exchange,), _ = its.receive(GET + b"\r\n")
    its.respond(exchange, Response(200))
    assert its.receive(b"\r\n") == ([], None)
    assert (its.reads_request, its.held) == (False, 0)


class Machine(RuleBasedStateMachine):
    """A client that sends what it likes, and a server that answers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = connection()
        self.sent = 0  # requests that were sent whole
        self.open: list[tuple[int, Exchange]] = []
        self.exchanges: list[Exchange] = []
        self.output = b""
        self.begun = False  # a request that never gets whole
        self.refused = False

    @precondition(lambda self: not self.connection.closing and not self.begun)
    @rule(count=st.integers(1, 3), last=st.booleans())
    def send(self, count: int, last: bool) -> None:
        stream = GET * count
        if last:
            stream += b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        exchanges, refusal = self.connection.receive(stream)
        assert refusal is None
        assert len(exchanges) == count + last
        for exchange in exchanges:
            self.open.append((self.sent, exchange))
            self.exchanges.append(exchange)
            self.sent += 1

    @precondition(lambda self: not self.begun)
    @rule(stream=st.sampled_from([b"\x00", b"G", POST + b"Content-Length: 9\r\n\r\n"]))
    def send_something_else(self, stream: bytes) -> None:
        exchanges, refusal = self.connection.receive(stream)
        assert exchanges == []
        self.begun = True
        self.refused = self.refused or refusal is not None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        number, exchange = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.connection.respond(exchange, Response(200, b"n%d." % number))

    @invariant()
    def it_knows_whether_a_request_has_begun(self) -> None:
        assert self.connection.reads_request == (self.begun and not self.connection.closing)

    @invariant()
    def what_waits_for_a_response_is_held(self) -> None:
        if self.connection.finished:
            assert self.connection.held == 0
        elif not self.begun:
            first = min((number for number, _ in self.open), default=self.sent)
            assert self.connection.held == sum(each.size for each in self.exchanges[first:])

    @rule()
    def take_output(self) -> None:
        self.output += self.connection.take_output()

    @rule()
    def close(self) -> None:
        self.connection.close()

    @rule()
    def end_input(self) -> None:
        refusal = self.connection.receive_eof()
        self.refused = self.refused or refusal is not None

    @rule()
    def refuse(self) -> None:
        if not self.connection.closing:
            self.connection.refuse(Refusal(408, "request_too_slow"))
            self.refused = True

    @rule()
    def retire(self) -> None:
        self.connection.retiring = True

    @invariant()
    def responses_are_in_the_order_of_the_requests(self) -> None:
        said = self.output + bytes(self.connection._output)
        responses = said.split(b"HTTP/1.1 ")[1:]
        bodies = [response.rpartition(b"\r\n\r\n")[2] for response in responses]
        answered = [body for body in bodies if body]
        assert answered == [b"n%d." % number for number in range(len(answered))]
        refusals = [response for response in responses if not response.startswith(b"200")]
        assert len(refusals) <= 1
        if refusals:
            assert self.refused
            assert responses[-1] == refusals[0]
        assert said.count(b"Connection: close") <= 1
        if b"Connection: close" in said:
            assert self.connection.finished
            assert b"Connection: close" in responses[-1]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=30)

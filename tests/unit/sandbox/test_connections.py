"""Where a request ends, however it is cut, and that gunicorn finds the same end."""

import itertools

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from stripe_identity_sandbox.connections import MAX_BODY, Incoming

HEADS = st.sampled_from(
    (b"", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"upgrade: a\r\nUpgrade: b\r\n", b"X: y\r\n")
)
BODIES = st.binary(max_size=60) | st.just(b"a\r\nupgrade: c\r\n0\r\n\r\n")


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request and its body."""
    body, extra = draw(BODIES), draw(HEADS)
    if not draw(st.booleans()):
        head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n"
        return head % (extra, len(body)) + body, body
    size = draw(st.integers(1, 20))
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x;n=v\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    end = draw(st.sampled_from((b"0\r\n\r\n", b"0\r\nX-T: y\r\n\r\n")))
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%sTransfer-Encoding: chunked\r\n\r\n"
    return head % extra + framed + end, body


@given(
    requests(), st.lists(st.integers(1, 300), max_size=6), st.sampled_from((b"", b"GET /v1/y H"))
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_a_request_is_whole_with_its_last_byte(
    request: tuple[bytes, bytes], cuts: list[int], next_one: bytes
) -> None:
    sent, body = request
    places = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent) - 1})
    incoming = Incoming()
    for start, end in itertools.pairwise(places):
        assert not incoming.add(sent[start:end])
    assert incoming.add(sent[-1:] + next_one)
    assert incoming.whole
    parser = RequestParser(Config(), [bytes(incoming.received)], ("127.0.0.1", 1))
    read = next(parser)
    assert read.body.read() == body
    assert parser.finish_body()
    assert parser.unreader.take_buffered() == next_one


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5000), 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 3 * MAX_BODY, 413),
    ],
)
def test_what_has_no_end_is_refused(sent: bytes, status: int) -> None:
    incoming = Incoming()
    assert incoming.add(sent)
    assert incoming.refusal
    assert incoming.refusal.status == status
    assert not incoming.whole

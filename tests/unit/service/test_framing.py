"""How bytes are cut into requests."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.app import MAX_BODY
from service.framing import MAX_HEAD, Answer, Incoming

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
SIZED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\na;name=value\r\n0\r\n\r\n12345\r\n0\r\n\r\n"
)
TRAILERS = CHUNKED[:-2] + b"X: y\r\n\r\n"


def cut(*pieces: bytes, ended: bool = False) -> list[tuple[bytes, bool]]:
    """Feed pieces as they would come, and take out whatever is there after each."""
    incoming, requests = Incoming(), []
    for number, piece in enumerate(pieces, 1):
        incoming.buffer += piece
        while request := incoming.take(ended=ended and number == len(pieces)):
            requests.append(request)
    return requests


@pytest.mark.parametrize("request_", [GET, SIZED, CHUNKED, TRAILERS], ids=len)
def test_a_request_is_taken_with_its_last_byte(request_: bytes) -> None:
    assert cut(request_) == [(request_, True)]
    assert cut(request_[:-1]) == []
    assert cut(request_[:-1], ended=False) == []
    assert cut(request_[:-1], ended=True) == [(request_[:-1], False)]


@given(
    requests=st.lists(st.sampled_from([GET, SIZED, CHUNKED, TRAILERS]), max_size=4),
    cuts=st.lists(st.integers(0, 600), max_size=12),
)
def test_however_the_bytes_come(requests: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(requests)
    marks = [0, *sorted(min(mark, len(stream)) for mark in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(marks)]
    assert cut(*pieces) == [(request, True) for request in requests]


@pytest.mark.parametrize(
    "hopeless",
    [
        b"x" * (MAX_HEAD + 1),
        b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1),
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 100,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n" + b"x" * 3 * MAX_BODY,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"x" * 2 * MAX_HEAD,
    ],
    ids=lambda raw: f"{raw[:70]!r} {len(raw)}",
)
def test_what_can_never_become_whole_is_not_waited_for(hopeless: bytes) -> None:
    assert cut(hopeless) == [(hopeless, False)]


def test_small_chunks_that_add_up_are_not_waited_for_either() -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    incoming = Incoming()
    incoming.buffer += head
    fed = 0
    while incoming.take(ended=False) is None:
        incoming.buffer += b"1\r\nx\r\n" * 1000
        fed += 6000
        assert fed <= 2 * MAX_BODY + 6000


def test_nothing_is_nothing() -> None:
    assert cut(b"", ended=True) == []


@pytest.mark.parametrize("name", ["expect", "Expect", "EXPECT"])
def test_who_waits_for_permission_to_send_the_body_is_noticed(name: str) -> None:
    incoming = Incoming()
    incoming.buffer += (
        SIZED[:-9].replace(b"Host: x", f"{name}: 100-continue".encode()) + b"\r\n\r\n"
    )
    assert incoming.take(ended=False) is None
    assert incoming.wants_continue
    incoming.buffer += b"hello"
    assert incoming.take(ended=False) is not None
    assert not incoming.wants_continue


class TestAnswer:
    @staticmethod
    def encoded(
        *headers: tuple[str, str], method: str = "POST", status: str = "200 OK"
    ) -> tuple[list[bytes], bytes]:
        answer = Answer(SimpleNamespace(method=method))
        write = answer.start_response(status, list(headers))
        write(b"so ")
        answer.body += b"be it"
        head, _, body = answer.encode(keep=True).partition(b"\r\n\r\n")
        return head.split(b"\r\n"), body

    def test_it_is_framed_by_us_whatever_the_application_says(self) -> None:
        lines, body = self.encoded(
            ("X-Kind", "a"),
            ("Content-Length", "3"),
            ("content-length", "999"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "upgrade"),
        )
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert lines[1].startswith(b"Date: ")
        assert lines[2:] == [b"Connection: keep-alive", b"X-Kind: a", b"Content-Length: 8"]
        assert body == b"so be it"

    @pytest.mark.parametrize(
        ("method", "status"),
        [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 As it was")],
    )
    def test_what_has_no_body_has_none(self, method: str, status: str) -> None:
        lines, body = self.encoded(method=method, status=status)
        assert body == b""
        assert not any(line.startswith(b"Content-Length") for line in lines)

    @pytest.mark.parametrize("odd", ["a\r\nX-Other: b", "a\nb", "a\rb"])
    def test_no_header_becomes_two(self, odd: str) -> None:
        with pytest.raises(ValueError, match="headers"):
            self.encoded(("X-Kind", odd))
        with pytest.raises(ValueError, match="headers"):
            self.encoded(status=odd)

    def test_without_a_status_there_is_no_answer(self) -> None:
        with pytest.raises(ValueError, match="status"):
            self.encoded(status="")

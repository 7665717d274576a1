"""What an application is told of a request, and what becomes of its response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from service.server import wsgi
from service.server.http import HttpConnection, Request
from tests.logs import Said

PEER, SERVER = "192.0.2.7", ("198.51.100.1", 8000)


def request(*lines: str, body: bytes = b"", target: str = "/a", method: str = "POST") -> Request:
    """Read a request off the bytes that a client sends."""
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *lines])
    (exchange,), _ = HttpConnection(str).receive(f"{head}\r\n\r\n".encode("latin-1") + body)
    return exchange.request


def told(*lines: str, **more: Any) -> dict[str, Any]:
    return dict(wsgi.environ(request(*lines, **more), PEER, SERVER))


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: 10.0.0.1",
        "X-Real-IP: 10.0.0.1",
        "Forwarded: for=10.0.0.1;proto=https",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: other",
        "Remote-Addr: 10.0.0.1",
        "REMOTE_ADDR: 10.0.0.1",
        "wsgi.url_scheme: https",
        "Script-Name: /other",
        "Path-Info: /other",
    ],
)
def test_no_header_says_from_where_or_to_where_a_request_comes(line: str) -> None:
    found = told(line)
    names = ("REMOTE_ADDR", "wsgi.url_scheme", "SERVER_NAME", "SCRIPT_NAME", "PATH_INFO")
    assert [found[name] for name in names] == [PEER, "http", SERVER[0], "", "/a"]
    assert found["HTTP_HOST"] == "x"


@pytest.mark.parametrize("name", ["X_User", "X-User_", "x_user", "_X-User"])
def test_an_underscore_poses_as_no_dash(name: str) -> None:
    assert not [each for each in told(f"{name}: eve") if each.startswith("HTTP_X")]
    assert told(f"{name}: eve", "X-User: ann")["HTTP_X_USER"] == "ann"
    assert told("X-User: ann", f"{name}: eve")["HTTP_X_USER"] == "ann"


def test_what_surrounds_a_value_is_no_part_of_it() -> None:
    assert told("X-User: \t ann \t ")["HTTP_X_USER"] == "ann"


def test_an_application_is_told_all_that_wsgi_asks_for() -> None:
    found = told(target="/a?b", method="PUT")
    assert {name: value for name, value in found.items() if name.isupper()} == {
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b",
        "RAW_URI": "/a?b",
        "SERVER_NAME": SERVER[0],
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": PEER,
        "CONTENT_LENGTH": "0",
        "HTTP_HOST": "x",
    }
    # Whether the body ends by itself: Werkzeug reads no chunks otherwise.
    names = ("input_terminated", "multithread", "multiprocess", "run_once")
    assert [found[f"wsgi.{name}"] for name in names] == [True, True, True, False]


@pytest.mark.parametrize("again", ["X-User", "x-user", "X-USER"])
def test_a_header_that_comes_twice_is_seen_to(again: str) -> None:
    assert told("X-User: ann", f"{again}: eve")["HTTP_X_USER"] == "ann,eve"


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (("Content-Length: 3",), b"abc"),
        (("Transfer-Encoding: chunked",), b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        (
            ("Transfer-Encoding: chunked", "Expect: 100-continue"),
            b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
        ),
    ],
)
def test_a_body_is_whole_however_it_was_sent(lines: tuple[str, ...], body: bytes) -> None:
    found = told(*lines, "Content-Type: text/plain", body=body)
    assert found["wsgi.input"].read() == b"abc"
    assert (found["CONTENT_LENGTH"], found["CONTENT_TYPE"]) == ("3", "text/plain")
    left_out = {"HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_X_T"}
    assert not left_out & found.keys()


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b=c&d", "/a", "b=c&d"),
        ("/a%2Fb?x=%20", "/a/b", "x=%20"),
        ("/a?b?c", "/a", "b?c"),
        ("http://other/a?b", "/a", "b"),
        ("/%C3%A9", "/\u00c3\u00a9", ""),
    ],
)
def test_the_path_is_decoded_and_the_query_is_not(target: str, path: str, query: str) -> None:
    found = told(target=target)
    assert (found["PATH_INFO"], found["QUERY_STRING"]) == (path, query)


class Parts:
    """What an application returns; notes that it was closed."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self._parts, self.closed = parts, 0

    def __iter__(self) -> Iterator[Any]:
        yield from self._parts

    def close(self) -> None:
        self.closed += 1


def fails() -> Iterator[bytes]:
    yield b"some"
    raise KeyError


@pytest.mark.parametrize(
    ("parts", "status", "body"),
    [
        (lambda: [b"some", b"more"], 202, b"written some more"),
        (fails, 500, b""),
        (lambda: ["no bytes"], 500, b""),
    ],
)
def test_a_response_is_whole_or_an_error_and_is_closed_once(
    parts: Callable[[], Iterable[Any]], status: int, body: bytes
) -> None:
    returned = Parts(parts())

    def app(environ: Any, start_response: Any) -> Parts:
        write = start_response("202 Accepted", [("X-A", "1")])
        write(b"written ")
        return returned

    response = wsgi.run(app, request(), PEER, SERVER)
    assert (response.status, response.body.replace(b"somemore", b"some more")) == (status, body)
    assert list(response.headers) == ([("X-A", "1")] if status == 202 else [])
    assert returned.closed == 1


def test_an_application_that_fails_at_once_is_an_error_that_is_said(said: Said) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-A", "1")])
        raise KeyError

    response = wsgi.run(app, request(), PEER, SERVER)
    assert (response.status, response.body, list(response.headers)) == (500, b"", [])
    assert [(line["event"], line["level"]) for line in said()] == [("request_failed", "error")]

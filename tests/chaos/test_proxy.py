"""The proxy does what it says, or the other tests prove nothing."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Proxy
from tests.conftest import quickest, wait_until


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            while line := self.rfile.readline():
                self.server.heard.append(line)
                self.wfile.write(line)
        except ConnectionError:
            pass


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.heard: list[bytes] = []


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[Proxy]:
    with Proxy(echo.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=120) as client:
        assert ask(client, b"hello\n") == b"hello\n"
        yield client


def ask(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line)
    answer = b""
    while len(answer) < len(line) and (part := client.recv(65_536)):
        answer += part
    return answer


def took(client: socket.socket, line: bytes) -> float:
    def echo() -> None:
        assert ask(client, line) == line

    return quickest(echo)


def test_a_delay_is_there_and_back(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay = 0.1
    assert 0.2 <= took(client, b"late\n") < 1
    proxy.delay = 0
    assert took(client, b"soon\n") < 0.1


def test_a_rate_limits_bytes(proxy: Proxy, client: socket.socket) -> None:
    proxy.rate = 10_000
    assert 0.2 <= took(client, b"x" * 999 + b"\n") < 2


def test_a_cut_ends_what_is_open_and_not_what_comes_later(
    proxy: Proxy, client: socket.socket
) -> None:
    proxy.cut()
    with pytest.raises(ConnectionError):
        client.recv(10)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=120) as other:
        assert ask(other, b"again\n") == b"again\n"


def test_the_dropped_reply_is_the_nth_and_its_request_was_heard(
    proxy: Proxy, client: socket.socket, echo: EchoServer
) -> None:
    proxy.drop_reply(2)
    assert ask(client, b"first\n") == b"first\n"
    with pytest.raises(ConnectionError):
        ask(client, b"second\n")
    assert echo.heard == [b"hello\n", b"first\n", b"second\n"]


def test_after_a_half_close_the_server_still_hears(
    proxy: Proxy, client: socket.socket, echo: EchoServer
) -> None:
    proxy.half_close()
    assert client.recv(10) == b""
    client.sendall(b"still here\n")
    wait_until(lambda: b"still here\n" in echo.heard)
    proxy.delay = 0.01
    client.sendall(b"and late\n")
    wait_until(lambda: b"and late\n" in echo.heard)
    client.sendall(b"and again\n")  # the answers, at once or late, end nothing
    wait_until(lambda: b"and again\n" in echo.heard)


def test_a_refusal_is_for_new_connections_only(proxy: Proxy, client: socket.socket) -> None:
    proxy.refusing = True
    assert ask(client, b"old\n") == b"old\n"
    with pytest.raises(ConnectionError):
        connect_and_listen(proxy)


def test_a_server_that_is_away_ends_the_connection(proxy: Proxy, echo: EchoServer) -> None:
    echo.socket.close()
    with pytest.raises(ConnectionError):
        connect_and_listen(proxy)


def connect_and_listen(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=120) as client:
        client.recv(10)

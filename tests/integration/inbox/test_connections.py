"""Pipelines over connections that break, to servers that forget their scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py
from redis import Redis
from redis.connection import AbstractConnection

from service import connection
from service.inbox import Limits, Pipeline, Reply, connections
from service.inbox.connections import Connections, read_reply
from service.inbox.scripts import Scripts, script
from service.settings import Settings
from tests.chaos.proxy import Proxy
from tests.conftest import Server, wait_until

SCRIPTS = Scripts(
    {
        "echo": script("return ARGV[1]\n"),
        "count": script("return redis.call('INCR', 'n')\n"),
        "fail": script("error({err = 'NO ' .. ARGV[1]})\n"),
    }
)
Command = tuple[str | int, ...]


class Asker:
    """Asks for scripts through pipelines."""

    def __init__(self, client: Redis) -> None:
        self._connections = Connections(client, SCRIPTS)

    def send(self, *commands: Command) -> list[Reply[Any]]:
        """Send the commands in one pipeline, and return their replies."""
        pipe = Pipeline(SCRIPTS, Limits())
        replies = [pipe._add(lambda raw: raw, str(name), *args) for name, *args in commands]
        self._connections.send(pipe)
        return replies

    def run(self, *command: str | int) -> Any:
        (reply,) = self.send(command)
        return reply.result()


@pytest.fixture
def asker(redis: Redis) -> Asker:
    return Asker(redis)


@pytest.fixture
def proxied(server: Server, redis: Redis) -> Iterator[tuple[Asker, Proxy]]:
    """A connection that can be cut, with the retry of the service, and time for the proxy."""
    with Proxy(server.port) as proxy:
        settings = Settings(redis_url=f"redis://127.0.0.1:{proxy.port}/0")
        patient = {"socket_timeout": 30, "socket_connect_timeout": 30}
        yield Asker(connection.connect(settings, **patient)), proxy


@pytest.mark.parametrize("text", ["", "a b\r\n$3\r\n", "é" * 3, "x" * 100_000])
def test_arguments_arrive_as_they_are(asker: Asker, text: str) -> None:
    assert asker.run("echo", text) == text.encode()


def test_numbers_arrive_as_text(asker: Asker) -> None:
    assert asker.run("echo", -17) == b"-17"


def test_a_pipeline_leaves_in_one_piece_and_in_order(
    asker: Asker, server: Server, redis: Redis
) -> None:
    asker.run("count")
    with server.client() as other, other.monitor() as monitor:
        redis.echo("nothing yet")
        replies = asker.send(*[("count",)] * 5)
        assert [reply.result() for reply in reversed(replies)] == [6, 5, 4, 3, 2]
        assert [reply.result() for reply in replies] == [2, 3, 4, 5, 6], "a reply stays"
        redis.echo("that was all")
        seen = []
        while "that was all" not in (command := monitor.next_command())["command"]:
            if command["client_type"] != "lua":
                seen.append(command["command"].split()[0])
    assert seen[-6:] == ["ECHO", *["EVALSHA"] * 5]


def test_a_reply_cannot_be_read_before_the_pipeline_is_sent() -> None:
    reply = Pipeline(SCRIPTS, Limits())._add(bool, "echo", "a")
    with pytest.raises(RuntimeError, match="not sent"):
        reply.result()


def test_an_empty_pipeline_asks_nothing(asker: Asker) -> None:
    assert asker.send() == []


def test_a_command_that_fails_leaves_the_others_alone(asker: Asker) -> None:
    first, bad, last = asker.send(("echo", "a"), ("fail", "x"), ("echo", "b"))
    assert (first.result(), last.result()) == (b"a", b"b")
    with pytest.raises(redis_py.ResponseError, match="NO x"):
        bad.result()


def test_a_server_that_forgot_the_scripts(asker: Asker, redis: Redis) -> None:
    assert asker.run("count") == 1
    redis.script_flush()
    assert [reply.result() for reply in asker.send(("count",), ("count",))] == [2, 3]


def test_a_connection_that_broke_is_opened_anew(proxied: tuple[Asker, Proxy]) -> None:
    asker, proxy = proxied
    assert asker.run("echo", "a") == b"a"
    proxy.cut()
    replies = asker.send(("echo", "b"), ("echo", "c"))
    assert [reply.result() for reply in replies] == [b"b", b"c"]


def test_a_server_that_stays_away_fails_them_all_and_is_found_again(
    proxied: tuple[Asker, Proxy],
) -> None:
    asker, proxy = proxied
    assert asker.run("echo", "a") == b"a"
    proxy.refusing = True
    proxy.cut()
    for reply in asker.send(("echo", "b"), ("echo", "c")):
        with pytest.raises(redis_py.ConnectionError):
            reply.result()
    proxy.refusing = False
    assert asker.run("echo", "d") == b"d"


def test_a_server_that_hangs_is_waited_for_once(new_server: Callable[..., Server]) -> None:
    own = new_server()
    asker = Asker(connection.connect(Settings(redis_url=own.url)))
    assert asker.run("echo", "a") == b"a"
    own.freeze()
    began = time.monotonic()
    for reply in asker.send(*[("echo", str(n)) for n in range(20)]):
        with pytest.raises(redis_py.TimeoutError):
            reply.result()
    assert time.monotonic() - began < 15, "together, not one after another"
    own.thaw()
    assert asker.run("echo", "b") == b"b", "no reply of before is taken for this one"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError])
def test_whatever_ends_the_reading_the_next_pipeline_gets_its_own_replies(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A signal handler may raise between two replies, and any line for want of memory."""

    def read_one(connection: AbstractConnection) -> Any:
        read_reply(connection)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(connections, "read_reply", read_one)
        with pytest.raises(error):
            asker.send(("echo", "a"), ("echo", "b"))
    assert asker.run("echo", "c") == b"c"


def test_a_primary_that_became_a_replica_is_connected_anew(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()
    with own.client() as admin:
        asker = Asker(connection.connect(Settings(redis_url=own.url)))
        assert asker.run("count") == 1
        admin.replicaof("127.0.0.1", "1")
        before = admin.info("clients")["connected_clients"]
        with pytest.raises(redis_py.ReadOnlyError):
            asker.run("count")
        wait_until(lambda: admin.info("clients")["connected_clients"] < before)
        admin.replicaof("NO", "ONE")
        assert asker.run("count") == 2


def test_threads_do_not_get_each_others_replies(asker: Asker) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        for number in range(200):
            texts = [f"{name}-{number}-{n}" for n in range(3)]
            replies = asker.send(*[("echo", text) for text in texts])
            pairs = zip(texts, replies, strict=True)
            wrong.extend(text for text, reply in pairs if reply.result() != text.encode())

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

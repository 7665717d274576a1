"""`service.scripts`: one script or many, over connections that break, on servers that forget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis as redis_py
from redis import Redis

from service import connection
from service.scripts import Scripts
from service.settings import Settings
from tests.chaos.proxy import Proxy
from tests.conftest import Server, wait_until

SOURCES = {
    "echo": "return ARGV[1]",
    "count": "return redis.call('INCR', 'n')",
    "fail": "return redis.error_reply('NO ' .. ARGV[1])",
}


@pytest.fixture
def scripts(redis: Redis) -> Scripts:
    return Scripts(redis, SOURCES)


@pytest.fixture
def proxied(server: Server, redis: Redis) -> Iterator[tuple[Scripts, Proxy]]:
    """Scripts on a connection that can be cut, with the timeouts and the retry of the service."""
    with Proxy(server.port) as proxy:
        settings = Settings(redis_url=f"redis://127.0.0.1:{proxy.port}/0")
        yield Scripts(connection.connect(settings), SOURCES), proxy


@pytest.mark.parametrize("text", ["", "a b\r\n$3\r\n", "é" * 3, "x" * 100_000])
def test_arguments_arrive_as_they_are(scripts: Scripts, text: str) -> None:
    assert scripts.run("echo", text) == text.encode()


def test_numbers_arrive_as_text(scripts: Scripts) -> None:
    assert scripts.run("echo", -17) == b"-17"


def test_what_is_asked_for_soon_leaves_together_and_in_order(
    scripts: Scripts, server: Server, redis: Redis
) -> None:
    scripts.run("count")
    with server.client() as other, other.monitor() as monitor:
        answers = [scripts.soon("count") for _ in range(5)]
        redis.echo("nothing yet")
        assert [answer() for answer in reversed(answers)] == [6, 5, 4, 3, 2]
        assert [answer() for answer in answers] == [2, 3, 4, 5, 6], "an answer stays"
        assert scripts.run("count") == 7, "the next one is sent anew"
        redis.echo("that was all")
        seen = []
        while "that was all" not in (command := monitor.next_command())["command"]:
            if command["client_type"] != "lua":
                seen.append(command["command"].split()[0])
    assert seen[-7:] == ["ECHO", *["EVALSHA"] * 6]


def test_one_that_fails_does_not_concern_the_others(scripts: Scripts) -> None:
    first, bad, last = (
        scripts.soon("echo", "a"),
        scripts.soon("fail", "x"),
        scripts.soon("echo", "b"),
    )
    assert (first(), last()) == (b"a", b"b")
    with pytest.raises(redis_py.ResponseError, match="NO x"):
        bad()


def test_a_server_that_forgot_the_scripts(scripts: Scripts, redis: Redis) -> None:
    assert scripts.run("count") == 1
    redis.script_flush()
    both = scripts.soon("count"), scripts.soon("count")
    assert [answer() for answer in both] == [2, 3]


def test_a_connection_that_broke_is_opened_anew(proxied: tuple[Scripts, Proxy]) -> None:
    scripts, proxy = proxied
    assert scripts.run("echo", "a") == b"a"
    proxy.cut()
    answers = scripts.soon("echo", "b"), scripts.soon("echo", "c")
    assert [answer() for answer in answers] == [b"b", b"c"]


def test_a_server_that_stays_away_fails_them_all_and_is_found_again(
    proxied: tuple[Scripts, Proxy],
) -> None:
    scripts, proxy = proxied
    assert scripts.run("echo", "a") == b"a"
    proxy.refusing = True
    proxy.cut()
    for answer in [scripts.soon("echo", "b"), scripts.soon("echo", "c")]:
        with pytest.raises(redis_py.ConnectionError):
            answer()
    proxy.refusing = False
    assert scripts.run("echo", "d") == b"d"


def test_a_server_that_hangs_is_waited_for_once(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()
    scripts = Scripts(connection.connect(Settings(redis_url=own.url)), SOURCES)
    assert scripts.run("echo", "a") == b"a"
    own.freeze()
    began = time.monotonic()
    for answer in [scripts.soon("echo", str(n)) for n in range(20)]:
        with pytest.raises(redis_py.TimeoutError):
            answer()
    assert time.monotonic() - began < 4, "together, not one after another"
    own.thaw()
    assert scripts.run("echo", "b") == b"b", "no reply of before is taken for this one"


def test_a_primary_that_became_a_replica_is_connected_anew(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()
    with own.client() as admin:
        scripts = Scripts(connection.connect(Settings(redis_url=own.url)), SOURCES)
        assert scripts.run("count") == 1
        admin.replicaof("127.0.0.1", "1")
        before = admin.info("clients")["connected_clients"]
        with pytest.raises(redis_py.ReadOnlyError):
            scripts.run("count")
        wait_until(lambda: admin.info("clients")["connected_clients"] < before)
        admin.replicaof("NO", "ONE")
        assert scripts.run("count") == 2


def test_threads_do_not_get_each_others_answers(scripts: Scripts) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        for number in range(200):
            texts = [f"{name}-{number}-{n}" for n in range(3)]
            answers = [scripts.soon("echo", text) for text in texts]
            wrong.extend(t for t, a in zip(texts, answers, strict=True) if a() != t.encode())

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

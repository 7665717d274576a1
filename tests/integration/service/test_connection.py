"""A process keeps to its number of connections, and has the inbox as the settings have it."""

from __future__ import annotations

import ast
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from redis.exceptions import MaxConnectionsError
from redis.exceptions import TimeoutError as RedisTimeoutError

from identity_webhooks import Event
from service import connection
from service.inbox import AcceptResult, Claim, Inbox, Refused, keys
from service.settings import Settings
from tests.conftest import ROOT, quickest, wait_until


@pytest.fixture
def settings(server) -> Settings:
    return Settings(redis_url=server.url)


def connected(redis) -> set[str]:
    """Who is connected, by their ids: what an earlier test has closed may still be listed."""
    return {client["id"] for client in redis.client_list()}


def test_threads_share_as_many_as_there_may_be(redis, settings) -> None:
    # They ask without a pause, and whoever waits is not served in turn.
    before, most = connected(redis), 0
    with connection.connect(settings, 3, wait=60, socket_timeout=60) as client:
        inbox = Inbox(client)

        def ask(number: int) -> None:
            for _ in range(50):
                inbox.claim()
                client.get(f"x{number}")

        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(ask, number) for number in range(20)]
            while not all(each.done() for each in asked):
                most = max(most, len(connected(redis) - before))
        assert [each.result() for each in asked] == [None] * 20
        assert 1 <= most <= 3
    wait_until(lambda: not connected(redis) - before)


def test_whoever_finds_none_waits_and_gets_one_that_gets_free(settings) -> None:
    with connection.connect(settings, 1, wait=60) as client:
        taken = client.connection_pool.get_connection()
        threading.Timer(0.2, client.connection_pool.release, [taken]).start()
        assert client.ping()


def test_whoever_gets_none_is_told_so_in_time(settings) -> None:
    with connection.connect(settings, 1) as client:
        taken = client.connection_pool.get_connection()
        for ask in (client.ping, Inbox(client).claim):

            def refused(ask: Callable[[], object] = ask) -> None:
                with pytest.raises(MaxConnectionsError, match="none of this process's 1 conn"):
                    ask()

            assert connection.WAIT <= quickest(refused, tries=3) < 2 * connection.WAIT
        client.connection_pool.release(taken)
        assert client.ping()


def test_one_that_was_closed_meanwhile_is_no_trouble(redis, settings) -> None:
    with connection.connect(settings, 2) as client:
        for ask in (client.ping, Inbox(client).claim, client.pipeline().ping().execute):
            client.ping()
            redis.client_kill_filter(_type="normal", skipme=True)
            ask()


def test_a_server_that_says_nothing_is_asked_twice_and_no_more(monkeypatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        for ask in (lambda c: c.ping(), lambda c: Inbox(c).claim(), lambda c: c.get("x")):
            with connection.connect(Settings(redis_url=url)) as client:
                with pytest.raises(RedisTimeoutError):
                    ask(client)
                asked = []
                with suppress(BlockingIOError):
                    while True:
                        asked.append(silent.accept()[0])
                for each in asked:
                    each.close()
                assert len(asked) == 2


def test_idle_ones_are_closed_but_the_one_in_use(redis, settings, monkeypatch) -> None:
    before = connected(redis)
    with connection.connect(settings, 4) as client:
        pool = client.connection_pool
        for each in [pool.get_connection() for _ in range(4)]:
            each.connect()
            pool.release(each)
        assert len(connected(redis) - before) == 4
        monkeypatch.setattr(connection, "KEPT_IDLE", 0.1)
        time.sleep(0.15)
        in_use = client.client_id()
        wait_until(lambda: len(connected(redis) - before) == 1)
        assert client.client_id() == in_use
        for each in [pool.get_connection() for _ in range(4)]:
            pool.release(each)  # as many as before may be had


def test_the_last_one_used_is_the_next(settings) -> None:
    """So that those there are too many of are idle, and closed."""
    with connection.connect(settings, 3) as client:
        pool = client.connection_pool
        first, second, third = (pool.get_connection() for _ in range(3))
        for each in (second, third, first):
            pool.release(each)
        assert [pool.get_connection() for _ in range(2)] == [first, third]
        pool.release(third)
        assert pool.get_connection() is third


def test_a_forked_process_has_connections_of_its_own(settings) -> None:
    with connection.connect(settings, 1) as client:
        mine = client.client_id()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, str(client.client_id()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert int(os.read(read, 20)) != mine
        os.close(read)
        os.close(write)
        assert client.client_id() == mine


def test_as_many_workers_fit_as_have_their_connections() -> None:
    web, workers, threads = 2, 3, 10
    beside = web * (connection.WEB + connection.LINK) + connection.PERIODIC + 2 * connection.TOOL
    of_workers = workers * (connection.RQ + connection.worker_connections(threads))
    fit = connection.workers_that_fit(beside + of_workers, web, threads)
    fewer = connection.workers_that_fit(beside + of_workers - 1, web, threads)
    assert (fit, fewer) == (workers, workers - 1)


def test_the_page_says_how_many_a_process_has() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    rows = dict(
        re.findall(r"^\| (web|worker|periodic|command)\b[^|]*\| (\d+)\b", page, re.MULTILINE)
    )
    assert {name: int(number) for name, number in rows.items()} == {
        "web": connection.WEB + connection.LINK,
        "worker": connection.RQ
        + connection.worker_connections(Settings.model_fields["worker_concurrency"].default),
        "periodic": connection.PERIODIC,
        "command": connection.TOOL,
    }


class TestInbox:
    """`connection.inbox`."""

    @pytest.fixture
    def inbox(self, server, redis) -> Inbox:
        set_ = Settings(redis_url=server.url, inbox_limit=3, stripe_api_rate=1, retention_days=4)
        return connection.inbox(set_, redis)

    def accept(self, inbox: Inbox, number: int) -> AcceptResult:
        names = {"id": f"evt_{number}", "session": f"vs_{number}", "form": "snapshot"}
        return inbox.accept(Event(kind="created", created=1_700_000_000, livemode=False, **names))

    def test_takes_as_many_as_are_set(self, inbox) -> None:
        assert [self.accept(inbox, number) for number in range(4)] == [
            *[AcceptResult.NEW] * 3,
            AcceptResult.FULL,
        ]

    def test_claims_as_fast_as_is_set(self, inbox) -> None:
        for number in range(3):
            self.accept(inbox, number)
        assert inbox.claim(3)[-1] is Refused.THROTTLED

    def test_keeps_what_is_done_as_long_as_is_set(self, inbox, redis) -> None:
        self.accept(inbox, 1)
        (claim,) = inbox.claim()
        assert isinstance(claim, Claim)
        inbox.finish(claim, "done", outcome="verified")
        assert 4 * 86_400 - 120 < redis.ttl(f"{keys.DONE}evt_1") <= 4 * 86_400

    def test_every_process_has_it_from_there(self) -> None:
        """Or one of them would keep records, or claim events, by the defaults."""
        made = {
            path.relative_to(ROOT).as_posix()
            for folder in ("service", "workers")
            for path in (ROOT / folder).rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Inbox"
        }
        # Metrics write down what a process says of itself, and nothing of an event.
        assert made == {"service/connection.py", "service/metrics.py"}

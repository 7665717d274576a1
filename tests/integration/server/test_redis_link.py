"""The connection to Redis inside the loop, on a real server that breaks."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis as redis_py
from redis import Redis

from identity_webhooks.event import Event
from service import findings
from service.inbox import AcceptResult, Reply
from service.limits import ACCEPT_DEADLINE
from service.redis_errors import CAUSES, UnsafeRedis
from service.server import redis_link
from service.server.redis_link import RedisLink
from service.settings import Settings
from tests.chaos.proxy import Proxy
from tests.conftest import Server
from tests.imitation import Imitation
from tests.logs import Said

Accept = Callable[..., Awaitable[AcceptResult]]


def event(number: int = 1) -> Event:
    return Event(f"evt_{number}", "verified", "snapshot", "vs_1", 1_700_000_000, livemode=False)


def with_link(
    use: Callable[[RedisLink, Accept], Awaitable[None]], url: str, **changes: object
) -> None:
    """Run `use` in a loop with a link, and a coroutine that accepts one event through it."""

    async def run() -> None:
        link = RedisLink(Settings(redis_url=url, **changes))

        async def accept(number: int = 1) -> AcceptResult:
            done = asyncio.Event()
            pipe = link.pipeline()
            reply: Reply[AcceptResult] = pipe.accept(event(number))
            link.send(pipe, done.set)
            await asyncio.wait_for(done.wait(), 120)
            return reply.result()

        try:
            await use(link, accept)
        finally:
            link.close()

    asyncio.run(run())


async def faults(link: RedisLink) -> list[str]:
    told: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
    link.check(told.set_result)
    return await asyncio.wait_for(told, 120)


async def until(accept: Accept, number: int, expected: set[AcceptResult]) -> None:
    ends = time.monotonic() + 120
    while True:
        try:
            assert await accept(number) in expected
        except redis_py.RedisError:
            assert time.monotonic() < ends
            await asyncio.sleep(0.05)
        else:
            return


def test_what_is_sent_at_once_is_answered_in_order(server: Server, redis: Redis) -> None:
    async def use(_: RedisLink, accept: Accept) -> None:
        numbers = [1, 2, 1, 3]
        results = await asyncio.gather(*(accept(number) for number in numbers))
        assert results == ["new", "new", "pending", "new"]

    with_link(use, server.url)
    assert redis.zcard("iw:due") == 3


def test_a_server_that_forgot_the_scripts(server: Server, redis: Redis) -> None:
    async def use(_: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        redis.script_flush()
        results = await asyncio.gather(*(accept(number) for number in range(2, 9)))
        assert set(results) == {AcceptResult.NEW}

    with_link(use, server.url)


def test_a_connection_that_broke_is_opened_anew_and_nothing_is_refused(
    server: Server, redis: Redis
) -> None:
    async def use(_: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        for number in range(2, 6):
            proxy.drop_reply()
            # The reply was lost: it was accepted, and sending it again finds that.
            assert await accept(number) in {AcceptResult.NEW, AcceptResult.PENDING}
            await asyncio.to_thread(proxy.cut)
            assert await accept(number) is AcceptResult.PENDING

    with Proxy(server.port) as proxy:
        with_link(use, f"redis://127.0.0.1:{proxy.port}/0")
    assert redis.zcard("iw:due") == 5


def test_what_was_answered_before_a_connection_broke_is_no_answer_to_the_next(
    server: Server, redis: Redis
) -> None:
    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept(1) is AcceptResult.NEW
        done = asyncio.Event()
        pipe = link.pipeline()
        replies = [pipe.accept(event(number)) for number in (1, 2)]
        proxy.tear_reply(len(b"$7\r\npending\r\n"))
        link.send(pipe, done.set)
        await asyncio.wait_for(done.wait(), 120)
        assert proxy.connections > 1
        assert [reply.result() for reply in replies] == [AcceptResult.PENDING, AcceptResult.FULL]

    with Proxy(server.port) as proxy:
        with_link(use, f"redis://127.0.0.1:{proxy.port}/0", inbox_limit=1)


def test_a_server_that_hangs_is_waited_for_once(new_server: Callable[..., Server]) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        own.freeze()
        began = time.monotonic()
        tries = await asyncio.gather(*map(accept, range(2, 500)), return_exceptions=True)
        assert all(isinstance(each, redis_py.TimeoutError) for each in tries)
        assert time.monotonic() - began < 10 * ACCEPT_DEADLINE, "not for one after another"
        took = []
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(redis_py.TimeoutError):
                await accept()
            took.append(time.monotonic() - began)
        assert min(took) < ACCEPT_DEADLINE / 10, "at once, until it has answered"
        (fault,) = await faults(link)
        assert "cannot be reached" in fault
        own.thaw()
        await until(accept, 2, {AcceptResult.NEW, AcceptResult.PENDING})
        assert await faults(link) == []

    with_link(use, own.url)


def test_what_a_connection_took_with_it_is_sent_again_in_order(
    server: Server, redis: Redis
) -> None:
    async def use(_: RedisLink, accept: Accept) -> None:
        assert await accept(1) is AcceptResult.NEW
        proxy.delay = 1  # before the next ones arrive it is cut
        sent = [asyncio.create_task(accept(number)) for number in range(2, 6)]
        await asyncio.sleep(0.05)
        proxy.delay = 0
        await asyncio.to_thread(proxy.cut)
        # A busy machine may cut it late.
        assert set(await asyncio.gather(*sent)) <= {AcceptResult.NEW, AcceptResult.PENDING}

    with Proxy(server.port) as proxy:
        with_link(use, f"redis://127.0.0.1:{proxy.port}/0")
    queued = [id_.decode() for id_ in redis.lrange("rq:queue:identity", 0, -1)]
    assert [id_.rpartition("-")[0] for id_ in queued] == [f"evt_{n}" for n in range(1, 6)]


def test_one_connection_is_opened_however_long_that_takes(
    server: Server, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, open_now = [], threading.Event(), redis_link._Opened.open

    def slowly(*given: Any) -> Any:
        begun.append(given)
        assert go_on.wait(120)
        return open_now(*given)

    async def use(_: RedisLink, accept: Accept) -> None:
        for number in range(3):  # the first at its deadline, the others at once
            with pytest.raises(redis_py.RedisError):
                await accept(number)
        await asyncio.sleep(2 * redis_link.RETRY_PERIOD)
        go_on.set()
        await until(accept, 1, {AcceptResult.NEW, AcceptResult.PENDING})
        assert len(begun) == 1

    monkeypatch.setattr(redis_link._Opened, "open", slowly)
    with_link(use, server.url)


def test_a_new_connection_gives_no_delivery_more_time(server: Server, redis: Redis) -> None:
    """However often it breaks before the answer, a delivery fails by its first deadline."""

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        send = link._send

        def send_and_lose_the_reply(sent: Any) -> None:
            proxy.drop_reply()
            send(sent)

        link._send = send_and_lose_the_reply  # type: ignore[method-assign]
        with pytest.raises(redis_py.RedisError):
            await asyncio.wait_for(accept(2), 20 * ACCEPT_DEADLINE)

    with Proxy(server.port) as proxy:
        with_link(use, f"redis://127.0.0.1:{proxy.port}/0")


def test_a_hang_is_noticed_while_nothing_is_delivered(new_server: Callable[..., Server]) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        own.freeze()
        ends = time.monotonic() + 120
        while not isinstance(link.trouble, redis_py.TimeoutError):
            assert time.monotonic() < ends
            await asyncio.sleep(0.05)
        own.thaw()

    with_link(use, own.url)


def test_a_connection_that_is_given_up_is_closed(new_server: Callable[..., Server]) -> None:
    """What it answers later is no answer to what is sent on the next one."""
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        given_up = link._connection
        own.freeze()
        with pytest.raises(redis_py.TimeoutError):
            await accept(2)
        assert given_up is not None
        assert given_up._closed
        own.thaw()
        await until(accept, 3, {AcceptResult.NEW, AcceptResult.PENDING})
        assert await accept(3) is AcceptResult.PENDING

    with_link(use, own.url)


def test_a_hang_is_not_explained_by_what_was_wrong_before(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        await asyncio.to_thread(own.stop)
        with pytest.raises(redis_py.ConnectionError):
            await accept()
        await asyncio.to_thread(own.start)
        await until(accept, 1, {AcceptResult.NEW, AcceptResult.PENDING})
        own.freeze()
        with pytest.raises(redis_py.TimeoutError):
            await accept(2)
        own.thaw()

    with_link(use, own.url)


def test_a_server_that_stays_away_and_comes_back(
    new_server: Callable[..., Server], said: Said
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        await asyncio.to_thread(own.stop)
        with pytest.raises(redis_py.RedisError):
            await accept(2)
        for _ in range(2):
            await tried_again(link)
        await asyncio.to_thread(own.start)
        await until(accept, 2, {AcceptResult.NEW})
        assert await faults(link) == []

    with_link(use, own.url)
    lost, *away, back = [line for line in said() if line["level"] != "debug"]
    assert (lost["event"], lost["level"]) == ("redis_connection_lost", "warning")
    assert {(line["event"], line["level"]) for line in away} == {("redis_unreachable", "error")}
    for line in (lost, *away):
        assert line["hint"] == CAUSES[line["code"]].hint
        assert line["error"]
    assert away == [line for line, _ in itertools.groupby(away)], "each cause is said once"
    assert back == {"event": "redis_reached", "level": "info"}


async def tried_again(link: RedisLink) -> None:
    """Wait until it has tried in vain once more to connect."""
    before, ends = link._not_connected, time.monotonic() + 120
    while link._not_connected is before:
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


def test_one_that_breaks_at_once_is_opened_anew_after_a_pause(
    server: Server, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(_: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        monkeypatch.setattr(redis_link, "RETRY_PERIOD", 10_000)
        await asyncio.to_thread(proxy.cut)
        with pytest.raises(redis_py.TimeoutError):
            await accept()

    with Proxy(server.port) as proxy:
        with_link(use, f"redis://127.0.0.1:{proxy.port}/0")


def test_a_primary_that_became_a_replica_gets_nothing_more(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        with own.client() as admin:
            admin.replicaof("127.0.0.1", "1")
            with pytest.raises(UnsafeRedis, match="replica"):
                await accept(2)
            assert any("replica" in fault for fault in await faults(link))
            admin.replicaof("NO", "ONE")
        await until(accept, 2, {AcceptResult.NEW})

    with_link(use, own.url)


def test_one_that_loses_events_from_now_on_gets_nothing_more(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        with own.client() as admin:
            admin.config_set("appendonly", "no")
            assert any("append-only" in fault for fault in await faults(link))
            with pytest.raises(UnsafeRedis):
                await accept(2)
            admin.config_set("appendonly", "yes")
            assert await faults(link) == []
        assert await accept(2) is AcceptResult.NEW

    with_link(use, own.url)
    own.process.kill()  # it would first finish writing its new file


def test_it_looks_again_also_when_nobody_asks(
    new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heroku, for one, has no probe that would ask `/readyz`."""
    monkeypatch.setattr(findings, "PERIOD", 0.1)
    own = new_server()

    async def becomes(link: RedisLink, kind: type[Exception] | None) -> None:
        async with asyncio.timeout(15):
            while type(link.trouble) is not (kind or type(None)):
                await asyncio.sleep(0.02)

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        with own.client() as admin:
            for number in (2, 3):
                admin.config_set("maxmemory-policy", "allkeys-lru")
                await becomes(link, UnsafeRedis)
                with pytest.raises(UnsafeRedis):
                    await accept(number)
                admin.config_set("maxmemory-policy", "noeviction")
                await becomes(link, None)
        assert await accept(2) is AcceptResult.NEW

    with_link(use, own.url)


@pytest.mark.parametrize("command", ["evalsha", "rpush", "hset"])
def test_a_right_that_is_taken_and_given_back(
    new_server: Callable[..., Server], command: str
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        assert await faults(link) == []
        with own.client() as admin:
            admin.execute_command("ACL", "SETUSER", "some", f"-{command}")
            assert any("(NOPERM)" in fault for fault in await faults(link))
            with pytest.raises(redis_py.RedisError):
                await accept(2)
            admin.execute_command("ACL", "SETUSER", "some", f"+{command}")
            assert await faults(link) == []
        assert await accept(3) is AcceptResult.NEW

    with own.client() as admin:
        admin.execute_command("ACL", "SETUSER", "some", "on", "nopass", "~*", "+@all")
    with_link(use, own.url.replace("//", "//some:x@"))


def test_what_redis_does_not_tell_is_looked_at_again_and_again(
    new_server: Callable[..., Server], said: Said
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await faults(link) == []
        with own.client() as admin:
            admin.config_set("maxmemory-policy", "allkeys-lru")
            for _ in range(2):
                assert any("evicts keys" in fault for fault in await faults(link))
            with pytest.raises(UnsafeRedis):
                await accept()
            admin.config_set("maxmemory-policy", "noeviction")
            assert await faults(link) == []
        assert await accept() is AcceptResult.NEW

    with Imitation(own.port, maxmemory_policy=None) as imitation:
        with_link(use, f"redis://127.0.0.1:{imitation.port}/0")
    unsafe, reached = (line for line in said() if line["level"] != "debug")
    assert (unsafe["event"], reached["event"]) == ("redis_unsafe", "redis_reached")
    assert any("evicts keys" in fault for fault in unsafe["faults"])


def test_a_failover_to_one_that_keeps_nothing(new_server: Callable[..., Server]) -> None:
    own, other = new_server(), new_server("--appendonly", "no")

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        proxy.target = other.port
        await asyncio.to_thread(proxy.cut)
        with pytest.raises(UnsafeRedis):
            await accept(2)
        assert any("append-only" in fault for fault in await faults(link))

    with Proxy(own.port) as proxy:
        with_link(use, f"redis://127.0.0.1:{proxy.port}/0")


def test_looking_costs_a_delivery_no_command(
    server: Server, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "PERIOD", 10_000)  # else it looks meanwhile on a busy machine

    def calls() -> dict[str, int]:
        stats = redis.info("commandstats")
        return {name: each["calls"] for name, each in stats.items()}

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept(1000) is AcceptResult.NEW
        before = calls()
        for number in range(20):
            assert await accept(number) is AcceptResult.NEW
        after = calls()
        assert after["cmdstat_evalsha"] - before["cmdstat_evalsha"] == 20
        asked = {"cmdstat_config|get", "cmdstat_role", "cmdstat_script|load"}
        assert {name for name in asked if after.get(name) != before.get(name)} == set()

    with_link(use, server.url)


def test_short_of_memory_what_is_known_is_still_acknowledged(
    new_server: Callable[..., Server],
) -> None:
    own = new_server()

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept() is AcceptResult.NEW
        with own.client() as admin:
            admin.config_set("maxmemory", int(admin.info("memory")["used_memory"] * 1.1))
            assert any("memory" in fault for fault in await faults(link))
            assert await accept() is AcceptResult.PENDING
            assert await accept(2) is AcceptResult.MEMORY_SHORT
            admin.config_set("maxmemory", 0)
            assert await faults(link) == []
        assert await accept(2) is AcceptResult.NEW

    with_link(use, own.url)


def test_all_who_ask_at_once_are_told(new_server: Callable[..., Server]) -> None:
    own = new_server()

    async def all_of_them(link: RedisLink) -> list[bool]:
        told = await asyncio.gather(*(faults(link) for _ in range(5)))
        return [bool(each) for each in told]

    async def use(link: RedisLink, accept: Accept) -> None:
        assert await all_of_them(link) == [False] * 5
        own.freeze()
        assert await all_of_them(link) == [True] * 5
        own.thaw()
        await until(accept, 1, {AcceptResult.NEW, AcceptResult.PENDING})
        assert await all_of_them(link) == [False] * 5

    with_link(use, own.url)


def test_above_the_limit(server: Server, redis: Redis) -> None:
    async def use(link: RedisLink, accept: Accept) -> None:
        assert await accept(1) is AcceptResult.NEW
        assert await accept(2) is AcceptResult.FULL
        assert await accept(1) is AcceptResult.PENDING
        assert any("INBOX_LIMIT" in fault for fault in await faults(link))

    with_link(use, server.url, inbox_limit=1)

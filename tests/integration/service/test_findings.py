"""What is known of a Redis, on real servers, some of which say less of themselves than they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from service import connection, findings
from service.findings import Finding
from service.inbox import Inbox, asking
from service.redis_errors import UnsafeRedis
from service.settings import VOUCHABLE, Settings
from tests.conftest import Server
from tests.imitation import Imitation

SILENT = dict.fromkeys(("aof_enabled", "maxmemory_policy", "role", "used_memory", "maxmemory"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def look(url: str, **changes: object) -> dict[str, Finding]:
    settings = Settings(redis_url=url, **changes)
    with connection.connect(settings) as client:
        found = findings.look(asking(client), settings, for_workers=True).found
        return {each.name: each for each in found}


def states(found: dict[str, Finding]) -> dict[str, str]:
    """What is not good."""
    return {name: each.state for name, each in found.items() if each.state != "good"}


def limited(server: Server, *rules: str) -> str:
    """Return a URL for a user who may do all but what the rules take."""
    user = ("ACL", "SETUSER", "some", "on", ">word", "~*", "&*")
    with server.client() as admin:
        admin.execute_command(*user, "+@all")
        for rule in rules:
            with suppress(ResponseError):  # a command that this server does not know
                admin.execute_command(*user, rule)
    return f"redis://some:word@127.0.0.1:{server.port}/0"


def imitate(stack: ExitStack, port: int, url: str = "", **changes: str | None) -> str:
    proxy = stack.enter_context(Imitation(port, **changes))
    return (url or f"redis://127.0.0.1:{port}/0").replace(f":{port}/", f":{proxy.port}/")


def test_one_that_is_fit(server: Server) -> None:
    assert states(look(server.url)) == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--appendonly", "no"), {"append-only": "bad"}),
        *(
            (("--maxmemory-policy", f"{which}-{how}"), {"eviction": "bad"})
            for which, how in [("allkeys", "lru"), ("allkeys", "lfu"), ("volatile", "ttl")]
        ),
    ],
)
@pytest.mark.parametrize("silent", [False, True], ids=["INFO says so", "another command says so"])
def test_what_loses_events(
    new_server: Callable[..., Server], stack: ExitStack, options, expected, silent: bool
) -> None:
    own = new_server(*options)
    changes = {"aof_enabled": None, "maxmemory_policy": None, "role": None} if silent else {}
    assert states(look(imitate(stack, own.port, **changes))) == expected


def test_what_nobody_tells_is_unknown_and_refused(server: Server, stack: ExitStack) -> None:
    url = limited(server, "-config", "-role", "-waitaof")
    found = look(imitate(stack, server.port, url, **SILENT))
    assert states(found) == dict.fromkeys(
        ("primary", "append-only", "eviction", "memory"), "unknown"
    )
    with pytest.raises(UnsafeRedis) as refused:
        findings.require(found.values())
    *sentences, last = str(refused.value).splitlines()
    assert len(sentences) == 4
    assert all("does not tell" in each for each in sentences)
    assert last.endswith("REDIS_VOUCH_FOR=primary,append-only,eviction,memory)")


@pytest.mark.parametrize("name", VOUCHABLE)
def test_what_is_vouched_for_counts_and_nothing_else(
    server: Server, stack: ExitStack, name: str
) -> None:
    url = limited(server, "-config", "-role", "-waitaof")
    url = imitate(stack, server.port, url, **SILENT)
    found = look(url, redis_vouch_for=(name,))
    assert found[name].vouched
    assert {each.name for each in found.values() if each.is_fault} == {*VOUCHABLE} - {name}
    findings.require(look(url, redis_vouch_for=VOUCHABLE).values())
    said = findings.warnings(found.values(), Settings(redis_vouch_for=(name,)))
    assert [each.partition(":")[0] for each in said] == [f"vouched for ({name})"]


def test_one_that_may_not_be_asked(server: Server) -> None:
    found = look(limited(server, "-info"))
    assert {"memory"} <= set(states(found)) <= {*VOUCHABLE, "version", "cluster", "connections"}
    assert not found["accepting"].is_fault


def test_vouching_makes_no_primary_of_a_replica(new_server: Callable[..., Server]) -> None:
    own = new_server()
    with own.client() as admin:
        admin.replicaof("127.0.0.1", "1")
    found = look(own.url, redis_vouch_for=VOUCHABLE)
    assert found["primary"].is_fault
    assert "READONLY" in found["accepting"].text


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"redis_version": "6.0.14"}, "bad"),
        ({"redis_version": "6.2.14"}, "bad"),
        ({"redis_version": "5.0"}, "bad"),
        ({"redis_version": "7.0.0"}, "good"),
        ({"redis_version": "10.1.0"}, "good"),
        ({"redis_version": "255.255.255"}, "good"),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.0"}, "bad"),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.0"}, "good"),
        ({"redis_version": "6.0.0", "valkey_version": "9.0.0"}, "good"),
        ({"redis_version": None}, "unknown"),
        ({"redis_version": "some"}, "unknown"),
    ],
)
def test_the_version(server: Server, stack: ExitStack, said, state: str) -> None:
    found = look(imitate(stack, server.port, **{"valkey_version": None, **said}))
    assert found["version"].state == state
    assert found["version"].is_fault == (state == "bad")
    if state == "bad":
        assert "or newer is needed, this is" in found["version"].text
        assert (said.get("valkey_version") or said["redis_version"]) in found["version"].text


@pytest.mark.parametrize("command", ["GETDEL", "BLMOVE", "LPOS", "HSETNX", "ZRANGE"])
def test_an_old_one_that_does_not_say_so(
    new_server: Callable[..., Server], stack: ExitStack, command: str
) -> None:
    own = new_server("--rename-command", command, "")
    found = look(imitate(stack, own.port, redis_version=None, valkey_version=None))
    assert found["version"].state == "unknown"
    assert found["commands"].text.startswith(f"{command}: this server does not know a command")


@pytest.mark.parametrize("command", ["evalsha", "hset", "rpush", "sadd", "script|load"])
@pytest.mark.usefixtures("redis")
def test_a_user_who_may_not_accept(server: Server, command: str) -> None:
    found = look(limited(server, f"-{command}"))
    assert "NOPERM" in found["accepting"].text
    with pytest.raises(UnsafeRedis, match="redis-acl"):
        findings.require(found.values())


@pytest.mark.parametrize("command", ["blmove", "getdel", "lpos", "hdel", "lindex"])
def test_a_user_who_may_accept_and_not_work(server: Server, command: str) -> None:
    found = look(limited(server, f"-{command}"))
    assert found["accepting"].state == "good"
    assert found["commands"].text.startswith(f"{command.upper()}: ")
    assert "NOPERM" in found["commands"].text


def test_a_user_of_other_keys(server: Server) -> None:
    found = look(limited(server, "resetkeys", "~iw:*"))
    assert "NOPERM" in found["accepting"].text


def test_a_cluster_and_a_sentinel(
    new_server: Callable[..., Server], server: Server, stack: ExitStack
) -> None:
    own = new_server("--cluster-enabled", "yes")
    assert "cluster" in look(own.url)["cluster"].text
    # It does not say so: trying to accept does.
    found = look(imitate(stack, own.port, cluster_enabled=None))
    assert "cluster" in found["accepting"].text
    assert found["accepting"].is_fault
    found = look(imitate(stack, server.port, redis_mode="sentinel", server_mode="sentinel"))
    assert found["sentinel"].is_fault


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [("maxmemory", 1, "OOM"), ("min-replicas-to-write", 1, "NOREPLICAS")],
)
def test_what_passes_is_no_reason_not_to_start(
    new_server: Callable[..., Server], setting: str, value: int, word: str
) -> None:
    own = new_server()
    with own.client() as admin:
        admin.config_set(setting, value)
    found = look(own.url)
    assert f"({word})" in found["accepting"].text
    assert findings.faults(found.values())
    findings.require(found.values())


def test_how_much_room_there_is(new_server: Callable[..., Server]) -> None:
    own = new_server("--maxmemory", "50mb", "--maxclients", "40")
    found = look(own.url)
    said = re.fullmatch(
        r"\d MB in use of 50 MB: room for about (\d+),\d+ events", found["memory"].text
    )
    assert 35 < int(said[1]) <= 41
    assert re.fullmatch(
        r"\d of 40 in use: room for one web service and 6 workers", found["connections"].text
    )
    assert found["inbox"].text == (
        "takes up to 20,971 pending events (as fits its maxmemory; INBOX_LIMIT sets another number)"
    )
    assert (
        "takes up to 7 pending events (INBOX_LIMIT)" in look(own.url, inbox_limit=7)["inbox"].text
    )


def test_too_few_connections_are_said_and_no_reason_to_refuse(
    new_server: Callable[..., Server],
) -> None:
    found = look(new_server("--maxclients", "16").url)
    assert "too few for one web service and a worker" in found["connections"].text
    assert not found["connections"].is_fault


def test_nothing_is_tried_in_a_cluster_unless_it_does_not_tell(
    one_shard: Server, stack: ExitStack
) -> None:
    assert states(look(one_shard.url)) == {"cluster": "bad"}
    with one_shard.client() as client:
        assert client.dbsize() == 0, "what is tried could not be taken out again"
    found = look(imitate(stack, one_shard.port, cluster_enabled=None))
    with one_shard.client() as client:
        assert client.zcard("iw:due") == client.llen("rq:queue:identity") == 0
    assert found["cluster"].state == "unknown"
    assert "this Redis is a cluster" in found["accepting"].text
    with pytest.raises(UnsafeRedis):
        findings.require(found.values())


def test_looking_leaves_no_event_behind(redis: Redis, server: Server) -> None:
    redis.rpush("rq:queue:identity", "evt_1-1")
    before = {"rq:queue:identity"}
    for _ in range(3):
        look(server.url)
    after = {key.decode() for key in redis.keys("*")}
    assert {name for name in after - before if not name.startswith("iw:answer:")} == {
        "iw:seq",
        "rq:queues",
    }
    assert redis.lrange("rq:queue:identity", 0, -1) == [b"evt_1-1"]


def test_a_trial_that_failed_half_way_leaves_nothing_either(server: Server, redis: Redis) -> None:
    look(limited(server, "-sadd"))
    look(limited(server, "-rpush"))
    assert not redis.keys("iw:evt:*") + redis.keys("rq:job:*") + redis.keys("iw:due")


def test_nobody_sees_the_trial(server: Server, redis: Redis) -> None:
    inbox = Inbox(redis)
    for _ in range(20):
        look(server.url)
        assert inbox.claim() == []
    assert inbox.sweep().woken == 0

"""`service.findings`: what each thing that Redis says of itself means."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from service.findings import Finding, completed, judge, parse_info, questions, require, warnings
from service.redis_errors import UnsafeRedis
from service.settings import VOUCHABLE, Settings

GOOD = {
    "redis_version": "7.0.0",
    "cluster_enabled": "0",
    "role": "master",
    "aof_enabled": "1",
    "maxmemory_policy": "noeviction",
    "used_memory": str(10 << 20),
    "maxmemory": str(50 << 20),
    "connected_clients": "3",
    "maxclients": "40",
}
SHORT = {"used_memory": str(40 << 20)}


def found(changed: dict[str, str], **settings: Any) -> dict[str, Finding]:
    judged = judge(GOOD | changed, Settings(**settings), accepting=None)
    return {each.name: each for each in judged}


@pytest.mark.parametrize(
    ("changed", "settings", "name", "state", "words"),
    [
        ({"valkey_version": "7.2.0"}, {}, "version", "good", "Valkey 7.2.0"),
        ({"valkey_version": "7.1.9"}, {}, "version", "bad", "Redis 7.0 or Valkey 7.2 or newer"),
        ({"cluster_enabled": ""}, {}, "cluster", "unknown", "does not tell"),
        ({"role": "slave"}, {}, "primary", "bad", "read-only replica"),
        ({"aof_enabled": ""}, {}, "append-only", "unknown", "Ask its provider"),
        ({"maxmemory_policy": "volatile-ttl"}, {}, "eviction", "bad", "(maxmemory-policy volatile"),
        (SHORT, {}, "memory", "bad", "above four fifths"),
        ({"maxmemory": "0"}, {}, "memory", "good", "10 MB in use, of no limit (maxmemory)"),
        ({"maxmemory": ""}, {}, "memory", "unknown", "set INBOX_LIMIT to what fits"),
        ({"maxmemory": "0"}, {}, "inbox", "good", "100,000 pending events (without a maxmemory"),
        (
            *({"maxmemory": ""}, {"redis_vouch_for": ("memory",)}, "inbox", "good"),
            "100,000 pending events (without a maxmemory",
        ),
        ({}, {}, "inbox", "good", "20,971 pending events (as fits its maxmemory"),
        ({}, {"inbox_limit": 7}, "inbox", "good", "up to 7 pending events (INBOX_LIMIT)"),
        ({}, {}, "connections", "good", "3 of 40 in use: room for one web service and 6 workers"),
        ({}, {"web_concurrency": 5}, "connections", "good", "and 3 workers"),
        ({}, {"worker_concurrency": 1}, "connections", "good", "and 8 workers"),
        ({"maxclients": "16"}, {}, "connections", "good", "too few for one web service"),
        ({"maxclients": ""}, {}, "connections", "unknown", "does not tell how many"),
    ],
)
def test_each_is_judged_by_what_redis_says_and_what_is_set(
    changed, settings, name, state, words
) -> None:
    all_of_it = found(changed, **settings)
    finding = all_of_it[name]
    assert (finding.state, words in finding.text) == (state, True), finding.text
    bad = {each.name for each in all_of_it.values() if each.is_fault}
    assert bad == (
        {name} if state == "bad" or (state == "unknown" and name in VOUCHABLE) else set()
    )


@pytest.mark.parametrize("setting", ["accept_redis_loss", "redis_vouch_for"])
@pytest.mark.parametrize(
    ("changed", "name", "faulty"),
    [
        ({"aof_enabled": "0"}, "append-only", False),
        ({"aof_enabled": ""}, "append-only", False),
        ({"maxmemory_policy": "volatile-ttl"}, "eviction", False),
        ({"maxmemory_policy": ""}, "eviction", False),
        ({"used_memory": ""}, "memory", False),
        (SHORT, "memory", True),
        ({"role": ""}, "primary", False),
        ({"role": "slave"}, "primary", True),
    ],
)
def test_what_may_be_vouched_for_is_no_fault_then(changed, name, faulty, setting) -> None:
    assert found(changed)[name].is_fault
    given = {setting: True if setting == "accept_redis_loss" else (name,)}
    assert found(changed, **given)[name].is_fault == faulty


def test_a_refusal_names_all_that_lasts_and_how_to_vouch_for_what_one_may() -> None:
    changed = {"redis_version": "6.2.1", "aof_enabled": "0", "maxmemory_policy": ""} | SHORT
    with pytest.raises(UnsafeRedis) as refused:
        require(found(changed).values())
    *lines, last = str(refused.value).splitlines()
    assert len(lines) == 3, "memory gets free again"
    assert last.endswith("REDIS_VOUCH_FOR=append-only,eviction)")
    for changed in ({"redis_version": "6.2.1"}, {"role": "slave"}):
        with pytest.raises(UnsafeRedis) as refused:
            require(found(changed).values())
        assert "REDIS_VOUCH_FOR" not in str(refused.value)
    require(found(SHORT).values())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ["remove it"]),
        ({"aof_enabled": "0"}, ["append-only", "write REDIS_VOUCH_FOR=append-only in"]),
        (
            {"aof_enabled": "0", "role": ""},
            ["primary", "append-only", "write REDIS_VOUCH_FOR=primary,append-only in"],
        ),
    ],
)
def test_the_older_setting_gives_way_to_what_it_vouches_for_here(changed, words) -> None:
    settings = Settings(accept_redis_loss=True)
    said = warnings(found(changed, accept_redis_loss=True).values(), settings)
    assert len(said) == len(words)
    assert all(each in line for each, line in zip(words, said, strict=True))
    vouching = Settings(redis_vouch_for=VOUCHABLE)
    assert len(warnings(found(changed, redis_vouch_for=VOUCHABLE).values(), vouching)) == (
        len(words) - 1
    )


AOF, WAITAOF = ("CONFIG", "GET", "appendonly"), ("WAITAOF", "1", "0", "1")
POLICY, ROLE = ("CONFIG", "GET", "maxmemory-policy"), ("ROLE",)
REFUSED = redis.exceptions.NoPermissionError("this user has no permissions")
DISABLED = redis.ResponseError("WAITAOF cannot be used when appendonly is disabled.")


@pytest.mark.parametrize(
    ("told", "name", "value"),
    [
        ({AOF: [b"appendonly", b"yes"], WAITAOF: DISABLED}, "aof_enabled", "1"),
        ({AOF: {b"appendonly": b"no"}, WAITAOF: [1, 0]}, "aof_enabled", "0"),
        ({AOF: REFUSED, WAITAOF: DISABLED}, "aof_enabled", "0"),
        ({AOF: REFUSED, WAITAOF: [1, 0]}, "aof_enabled", "1"),
        ({AOF: [], WAITAOF: [0, 0]}, "aof_enabled", "1"),
        ({AOF: REFUSED, WAITAOF: REFUSED}, "aof_enabled", ""),
        ({POLICY: [b"maxmemory-policy", b"noeviction"]}, "maxmemory_policy", "noeviction"),
        ({POLICY: REFUSED}, "maxmemory_policy", ""),
        ({ROLE: [b"master", 0, []]}, "role", "master"),
        ({ROLE: [b"slave", b"10.0.0.1", 6379]}, "role", "slave"),
        ({ROLE: REFUSED}, "role", ""),
    ],
)
def test_what_info_lacks_is_asked_and_the_first_that_tells_counts(told, name, value) -> None:
    silent = {each: text for each, text in GOOD.items() if each != name}
    for info in (silent, silent | {name: ""}):
        assert questions(info) == list(told)
        assert completed(info, told).get(name, "") == value
    assert questions(GOOD) == []
    assert completed(GOOD, told) == GOOD


def test_info_is_read_as_lines_and_a_refusal_says_nothing() -> None:
    assert parse_info(b"# Server\r\nrole:master\r\nname:a:b\r\nnone\r\n") == {
        "role": "master",
        "name": "a:b",
    }
    assert parse_info(REFUSED) == {}

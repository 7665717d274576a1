"""The fixtures of all suites: the server, and the search for the canary."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = "ZyxPlanted7Q"
PACKED = zlib.compress(f"a traceback quoting {PLANTED}".encode())


def test_it_is_configured_as_the_service_demands(redis) -> None:
    assert redis.info()["aof_enabled"] == 1
    assert redis.info()["maxmemory_policy"] == "noeviction"


def test_data_survive_a_restart(new_server) -> None:
    server = new_server()
    with server.client() as client:
        client.set("a", 1)
        server.stop()
        server.start()
        assert client.get("a") == b"1"


@pytest.mark.parametrize(
    "plant",
    [
        lambda client: client.set("key", f"to {PLANTED.upper()}, with love"),
        lambda client: client.set(f"user:{PLANTED}", 1),
        lambda client: client.hset("hash", PLANTED, 1),
        lambda client: client.hset("hash", "data", PACKED),
        lambda client: client.rpush("list", "x", PLANTED),
        lambda client: client.sadd("set", PLANTED),
        lambda client: client.zadd("zset", {PLANTED: 1}),
        lambda client: client.xadd("stream", {"exc_string": base64.b64encode(PACKED)}),
    ],
    ids=["value", "key", "field", "packed", "list", "set", "zset", "stream"],
)
def test_a_planted_marker_is_found_in_a_key(redis, traces, plant) -> None:
    plant(redis)
    with pytest.raises(pytest.fail.Exception, match=r"the (name of the )?key b'"):
        traces.require_absent(PLANTED)


@pytest.mark.parametrize("value", [PLANTED, PACKED], ids=["plain", "packed"])
def test_a_planted_marker_is_found_in_the_append_only_file(redis, traces, value) -> None:
    redis.set("key", value)
    redis.delete("key")
    with pytest.raises(pytest.fail.Exception, match="the append-only file"):
        traces.require_absent(PLANTED)


def test_a_planted_marker_is_found_in_a_log(processes, traces) -> None:
    process, _ = processes.python("-c", f"print('hello {PLANTED}')")
    assert process.wait(120) == 0
    with pytest.raises(pytest.fail.Exception, match=r"python.*\.log"):
        traces.require_absent(PLANTED)


LEAKY = """
import logging

def test_prints(canary):
    print("hello", canary)

def test_logs(canary):
    logging.getLogger("workers").warning("failed for %s", canary)

def test_stores(redis, canary):
    redis.set("name", canary)

def test_keeps_it(redis, canary):
    redis.set("name", hash(canary))
"""


def test_a_test_that_leaves_the_canary_fails(tmp_path: Path) -> None:
    leaky = tmp_path / "test_leaky.py"
    leaky.write_text(LEAKY)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml"),
            *("--rootdir", ROOT, "-p", "tests.conftest", "-p", "no:cacheprovider", leaky),
        ],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert "4 passed, 3 errors" in run.stdout
    assert re.search("stands where no personal data may be: .*append-only.*key b'name'", run.stdout)
    said = re.findall("^ZyxCanary7Q stands in what the test printed", run.stdout, re.MULTILINE)
    assert len(said) == 2

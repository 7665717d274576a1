"""Every kind of Redis that a platform gives: all roles do what docs/deploy.md says."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from redis.exceptions import ResponseError

ROOT = Path(__file__).parents[3]
CANARY = "ZyxCanary7Q"
SECRET = f"whsec_{CANARY}q7H2kP9sXv4LbN8wRt3YcZ6m"
GIVEN = {"STRIPE_WEBHOOK_SECRET": SECRET, "STRIPE_API_KEY": f"rk_test_{CANARY}"}
GIVEN |= {"STRIPE_API_BASE": "http://127.0.0.1:1", "WEB_CONCURRENCY": "1"}

PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("test_redis_kinds.py -->")[2].partition("\n\n")[0]
CELLS = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|(.*)\|$", TABLE, re.MULTILINE)
ROWS = {name: (web, worker, said.strip("` ")) for name, web, worker, said in CELLS if web != "web"}


@pytest.fixture
def make(request, new_server, processes, free_port, wait_until, behind_tls):
    """Return what makes the Redis of each row: the environment that leads to it."""

    def at(port: int, user: str = "", scheme: str = "redis", **more: str) -> dict[str, str]:
        return {"REDIS_URL": f"{scheme}://{user}127.0.0.1:{port}/0", **more}

    def configured(*settings: str) -> int:
        server = new_server()
        with server.client() as admin:
            admin.execute_command("CONFIG", "SET", *settings)
        return server.port

    def imitation(port: int, *changes: str) -> int:
        _, log = processes.python("-m", "tests.imitation", str(port), *changes)
        wait_until(lambda: log.read_text().endswith("\n"))
        return int(log.read_text())

    def limited(*rules: str) -> int:
        server = new_server()
        user = ("ACL", "SETUSER", "some", "on", f">{CANARY}", "~*", "&*")
        with server.client() as admin:
            admin.execute_command(*user, "+@all")
            for rule in rules:
                with suppress(ResponseError):  # a command that this server does not know
                    admin.execute_command(*user, rule)
        return server.port

    def tls() -> int:
        return behind_tls(new_server().port)[0]

    def trusted(name: str, days: int = 2) -> dict[str, str]:
        port, certificate = behind_tls(new_server().port, name, days)
        return {"REDIS_URL": f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"}

    def replica() -> int:
        server = new_server()
        with server.client() as admin:
            admin.replicaof("127.0.0.1", "1")
        return server.port

    def taken() -> int:
        server = new_server("--maxclients", "1")
        held = server.client()
        held.ping()
        HELD.append(held)
        return server.port

    some = f"some:{CANARY}@"
    lru = ("--maxmemory-policy", "allkeys-lru", "--rename-command", "CONFIG", "")
    silent = ("aof_enabled=", "maxmemory_policy=", "role=", "used_memory=", "maxmemory=")
    no_file = ("--appendonly", "no")
    return {
        "with `appendonly yes` and `noeviction`": lambda: at(new_server().port),
        "a cluster": lambda: at(new_server("--cluster-enabled", "yes").port),
        "a cluster of one shard": lambda: at(request.getfixturevalue("one_shard").port),
        "a Sentinel": lambda: at(
            imitation(new_server().port, "redis_mode=sentinel", "server_mode=sentinel")
        ),
        "Redis 6": lambda: at(
            imitation(new_server().port, "redis_version=6.0.14", "valkey_version=")
        ),
        "no version told, and a command missing": lambda: at(
            imitation(
                new_server("--rename-command", "BLMOVE", "").port,
                *("redis_version=", "valkey_version="),
            )
        ),
        "no append-only file": lambda: at(new_server(*no_file).port),
        "no append-only file, and `REDIS_VOUCH_FOR=append-only`": lambda: at(
            new_server(*no_file).port, REDIS_VOUCH_FOR="append-only"
        ),
        "evicts keys": lambda: at(new_server(*lru[:2]).port),
        "does not tell whether it evicts": lambda: at(
            imitation(new_server(*lru).port, "maxmemory_policy=")
        ),
        "does not tell, and `REDIS_VOUCH_FOR=eviction`": lambda: at(
            imitation(new_server(*lru[2:]).port, "maxmemory_policy="), REDIS_VOUCH_FOR="eviction"
        ),
        "tells nothing of itself": lambda: at(
            imitation(limited("-config", "-role", "-waitaof"), *silent), some
        ),
        "a replica": lambda: at(replica()),
        "a user without `EVALSHA`": lambda: at(limited("-evalsha"), some),
        "a user without `BLMOVE`": lambda: at(limited("-blmove"), some),
        "full": lambda: at(configured("maxmemory", "1")),
        "too few replicas (`min-replicas-to-write`)": lambda: at(
            configured("min-replicas-to-write", "1")
        ),
        "the password is wrong": lambda: at(new_server().port, some),
        "a password is missing": lambda: at(protected(new_server())),
        "no connection left": lambda: at(taken()),
        "takes 20 connections": lambda: at(new_server("--maxclients", "20").port),
        "TLS with a certificate nobody trusts": lambda: at(tls(), scheme="rediss"),
        "the same, and `REDIS_TLS_VERIFY=0`": lambda: at(
            tls(), scheme="rediss", REDIS_TLS_VERIFY="0"
        ),
        "TLS with a certificate that its URL trusts": lambda: trusted("IP:127.0.0.1"),
        "TLS with a certificate for another name": lambda: trusted("DNS:redis.invalid"),
        "TLS with a certificate that has expired": lambda: trusted("IP:127.0.0.1", -1),
        "TLS, and a URL without": lambda: at(tls()),
        "no TLS, and a URL with": lambda: at(new_server().port, scheme="rediss"),
        "nothing listens there": lambda: at(free_port(), f":{CANARY}@"),
        "no such host": lambda: {"REDIS_URL": f"redis://:{CANARY}@no-such-host.invalid:6379/0"},
    }


HELD = []
"""Connections that are kept open until the test ends."""


@pytest.fixture(autouse=True)
def let_go():
    yield
    while HELD:
        HELD.pop().close()


def protected(server) -> int:
    """Have a server ask for a password, but not the test itself."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "test", "on", "nopass", "~*", "&*", "+@all")
        admin.execute_command("ACL", "SETUSER", "default", "resetpass", f">{CANARY}")
    server.url = f"redis://test:x@127.0.0.1:{server.port}/0"
    return server.port


def test_the_page_has_every_kind(make) -> None:
    assert list(ROWS) == list(make)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % 12 == 0 else pytest.mark.walk)
        for number, name in enumerate(ROWS)
    ],
)
def test_what_the_page_says(name, make, processes, free_port, wait_until) -> None:
    web_does, worker_does, said = ROWS[name]
    port = free_port()
    env = GIVEN | make[name]() | {"PORT": str(port)}
    web, web_log = processes.python("-m", "service", "serve", env=env)
    worker, worker_log = processes.python("-m", "workers", "--no-periodic", env=env)

    if web_does == "refuses":
        assert web.wait(120) == 3
        assert refused(web_log.read_text(), said)
    else:
        wait_until(lambda: web.poll() is not None or ready(port) is not None)
        wait_until(lambda: (ready(port) or {}).get("ready") == (web_does == "ready"))
        if web_does == "503":  # after a time, when connecting has failed and not only taken long
            wait_until(lambda: said in "\n".join(ready(port)["faults"]))
        # Deliveries and readiness agree.
        assert deliver(port) == (200 if web_does == "ready" else 503)

    match worker_does:
        case "refuses":
            assert worker.wait(120) == 78
            assert refused(worker_log.read_text(), said)
        case "waits":
            wait_until(lambda: "redis_unreachable" in worker_log.read_text())
            line = next(x for x in worker_log.read_text().splitlines() if "redis_unreach" in x)
            told = json.loads(line)
            assert said in f"{told['hint']} ({told['code']})"
            assert worker.poll() is None
        case "runs":
            wait_until(lambda: "worker_started" in worker_log.read_text())

    if name != "no connection left" or web.poll() is None:
        checked = check(env)
        refuses = "refuses" in {web_does, worker_does}
        expected = 78 if refuses else 69 if worker_does == "waits" else 0
        assert checked.returncode == expected, checked.stderr
        assert said in checked.stdout + checked.stderr
        assert "Traceback" not in checked.stderr


@pytest.mark.parametrize("command", ["replay evt_1", "discard evt_1"])
def test_a_command_on_a_cluster_says_so(command, one_shard) -> None:
    done = service("events", *command.split(), env={"REDIS_URL": one_shard.url})
    assert done.returncode == 69
    assert "this Redis is a cluster" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_redis_that_closes_idle_connections(new_server, processes, free_port, wait_until) -> None:
    """As Azure's does after ten minutes."""
    server, port = new_server("--timeout", "1"), free_port()
    env = GIVEN | {"REDIS_URL": server.url, "PORT": str(port)}
    web, web_log = processes.python("-m", "service", "serve", env=env)
    worker, log = processes.python("-m", "workers", env=env)
    wait_until(lambda: (ready(port) or {}).get("ready"))
    wait_until(lambda: "worker_ready" in log.read_text())
    for number in range(2):
        time.sleep(4)  # Redis looks once a second for those to close
        assert deliver(port, f"evt_{number}") == 200
        wait_until(lambda n=number: f'"event_id":"evt_{n}"' in log.read_text())
    assert "redis_connection_lost" in web_log.read_text()
    assert (web.poll(), worker.poll()) == (None, None)


def refused(text: str, said: str) -> bool:
    assert text.count("refusing to start: ") == 1, text
    assert "Traceback" not in text
    return said in text


def check(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return service("check", env=env)


def service(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def ready(port: int) -> dict | None:
    with suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=120).json()
    return None


def deliver(port: int, event: str = "evt_1") -> int:
    """Deliver an event as Stripe does; the status of the answer."""
    now = int(time.time())
    body = json.dumps(
        {
            "id": event,
            "object": "event",
            "created": now,
            "livemode": False,
            "type": "identity.verification_session.verified",
            "data": {"object": {"id": "vs_1", "object": "identity.verification_session"}},
        }
    )
    digest = hmac.new(SECRET.encode(), f"{now}.{body}".encode(), hashlib.sha256).hexdigest()
    return requests.post(
        f"http://127.0.0.1:{port}/webhooks/stripe",
        data=body,
        headers={"Stripe-Signature": f"t={now},v1={digest}"},
        timeout=120,
    ).status_code

"""What platforms run: `serve`, and the checks before a start and during the run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[3]
SECRET = "whsec_ZyxCanary7Qq7H2kP9sXv4LbN8wRt3YcZ6m"
KEY = "rk_test_ZyxCanary7Q"
WALL = "http://127.0.0.1:9"  # a proxy that is not there: whoever uses it gets nowhere
COMPLETE = {"STRIPE_WEBHOOK_SECRET": SECRET, "STRIPE_API_KEY": KEY}


@pytest.fixture
def run(tmp_path):
    """Run a command to its end in a given environment."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            kept[name] = WALL
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=kept | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


@pytest.fixture
def serve(processes, wait_until, server, free_port):
    """Start the web process as the Procfile does, and wait until it answers."""

    def serve(**env: str):
        port = free_port()
        given = {"PORT": str(port), "REDIS_URL": server.url, **COMPLETE, **env}
        process, log = processes.python("-m", "service", "serve", env=given)

        wait_until(lambda: process.poll() is not None or answers(port))
        assert process.poll() is None, log.read_text()
        return process, port

    return serve


def answers(port: int) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=120).ok
    return False


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("", 2),
        ("\r\n", 2),
        ('"3"', 3),
        (" 1 ", 1),
        ("auto", len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
    ],
    ids=["empty", "blank", "quoted", "spaces", "auto"],
)
def test_how_many_processes_receive(serve, wait_until, children, value, count) -> None:
    process, _ = serve(WEB_CONCURRENCY=value)
    wait_until(lambda: len(children(process.pid)) == count)


@pytest.mark.walk
def test_gunicorn_starts_itself_anew_on_sigusr2(serve, wait_until, children) -> None:
    process, port = serve(WEB_CONCURRENCY="1", DRAIN_SECONDS="0")

    def masters() -> list[int]:
        return [pid for pid in children(process.pid) if children(pid)]

    process.send_signal(signal.SIGUSR2)
    wait_until(masters)
    (successor,) = masters()
    try:
        process.terminate()
        assert process.wait(120) == 0
        assert answers(port)
    finally:
        os.kill(successor, signal.SIGTERM)
        wait_until(lambda: not answers(port))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_where_shared_memory_is_read_only(processes, wait_until, free_port, server) -> None:
    port = free_port()
    processes.start(
        *("unshare", "--mount", "/bin/sh", "-c"),
        f"mount -t tmpfs -o ro none /dev/shm && exec {sys.executable} -m service serve",
        env={"PORT": str(port), "REDIS_URL": server.url, "WEB_CONCURRENCY": "1", **COMPLETE},
    )
    wait_until(lambda: answers(port))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY: Input should be greater than or equal to 1"),
        ({"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY: Input should be a valid integer"),
        ({"PORT": "http"}, "PORT: Input should be a valid integer"),
        ({"STRIPE_WEBHOOK_SECRET": "\n"}, "STRIPE_WEBHOOK_SECRET: missing. Set it to"),
    ],
    ids=["none", "word", "port", "secret"],
)
def test_serve_refuses_in_words(run, env, line) -> None:
    done = run("service", "serve", **COMPLETE | {"REDIS_URL": "redis://127.0.0.1:1"} | env)
    assert done.returncode == 78
    assert done.stderr.startswith("refusing to start: the settings are not complete:\n")
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_the_health_of_web(serve, run) -> None:
    process, port = serve(WEB_CONCURRENCY="1")
    assert run("service", "health", PORT=f'"{port}"').returncode == 0
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    done = run("service", "health", PORT=str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"no answer on port {port} (ConnectionRefusedError)\n"


@pytest.mark.sample(2)
@pytest.mark.parametrize("role", [(), ("periodic",)], ids=["worker", "periodic"])
@pytest.mark.parametrize("redis", ["there", "away"])
def test_the_health_of_workers(processes, wait_until, run, server, tmp_path, role, redis) -> None:
    assert run("workers", "health").stderr == "not healthy: the last beat was never\n"
    url = server.url if redis == "there" else "redis://127.0.0.1:1/0"
    env = {"STRIPE_API_KEY": KEY, "REDIS_URL": url, "TMPDIR": str(tmp_path)}
    env["STRIPE_API_BASE"] = "http://127.0.0.1:1"
    process, _ = processes.python("-m", "workers", *role, env=env)
    wait_until(lambda: run("workers", "health").returncode == 0)
    process.send_signal(signal.SIGSTOP)
    (beat,) = tmp_path.glob("identity-webhooks-workers-*")
    past = beat.stat().st_mtime - 300  # five minutes later, that is
    os.utime(beat, (past, past))
    done = run("workers", "health")
    assert done.returncode == 1
    said = re.fullmatch(r"not healthy: the last beat was (\d+) s ago\n", done.stderr)
    assert said
    assert 300 <= int(said[1]) < 400
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: run("workers", "health").returncode == 0)


class TestCheck:
    """`python -m service check`, which Heroku runs before each release."""

    def test_all_is_well(self, run, server) -> None:
        done = run("service", "check", REDIS_URL=server.url, **COMPLETE)
        assert (done.returncode, done.stderr) == (0, "")
        names = [line.split()[0] for line in done.stdout.splitlines()]
        assert names == [
            *("settings", "version", "cluster", "primary", "append-only", "eviction", "memory"),
            *("inbox", "connections", "accepting", "commands"),
        ]
        found = json.loads(
            run("service", "check", "--json", REDIS_URL=server.url, **COMPLETE).stdout
        )
        assert {each["state"] for each in found} == {"good"}
        assert [each["name"] for each in found] == names[1:]

    def test_the_faults_of_both_roles(self, run) -> None:
        done = run("service", "check", STRIPE_LIVEMODE="0")
        assert done.returncode == 78
        assert "STRIPE_WEBHOOK_SECRET: missing" in done.stderr
        assert "STRIPE_API_KEY: missing" in done.stderr

    @pytest.mark.parametrize(
        ("role", "given"), [("web", "STRIPE_WEBHOOK_SECRET"), ("worker", "STRIPE_API_KEY")]
    )
    def test_one_role_needs_its_own_only(self, run, server, role, given) -> None:
        env = {given: COMPLETE[given], "STRIPE_LIVEMODE": "0", "REDIS_URL": server.url}
        assert run("service", "check", "--role", role, **env).returncode == 0

    def test_a_redis_that_loses_events(self, run, new_server) -> None:
        url = new_server("--appendonly", "no").url
        done = run("service", "check", REDIS_URL=url, **COMPLETE)
        assert done.returncode == 78
        assert "set `appendonly yes`" in done.stderr
        assert "REDIS_VOUCH_FOR=append-only)" in done.stderr
        vouched = run("service", "check", REDIS_URL=url, REDIS_VOUCH_FOR="append-only", **COMPLETE)
        assert vouched.returncode == 0
        assert "append-only  vouched for: Redis writes no append-only file" in vouched.stdout

    @pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
    def test_the_setting_that_dropped_all_checks(self, run, new_server, form) -> None:
        url = new_server("--appendonly", "no").url
        done = run("service", "check", *form, REDIS_URL=url, ACCEPT_REDIS_LOSS="1", **COMPLETE)
        assert done.returncode == 0
        assert "ACCEPT_REDIS_LOSS is deprecated" in done.stderr
        assert "write REDIS_VOUCH_FOR=append-only in its place" in done.stderr

    def test_no_redis(self, run) -> None:
        done = run("service", "check", REDIS_URL="redis://127.0.0.1:1/0", **COMPLETE)
        assert done.returncode == 69
        assert done.stderr == (
            "Redis: nothing listens there: check host and port in REDIS_URL, and that Redis runs"
            " there (ECONNREFUSED)\n"
        )

"""The Procfile as Heroku runs it: its own environment, and a Redis like Heroku's.

The virtual environment is made of requirements.txt alone, the variables are those that Heroku and
app.json set and no others, and Redis speaks TLS with a self-signed certificate, asks for a password
and takes 40 connections, as the plan of app.json does. Stripe's address is the one addition.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[3]
CANARY = "ZyxCanary7Q"
PASSWORD = f"p{CANARY}"
KEY = f"rk_test_{CANARY}"
SECRET = f"whsec_{CANARY}q7H2kP9sXv4LbN8wRt3YcZ6m"
CONNECTIONS = 40
SESSIONS = 150
APP = json.loads((ROOT / "app.json").read_text())
PROCFILE = dict(re.findall(r"^(\w+): *(.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE))


pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.skipif("CI" not in os.environ, reason="it installs packages: with CI=1"),
]


@pytest.fixture(scope="module")
def slug(tmp_path_factory) -> Path:
    """What Heroku's buildpack makes: an environment of requirements.txt and nothing else."""
    folder = tmp_path_factory.mktemp("slug")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=250)
    subprocess.run(
        [folder / "bin/pip", "install", "-q", "--require-hashes", "-r", ROOT / "requirements.txt"],
        check=True,
        timeout=300,
    )
    return folder


@pytest.fixture
def redis_server(new_server, behind_tls):
    """A Redis as the plan gives it: the server, and the URL for Heroku's REDIS_URL."""
    server = new_server("--maxmemory", "50mb", "--maxclients", str(CONNECTIONS + 1))
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "test", "on", "nopass", "~*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "resetpass", f">{PASSWORD}")
    server.url = f"redis://test:none@127.0.0.1:{server.port}/0"  # the test's own connection
    port, _ = behind_tls(server.port)
    return server, f"rediss://:{PASSWORD}@127.0.0.1:{port}"


def test_the_procfile(slug, redis_server, processes, free_port, wait_until) -> None:
    server, redis_url = redis_server
    hook = free_port()
    _, said = processes.start(
        *("/bin/sh", "-c", 'exec "$0" "$@" --secret "$SECRET"', sys.executable),
        *("-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json"),
        *("--marker", CANARY, "--deliver-to", f"http://127.0.0.1:{hook}/webhooks/stripe"),
        env={"SECRET": SECRET},
    )
    wait_until(lambda: said.read_text().endswith("}\n"))
    sandbox = json.loads(said.read_text())["url"]
    given = {name: each["value"] for name, each in APP["env"].items() if "value" in each}
    given |= {"STRIPE_WEBHOOK_SECRET": SECRET, "STRIPE_API_KEY": KEY}
    assert given.keys() == APP["env"].keys()
    heroku = {"PATH": f"{slug}/bin:/usr/bin:/bin", "REDIS_URL": redis_url, "WEB_CONCURRENCY": "2"}
    heroku |= {"DYNO": "web.1", "PYTHONUNBUFFERED": "true", "STRIPE_API_BASE": sandbox}

    def start(name: str, **env: str):
        shell = ("/bin/sh", "-c", PROCFILE[name] if name == "release" else f"exec {PROCFILE[name]}")
        return processes.start(*shell, env=given | heroku | env)

    release, log = start("release")
    assert release.wait(120) == 0, log.read_text()
    assert "STRIPE_API_KEY: may read sessions, reports, events" in log.read_text()
    key = requests.post(
        f"{sandbox}/_sandbox/keys", json={"kind": "restricted", "permissions": []}, timeout=10
    ).json()["key"]
    for wrong, said in (
        ({"STRIPE_API_KEY": key}, "may not read sessions"),
        ({"HANDLERS": "no_such_plugin"}, "no_such_plugin"),
    ):
        release, log = start("release", **wrong)
        assert release.wait(120) == 1, log.read_text()
        assert said in log.read_text()
        assert "Traceback" not in log.read_text()
    started = {name: start(name) for name in ("worker", "periodic")}
    started["web"] = start("web", PORT=str(hook))

    def ready() -> bool:
        for name, (process, log) in started.items():
            assert process.poll() is None, (name, log.read_text())
        with suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{hook}/readyz", timeout=120).ok
        return False

    wait_until(ready)
    with requests.Session() as stripe:
        for _ in range(SESSIONS):
            made = stripe.post(
                f"{sandbox}/v1/identity/verification_sessions",
                data={"type": "document", "metadata[name]": CANARY},
                auth=(KEY, ""),
                timeout=120,
            )
            made.raise_for_status()
            session = made.json()["id"]
            url = f"{sandbox}/_sandbox/sessions/{session}/submit"
            stripe.post(url, json={"outcome": "verified"}, timeout=120).raise_for_status()
    with server.client() as client:
        wait_until(
            lambda: sum(1 for _ in client.scan_iter("iw:done:*", count=1000)) == 3 * SESSIONS
        )
        clients, stats = client.info("clients"), client.info("stats")
        assert stats["rejected_connections"] == 0
        assert clients["connected_clients"] - 1 <= CONNECTIONS
        assert client.zcard("iw:dead") == 0
    begun = time.monotonic()
    for process, _ in started.values():
        process.terminate()
    for process, log in started.values():
        assert process.wait(120) == 0, log.read_text()
    assert time.monotonic() - begun < 30


def test_a_release_without_its_settings_is_stopped(slug, processes) -> None:
    process, log = processes.start(
        *("/bin/sh", "-c", PROCFILE["release"]),
        env={"PATH": f"{slug}/bin:/usr/bin:/bin", "REDIS_URL": "redis://127.0.0.1:1"},
    )
    assert process.wait(120) == 78
    assert "STRIPE_WEBHOOK_SECRET: missing" in log.read_text()
    assert "STRIPE_API_KEY: missing" in log.read_text()

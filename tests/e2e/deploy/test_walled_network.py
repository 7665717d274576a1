"""Stripe behind a company's proxy, and behind a certificate of the company's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CANARY = "ZyxCanary7Q"
KEY = f"rk_test_{CANARY}"
OWN = "IP:127.0.0.1"
TINYPROXY = shutil.which("tinyproxy")

pytestmark = pytest.mark.skipif(TINYPROXY is None, reason="tinyproxy is not installed")


@pytest.fixture
def walled(processes, wait_until, behind_tls) -> tuple[str, Path]:
    """The sandbox, behind TLS: the address of the API, and its certificate."""
    port, certificate = behind_tls(int(sandbox(processes, wait_until).rpartition(":")[2]), OWN)
    return f"https://127.0.0.1:{port}", certificate


@pytest.fixture
def stripe(walled) -> str:
    return walled[0]


@pytest.fixture
def certificate(walled) -> str:
    return str(walled[1])


def sandbox(processes, wait_until) -> str:
    """Start the sandbox; its address."""
    _, said = processes.python(
        *("-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json"),
        *("--marker", CANARY),
    )
    wait_until(lambda: said.read_text().endswith("}\n"))
    return json.loads(said.read_text())["url"].rstrip("/")


@pytest.fixture
def proxy(processes, free_port, tmp_path, wait_until, listens, stripe):
    """A proxy that asks for a password: its port, and its log."""
    port, config, log = free_port(), tmp_path / "tinyproxy.conf", tmp_path / "tinyproxy.log"
    config.write_text(
        f'Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nLogFile "{log}"\nLogLevel Connect\n'
        f"BasicAuth some p{CANARY}\nConnectPort {stripe.rpartition(':')[2]}\n"
    )
    processes.start(TINYPROXY, "-d", "-c", config)
    wait_until(lambda: listens(port))
    return port, log


def call(stripe: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Ask Stripe for something, as a worker does."""
    given = {"PATH": "/usr/bin:/bin", "STRIPE_API_KEY": KEY, "STRIPE_API_BASE": stripe}
    return subprocess.run(
        [sys.executable, "-m", "workers", "sessions", "list"],
        cwd=ROOT,
        env=given | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_through_a_proxy(stripe, proxy, certificate) -> None:
    port, log = proxy
    url = f"http://some:p{CANARY}@127.0.0.1:{port}"
    for name in ("HTTPS_PROXY", "https_proxy"):
        done = call(stripe, STRIPE_CA_BUNDLE=certificate, **{name: url})
        assert (done.returncode, done.stderr) == (0, "")
    assert log.read_text().count("Request (") == 2
    assert log.read_text().count(f"CONNECT {stripe.removeprefix('https://')}") == 2


@pytest.mark.sample(1)
@pytest.mark.parametrize("hosts", ["127.0.0.1", "localhost, 127.0.0.1", "*"])
def test_past_a_proxy(stripe, proxy, certificate, hosts) -> None:
    port, log = proxy
    env = {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "NO_PROXY": hosts}
    assert call(stripe, STRIPE_CA_BUNDLE=certificate, **env).returncode == 0
    assert "Request (" not in log.read_text()


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["STRIPE_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_certificate_of_ones_own(stripe, certificate, name) -> None:
    assert call(stripe, **{name: certificate}).returncode == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "unreachable CERTIFICATE_UNTRUSTED"),
        ({"HTTPS_PROXY": "http://127.0.0.1:{proxy}"}, "unreachable PROXY_407"),
        ({"HTTPS_PROXY": f"http://some:{CANARY}@127.0.0.1:{{proxy}}"}, "unreachable PROXY_4"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "unreachable PROXY_ECONNREFUSED"),
        ({"HTTPS_PROXY": "http://no-such-host.invalid:9"}, "unreachable PROXY_EAI_NONAME"),
        ({"HTTPS_PROXY": f"{CANARY}:8080"}, "HTTPS_PROXY: is not the URL of a proxy: http://host"),
        ({"STRIPE_CA_BUNDLE": "/absent"}, "STRIPE_CA_BUNDLE: cannot be read (FileNotFoundError)"),
        ({"STRIPE_CA_BUNDLE": __file__}, "STRIPE_CA_BUNDLE: holds no certificate in PEM form"),
    ],
)
def test_what_is_in_the_way_is_said(stripe, proxy, env, said) -> None:
    done = call(stripe, **{name: value.format(proxy=proxy[0]) for name, value in env.items()})
    assert done.returncode in {1, 78}
    assert said in done.stderr
    assert CANARY not in done.stderr
    assert "Traceback" not in done.stderr


def test_no_proxy_sees_a_key_in_plain_text(processes, proxy, wait_until) -> None:
    base = sandbox(processes, wait_until)
    port, log = proxy
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    assert call(base, **dict.fromkeys(names, f"http://127.0.0.1:{port}")).returncode == 0
    assert "Request (" not in log.read_text()

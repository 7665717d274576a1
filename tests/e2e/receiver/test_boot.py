"""What the receiver refuses to start on, and whether its message says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

UNREACHABLE = "redis://127.0.0.1:1/0"


@pytest.fixture
def refusal(processes, gunicorn, environment) -> Callable[..., str]:
    """Start gunicorn, expect that it gives up, and return what it printed."""

    def refusal(**env: str | None) -> str:
        env = {"REDIS_URL": UNREACHABLE, "WEB_CONCURRENCY": "1", **environment, **env}
        given = {name: value for name, value in env.items() if value is not None}
        process, log = processes.python(*gunicorn, "--bind", "127.0.0.1:0", env=given)
        assert process.wait(120) == 3
        text = log.read_text()
        assert text.count("refusing to start: ") == 1
        assert "Traceback" not in text
        return text

    return refusal


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"STRIPE_WEBHOOK_SECRET": None},
            "STRIPE_WEBHOOK_SECRET: missing. Set it to the signing secret of the webhook endpoint",
        ),
        ({"STRIPE_WEBHOOK_SECRET": ""}, "STRIPE_WEBHOOK_SECRET: missing. Set it"),
        ({"STRIPE_WEBHOOK_SECRET": " "}, "STRIPE_WEBHOOK_SECRET: missing. Set it"),
        ({"STRIPE_WEBHOOK_SECRET": "None"}, "copy it from the webhook endpoint"),
        ({"STRIPE_WEBHOOK_SECRET": "whsec_ZyxCanary7Q"}, "copy it from the webhook endpoint"),
        ({"STRIPE_LIVEMODE": None}, "STRIPE_LIVEMODE: set it to 1 or 0"),
        ({"STRIPE_LOG": "debug"}, "STRIPE_LOG: =debug writes whole responses"),
        ({"REDIS_URL": "redis://:ZyxCanary7Q/x@127.0.0.1"}, "REDIS_URL: "),
        ({"REDIS_VOUCH_FOR": "aof"}, "REDIS_VOUCH_FOR: may hold append-only, eviction, memory"),
        (
            {"STRIPE_WEBHOOK_SECRET_FILE": "/absent", "STRIPE_WEBHOOK_SECRET": None},
            "cannot be read",
        ),
    ],
    ids=["missing", "empty", "blank", "None", "weak", "mode", "log", "url", "vouch", "file"],
)
def test_settings(refusal, env, message) -> None:
    assert message in refusal(**env)


def test_all_faults_at_once(refusal) -> None:
    text = refusal(STRIPE_WEBHOOK_SECRET="whsec_weak", STRIPE_LOG="debug", INBOX_LIMIT="0")
    for name in ("STRIPE_WEBHOOK_SECRET: ", "STRIPE_LOG: ", "INBOX_LIMIT: "):
        assert name in text


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("options", "message", "names"),
    [
        (("--appendonly", "no"), "set `appendonly yes`", "append-only"),
        (("--maxmemory-policy", "allkeys-lru"), "set `maxmemory-policy noeviction`", "eviction"),
        (("--maxmemory-policy", "volatile-ttl"), "set `maxmemory-policy noeviction`", "eviction"),
        (
            ("--maxmemory-policy", "allkeys-lru", "--appendonly", "no"),
            "set `appendonly yes`",
            "append-only,eviction",
        ),
        (("--replicaof", "127.0.0.1 1"), "give REDIS_URL the primary's address", None),
    ],
    ids=["no AOF", "evicts", "evicts volatile", "both", "replica"],
)
def test_a_redis_that_loses_events(refusal, new_server, options, message, names) -> None:
    text = refusal(REDIS_URL=new_server(*options).url)
    assert message in text
    assert ("REDIS_VOUCH_FOR" in text) == bool(names)
    assert f"REDIS_VOUCH_FOR={names})\n" in text or not names


@pytest.mark.parametrize(
    "given", [{"REDIS_VOUCH_FOR": "append-only,eviction"}, {"ACCEPT_REDIS_LOSS": "1"}]
)
def test_the_operator_can_vouch_by_name(new_server, new_receiver, given) -> None:
    server = new_server("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    receiver = new_receiver(REDIS_URL=server.url, **given)
    assert receiver.deliver(receiver.event()).status == 200
    assert receiver.get("/readyz").status_code == 200


def test_secrets_from_files(new_server, new_receiver, environment, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(environment["STRIPE_WEBHOOK_SECRET"] + "\n")
    receiver = new_receiver(
        REDIS_URL=new_server().url, STRIPE_WEBHOOK_SECRET=None, STRIPE_WEBHOOK_SECRET_FILE=str(file)
    )
    assert receiver.deliver(receiver.event()).status == 200


def test_two_named_secrets(new_server, new_receiver, environment) -> None:
    snapshot = environment["STRIPE_WEBHOOK_SECRET"]
    thin = f"whsec_{snapshot[:5:-1]}"
    receiver = new_receiver(
        REDIS_URL=new_server().url, STRIPE_WEBHOOK_SECRET=f"snapshot={snapshot},thin={thin}"
    )
    body = receiver.event()
    assert receiver.deliver(body, receiver.sign(body, secret=snapshot)).status == 200
    body = receiver.thin_event()
    assert receiver.deliver(body, receiver.sign(body, secret=thin)).status == 200
    page = receiver.get("/metrics").text
    for name in ("snapshot", "thin"):
        assert f'identity_webhooks_web_verified_with_total{{secret="{name}"}} 1.0' in page


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--certfile", "pyproject.toml"), "certfile: have TLS end in front of it"),
        (("--keyfile", "pyproject.toml"), "keyfile: have TLS end in front of it"),
        (("--proxy-protocol",), "proxy_protocol: have the proxy speak plain HTTP/1"),
        (("--max-requests", "5"), "max_requests: a process is not renewed"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_of_gunicorn_that_have_no_effect(
    processes, gunicorn, environment, server, option, message
) -> None:
    env = {"REDIS_URL": server.url, **environment}
    process, log = processes.python(*gunicorn, "--bind", "127.0.0.1:0", *option, env=env)
    assert process.wait(120) == 1
    assert f"Error: LoopWorker does not support {message}" in log.read_text()

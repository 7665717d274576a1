"""`python -m workers run`: one handler, one session, no Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

PLUGIN = """
import os, threading
from pathlib import Path
from identity_webhooks import Discard, Retry, Verification, on, on_start, on_stop

READY = []

@on_start
def start() -> None:
    READY.append(1)

@on_stop
def stop() -> None:
    if path := os.environ.get("STOPPED"):
        Path(path).write_text("shop")

@on("verified", needs="verified_outputs.dob")
def grant(v: Verification) -> None:
    assert READY
    outputs = v.session.verified_outputs
    name = outputs.first_name if outputs else ""
    match os.environ.get("BEHAVE", ""):
        case "raise":
            raise ValueError(f"no account for {name}")
        case "retry":
            raise Retry(f"{name} is too early", delay=30)
        case "discard":
            raise Discard("no such user")
        case "thread":
            thread = threading.Thread(target=fail, args=[name])
            thread.start()
            thread.join()
        case "finalizer":
            Finalized(name)
        case "own end":
            threading.Timer(0.3, fail, args=[name]).start()
    v.log.info("granted", subject=v.subject, reason=f"{v.sensitive.dob:%Y} {name}")

def fail(name: str) -> None:
    raise ValueError(f"no account for {name}")

class Finalized:
    def __init__(self, name: str) -> None:
        self.name = name
    def __del__(self) -> None:
        fail(self.name)

@on("requires_input", reason="abandoned")
def remind(v: Verification) -> None: ...
"""
OTHER = """
from identity_webhooks import Verification, on, on_start, on_stop

@on_start
def opened() -> None:
    raise SystemExit("another plugin is of no concern")

@on_stop
def closed() -> None:
    opened()

@on("*")
def handle(v: Verification) -> None: ...
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(sandbox, tmp_path: Path) -> Run:
    (tmp_path / "shop.py").write_text(PLUGIN)

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": "redis://127.0.0.1:9/0",  # nothing listens there
            "STRIPE_API_KEY": "sk_test_workers",
            "STRIPE_RESTRICTED_KEY": "rk_test_workers",
            "STRIPE_API_BASE": sandbox.url,
            "HANDLERS": "shop",
            "PYTHONPATH": str(tmp_path),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, "-m", "workers", "run", *arguments],
            cwd=ROOT,
            env=env | extra,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_done(run, sandbox, canary) -> None:
    session = sandbox.session("verified", client_reference_id="user-7")
    done = run(session.id, "--handler", "shop.grant")
    assert done.returncode == 0, done.stderr
    assert "The session is verified and concerns user-7." in done.stdout
    assert "shop.grant: done in " in done.stdout
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["event"] == "granted"
    assert canary not in done.stdout + done.stderr


@pytest.mark.parametrize("behave", ["", "raise"])
def test_it_is_of_one_account_and_of_one_plugin(behave, run, sandbox, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(OTHER)
    stopped = tmp_path / "stopped"
    session = sandbox.session("verified", account="acct_1Single")
    of_shop = ("--handler", "shop.grant", "--json")
    env = {"HANDLERS": "shop,other", "STOPPED": str(stopped), "BEHAVE": behave}
    done = run(session.id, *of_shop, "--account", "acct_1Single", **env)
    answer = json.loads(done.stdout)
    assert answer["status"] == ("retry" if behave else "done"), done.stderr
    assert answer["text"].endswith("no account for [personal]" if behave else "")
    assert stopped.read_text() == "shop", "its on_stop is called, however it ended"
    assert "another plugin" not in done.stdout + done.stderr
    stopped.unlink()

    done = run(session.id, *of_shop, **env)
    assert (done.returncode, done.stdout) == (1, ""), "one's own account has no such session"
    assert not stopped.exists()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("behave", "code", "status", "text", "delay"),
    [
        ("", 0, "done", "", None),
        ("raise", 1, "retry", "no account for [personal]", None),
        ("retry", 1, "retry", "[personal] is too early", 30),
        ("discard", 1, "dead", "no such user", None),
    ],
)
def test_how_it_ended(behave, code, status, text, delay, run, sandbox) -> None:
    session = sandbox.session("verified")
    done = run(session.id, "--handler", "shop.grant", "--json", BEHAVE=behave)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["status"], answer["delay"]) == (code, status, delay)
    assert answer["text"].endswith(text)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("behave", "event"),
    [
        ("thread", "thread_failed"),
        ("finalizer", "finalizer_failed"),
        ("own end", "thread_failed"),
    ],
)
def test_what_a_thread_of_the_handler_raises_is_shown_without_its_text(
    behave, event, run, sandbox, canary
) -> None:
    session = sandbox.session("verified")
    done = run(session.id, "--handler", "shop.grant", BEHAVE=behave)
    assert done.returncode == 0, done.stderr
    assert canary not in done.stdout + done.stderr
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["error"] for line in said if line["event"] == event] == ["ValueError"]


def test_a_dry_run_calls_nothing(run, sandbox) -> None:
    session = sandbox.session("verified")
    done = run(session.id, "--handler", "shop.grant", "--dry-run", BEHAVE="raise")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("shop.grant: would be run\n")


def test_a_session_it_would_not_get(run, sandbox) -> None:
    session = sandbox.session("document_expired")
    for name, why in [
        ("shop.grant", "it does not subscribe to requires_input"),
        ("shop.remind", "document_expired is none of its reasons"),
    ]:
        done = run(session.id, "--handler", name)
        assert done.returncode == 0
        assert f"{name}: would not be run: {why}" in done.stdout


def test_what_is_not_there(run) -> None:
    done = run("vs_1", "--handler", "shop.nothing")
    assert done.returncode == 2
    assert "there is no handler shop.nothing: audit.log_event, shop.grant, shop.r" in done.stderr
    done = run("vs_none", "--handler", "shop.grant")
    assert done.returncode == 1
    assert done.stderr.startswith("Stripe: ")

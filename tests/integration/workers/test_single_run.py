"""`python -m workers run`: one handler, one session, no Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from identity_webhooks import Retry, Verification, on
from service.settings import Settings
from tests.conftest import ROOT
from tests.integration.workers.fake_stripe import KEY, RESTRICTED_KEY, FakeStripe
from workers import single_run
from workers.router import Router
from workers.single_run import RunResult

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


@pytest.mark.parametrize("needs", [[], ["verified_outputs.dob"]], ids=["plain", "needy"])
@pytest.mark.parametrize("account", [None, "acct_1"])
def test_it_gets_what_a_worker_would_give_it_under_a_key_of_its_own(
    needs, account, fake: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Verification] = []

    @on("verified", needs=needs, retries=0 if needs else None)
    def handle(v: Verification) -> None:
        given.append(v)

    clock = iter([1.0, 3.5])
    monkeypatch.setattr(single_run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    name = fake.session(1, account, livemode=True, created=77, client_reference_id="u-1")
    result = single_run.run(*among(handle, fake), name, account=account)
    assert result == RunResult("done", "verified", "verified", None, "u-1", took_ms=2500)
    (v,) = given
    event = ("verified", "snapshot", name, 77, True, account)
    assert (v.event.kind, v.event.form, v.event.session, v.event.created) == event[:4]
    assert (v.event.livemode, v.event.account) == event[4:]
    assert v.idempotency_key == f"run-{name}:p.handle"
    assert (v.attempt, v.superseded, v.last_attempt) == (1, False, bool(needs))
    assert (v.outcome.kind, v.report.id) == ("verified", "vr_1")
    if needs:
        assert v.sensitive.dob == date(1990, 7, 17)
    asked = [(call, key) for call, key, _ in fake.calls]
    assert asked == [("report", KEY), *([("sensitive", RESTRICTED_KEY)] if needs else [])]
    assert {headers.get("Stripe-Account") for headers in fake.headers} == {account}


@pytest.mark.parametrize("dry_run", [False, True])
def test_how_it_went_is_told_without_what_is_personal(dry_run, fake: FakeStripe) -> None:
    @on("requires_input")
    def handle(v: Verification) -> None:
        raise Retry(f"{v.subject} is early", delay=0)

    failed: dict[str, Any] = {"status": "requires_input", "last_error": {"code": "abandoned"}}
    name = fake.session(1, client_reference_id="ann@example.com", **failed)
    result = single_run.run(*among(handle, fake), name, dry_run=dry_run)
    assert result.subject
    assert "ann@" not in result.subject + result.text
    status, delay = ("ready", None) if dry_run else ("retry", 0)
    expected = RunResult(status, "requires_input", "needs_input", "abandoned", None, delay=delay)
    assert replace(result, subject=None, text="", took_ms=0) == expected


def among(handle: Callable[..., Any], fake: FakeStripe) -> tuple[Settings, Router, Any]:
    """Return settings, and a router with this handler, and the handler."""
    router = Router()
    router.add(type("Plugin", (), {"handle": staticmethod(handle)})(), "p")
    settings = Settings(
        redis_url="redis://127.0.0.1:9/0",  # nothing listens there
        stripe_api_key=KEY,
        stripe_restricted_key=RESTRICTED_KEY,
        stripe_api_base=fake.url,
    )
    return settings, router, router.handlers[0]

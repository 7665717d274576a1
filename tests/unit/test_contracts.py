"""The import contracts of pyproject.toml hold, and are seen to fail when broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("identity_webhooks", "service", "workers", "stripe_identity_sandbox"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_they_hold() -> None:
    assert lint(ROOT).returncode == 0


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("identity_webhooks/event.py", "import service.event", "nothing else of ours"),
        ("identity_webhooks/handlers.py", "import workers.router", "nothing else of ours"),
        (
            "identity_webhooks/verification.py",
            "import stripe_identity_sandbox.wire",
            "nothing else of ours",
        ),
        ("identity_webhooks/event.py", "import time", "no I/O, no clock, structlog"),
        ("identity_webhooks/event.py", "import pathlib", "no I/O, no clock, structlog"),
        ("identity_webhooks/handlers.py", "import pydantic", "no I/O, no clock, structlog"),
        ("service/inbox/inbox.py", "import workers.jobs", "The receiver never imports the workers"),
        (
            "service/app.py",
            "import stripe_identity_sandbox.state",
            "The receiver never imports the workers",
        ),
        (
            "workers/jobs.py",
            "import stripe_identity_sandbox.state",
            "The workers do not import the sandbox",
        ),
        (
            "stripe_identity_sandbox/state.py",
            "import service.event",
            "The sandbox shares nothing",
        ),
        (
            "stripe_identity_sandbox/state.py",
            "import workers.router",
            "The sandbox shares nothing",
        ),
        (
            "stripe_identity_sandbox/state.py",
            "import identity_webhooks.event",
            "The sandbox shares nothing",
        ),
        ("service/signature.py", "import time", "reader of HTTP: no I/O, no clock"),
        ("service/event.py", "import redis", "reader of HTTP: no I/O, no clock"),
        ("service/server/http.py", "import socket", "reader of HTTP: no I/O, no clock"),
        ("workers/router.py", "import rq", "knows neither Redis nor RQ"),
    ],
)
def test_each_is_seen_to_break(copy: Path, module: str, line: str, contract: str) -> None:
    path = copy / module
    path.write_text(path.read_text() + f"\n{line}\n")
    answer = lint(copy)

    assert answer.returncode == 1
    broken = [said for said in answer.stdout.splitlines() if " BROKEN" in said]
    # What the lowest package imports, those above it import indirectly: their contracts break, too.
    assert len(broken) == 1 or module.startswith("identity_webhooks/")
    assert any(contract in name for name in broken)

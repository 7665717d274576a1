"""The log of a worker: every line in one format, whoever wrote it, and nothing personal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from identity_webhooks.event import Event
from service.inbox import AcceptResult, Inbox
from tests.conftest import wait_until

PLUGIN = """
import logging, threading, warnings
from identity_webhooks import Verification, on

@on("*", retries=0)
def quoting(v: Verification) -> None:
    name = v.session.verified_outputs.first_name
    v.log.info(f"saved {name}", subject=name, name=name)
    logging.getLogger("acme").error(f"saved {name}: %s", name)
    logging.getLogger("acme").error(ValueError(name))
    thread = threading.Thread(target=lambda: logging.getLogger("thread").error(f"saved {name}"))
    thread.start()
    thread.join()
    warnings.warn(f"no umlaut in {name}")
    raise ValueError(name)
"""


def lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, each of which must be as ours are."""
    read = [json.loads(line) for line in log.read_text().splitlines()]
    for line in read:
        assert {"event", "level", "timestamp", "logger"} <= line.keys()
    return read


def test_of_a_worker(server, redis, sandbox, processes, tmp_path, canary) -> None:
    (tmp_path / "quoting.py").write_text(PLUGIN)
    process, log = processes.python(
        *("-m", "workers"),
        env={
            "REDIS_URL": server.url,
            "STRIPE_API_KEY": "sk_test_workers",
            "STRIPE_API_BASE": sandbox.url,
            "HANDLERS": "quoting",
            "PYTHONPATH": str(tmp_path),
        },
    )
    session = sandbox.session("verified")
    event = Event("evt_1", "verified", "snapshot", session.id, 1_790_000_000, livemode=False)
    assert Inbox(redis).accept(event) is AcceptResult.NEW
    wait_until(lambda: "event_settled" in log.read_text())
    process.terminate()
    assert process.wait(30) == 0
    read = lines(log)
    said = {(line["logger"], line["event"]) for line in read}
    assert {
        ("handler", "saved [personal]"),
        ("acme", "saved [personal]: %s"),
        ("acme", "<ValueError>"),
        ("thread", "saved [personal]"),
        ("workers.jobs", "handler_failed"),
    } <= said
    assert any(line["logger"] == "py.warnings" for line in read)
    (failed,) = [line for line in read if line["event"] == "handler_failed"]
    assert failed["reason"].startswith("failed: ValueError at jobs.py:")
    assert failed["reason"].endswith(" quoting")

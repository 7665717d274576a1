"""The log of a worker: every line in one format, whoever wrote it, and nothing personal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from identity_webhooks.event import Event
from service.inbox import AcceptResult, Inbox
from tests.conftest import wait_until

PLUGIN = """
import logging, logging.config, threading, warnings
import structlog
from identity_webhooks import Verification, on

# As Django, notebooks and other libraries do, when they are imported.
logging.basicConfig(force=True)
logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
structlog.configure(processors=[structlog.processors.JSONRenderer()])


def fail(name: str) -> None:
    raise ValueError(name)


class Finalized:
    def __init__(self, name: str) -> None:
        self.name = name

    def __del__(self) -> None:
        raise ValueError(self.name)


@on("*", retries=0)
def quoting(v: Verification) -> None:
    name = v.session.verified_outputs.first_name
    v.log.info(f"saved {name}", subject=name, name=name)
    logging.getLogger("acme").error(f"saved {name}: %s", name)
    logging.getLogger("acme").error(ValueError(name))
    thread = threading.Thread(target=lambda: logging.getLogger("thread").error(f"saved {name}"))
    thread.start()
    thread.join()
    threading.Thread(target=fail, args=[name]).start()
    Finalized(name)
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
    assert process.wait(120) == 0
    read = lines(log)
    said = {(line["logger"], line["event"]) for line in read}
    assert {
        ("handler", "saved [personal]"),
        ("acme", "saved [personal]: <str>"),
        ("acme", "<ValueError>"),
        ("thread", "saved [personal]"),
        ("workers.dispatch", "handler_failed"),
        ("service.process", "thread_failed"),
        ("service.process", "finalizer_failed"),
        ("workers.plugins", "logging_restored"),
    } <= said
    assert any(line["logger"] == "py.warnings" for line in read)
    (failed,) = [line for line in read if line["event"] == "handler_failed"]
    assert failed["reason"].startswith("failed: ValueError at answers.py:")
    assert failed["reason"].endswith(" quoting")

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
    thread = threading.Thread(target=fail, args=[name])
    thread.start()
    thread.join()
    Finalized(name)
    warnings.warn(f"no umlaut in {name}")
    raise ValueError(name)
"""


SPEAKER = """
import logging, os, sys, threading, warnings
import structlog
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from identity_webhooks import Verification, on, on_dead


def fail():
    raise ValueError("why")


def on_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


class Finalized:
    def __del__(self):
        fail()


@on("*", retries=0, own_process=bool(os.environ.get("OWN_PROCESS")))
def speak(v: Verification) -> None:
    v.log.info("said", reason="v.log")
    v.log.bind(reason="bound").warning("said")
    structlog.get_logger("s").info("said", reason="structlog")
    structlog.get_logger().warning("said", reason="structlog, without a name")
    logging.getLogger("l").warning("logging")
    logging.getLogger("l").error("with an argument: %s", "x")
    logging.warning("of the root")
    try:
        fail()
    except ValueError:
        v.log.exception("v.log of an exception")
        logging.getLogger("l").exception("logging of an exception")
    warnings.warn("a warning")
    Finalized()
    on_a_thread(lambda: v.log.info("v.log on a thread"))
    on_a_thread(lambda: logging.getLogger("l").info("logging on a thread"))
    on_a_thread(fail)
    context = copy_context()
    on_a_thread(lambda: context.run(logging.getLogger("l").info, "on a thread, in its context"))
    on_a_thread(lambda: context.run(fail))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(context.run, logging.getLogger("l").info, "in a pool").result()
    logging.getLogger("l").info("the last")
    fail()


@on_dead
def died(dead) -> None:
    logging.getLogger("l").info("on_dead")
"""
NAMES = ("event_id", "session_id", "kind", "handler", "attempt")


def lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, each of which must be as ours are."""
    read = [json.loads(line) for line in log.read_text().splitlines()]
    for line in read:
        assert {"event", "level", "timestamp", "logger"} <= line.keys()
    return read


def test_of_a_worker(server, redis, sandbox, processes, tmp_path, canary) -> None:
    (tmp_path / "quoting.py").write_text(PLUGIN)
    # The periodic process would take in the sandbox's own events of the session, too.
    process, log = processes.python(
        *("-m", "workers", "--no-periodic"),
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


def test_what_a_handler_logs_says_the_same_wherever_it_runs(
    server, redis, sandbox, processes, tmp_path
) -> None:
    """On a thread of the worker, in a process of its own, in that of suspects."""
    (tmp_path / "speaker.py").write_text(SPEAKER)
    session = sandbox.session("verified")
    event = Event("evt_1", "verified", "snapshot", session.id, 1_790_000_000, livemode=False)

    def said(where: str) -> list[dict[str, Any]]:
        redis.flushdb()
        assert Inbox(redis).accept(event) is AcceptResult.NEW
        if where == "suspect":
            redis.hset(f"iw:evt:{event.key}", "suspect", 1)
        process, log = processes.python(
            *("-m", "workers", "--no-periodic"),
            env={
                "REDIS_URL": server.url,
                "STRIPE_API_KEY": "sk_test_workers",
                "STRIPE_API_BASE": sandbox.url,
                "HANDLERS": "speaker",
                "PYTHONPATH": str(tmp_path),
                "OWN_PROCESS": "1" if where == "own" else "",
            },
        )
        wait_until(lambda: "event_settled" in log.read_text())
        process.terminate()
        assert process.wait(120) == 0
        read = map(json.loads, log.read_text().splitlines())
        its = [line for line in read if not line.get("logger", "").startswith("workers")]
        return [{k: v for k, v in line.items() if k != "timestamp"} for line in its]

    on_a_thread = said("thread")
    assert said("own") == on_a_thread
    assert said("suspect") == on_a_thread

    spoken = [line for line in on_a_thread if line["event"] != "on_dead"]
    first, last = (
        next(n for n, line in enumerate(spoken) if line.get("reason") == "v.log"),
        next(n for n, line in enumerate(spoken) if line["event"] == "the last"),
    )
    names = dict(zip(NAMES, (event.id, session.id, "verified", "speaker.speak", 1), strict=True))
    nameless = [
        line["event"]
        for line in spoken[first : last + 1]
        if {name: line.get(name) for name in NAMES} != names
    ]
    # Python starts a thread without the context of the one that starts it.
    assert nameless == ["logging on a thread", "thread_failed", "thread_failed"]
    (dead,) = [line for line in on_a_thread if line["event"] == "on_dead"]
    assert (dead["event_id"], dead["session_id"]) == (event.id, session.id)

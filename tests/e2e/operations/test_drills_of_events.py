"""Drills: handlers hang, kill their process, fail for many events, or are gone; events pile up."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.walk

MODULE = """
import os
from identity_webhooks import Discard, Retry, Verification, on


@on("verified")
def grant(v: Verification) -> None:
    if v.metadata.get("behave") == "no account" and os.environ.get("MENDED") != "1":
        raise Discard("no account")
    if v.metadata.get("behave") == "later":
        raise Retry("later", delay=0.1)
"""


@pytest.fixture
def grants(tmp_path, service) -> None:
    """Have a second plugin with one handler, `grants.grant`."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "grants.py").write_text(MODULE)
    service.environment["HANDLERS"] = "effects,grants"
    service.environment["PYTHONPATH"] += f":{tmp_path / 'plugins'}"


def test_a_handler_hangs(service, drill) -> None:
    service.keep_reconciliation_out()
    service.start_worker(BEHAVIOUR="hang")
    keys = []

    def happen() -> None:
        keys.append(service.deliver_verified(service.verified()))
        service.age(keys[0], 120)

    drill(
        happen,
        {"HandlerFails"},
        "effects.second: timeout",
        "`handler_failed` in the log",
        cure=lambda: [
            service.restart_worker(),
            service.command("service", "events", "retry-now", keys[0]),
        ],
        cured=lambda: service.state(keys[0]) == "done",
    )


def test_a_handler_kills_its_process(service, drill) -> None:
    service.keep_reconciliation_out()
    service.start_worker(BEHAVIOUR="never")  # at every attempt what the session says
    keys = []

    def happen() -> None:
        keys.append(service.deliver_verified(service.verified(behave="segfault")))
        service.age(keys[0], 120)

    drill(
        happen,
        {"HandlerFails"},
        "effects.second: failed: its process died",
        cure=lambda: [
            service.restart_worker(),
            service.command("service", "events", "retry-now", keys[0]),
        ],
        cured=lambda: service.state(keys[0]) == "done",
    )


def test_twenty_thousand_events_wait_behind_one_slow_handler(service, drill, wait_until) -> None:
    service.keep_reconciliation_out()
    service.deliver_verified(service.verified())
    service.deliver_many(20_000)
    with service.redis.client() as client:
        second = client.lindex("rq:queue:identity", 1).decode()
        client.hset(f"rq:job:{second}", "enqueued_at", "2026-01-01T00:00:00.000000Z")

    def queued() -> int:
        return int(re.search(r"(\d+) in the queue", service.command("service", "status").stdout)[1])

    drill(
        lambda: service.start_worker(WORKER_CONCURRENCY="1", BEHAVIOUR="long"),
        {"Behind"},
        "20000 events wait, the first for",
        "1 of 1 slots are busy",
        "start more workers, or look which handler is slow",
        cure=service.start_worker,
    )
    wait_until(lambda: queued() < 19_000)


def test_five_hundred_dead_of_one_handler_among_others(service, grants, drill, wait_until) -> None:
    service.keep_reconciliation_out()
    service.start_worker(BEHAVIOUR="never")
    sessions = [service.verified(behave="no account") for _ in range(5)]
    others = [service.deliver_verified(service.verified(behave="never")) for _ in range(5)]

    def happen() -> None:
        for number in range(500):
            session = sessions[number % 5]
            kind = "identity.verification_session.verified"
            assert service.deliver(f"{number}", kind=kind, session=session) == 200
        wait_until(lambda: len(dead()) == 505)

    def mend() -> None:
        service.restart_worker(BEHAVIOUR="never", MENDED="1")
        said = service.done("service events replay --dead --handler grants.grant --dry-run")
        assert said.count("would replay") == 500
        service.done("service events replay --dead --handler grants.grant --rate 500")

    def dead() -> set[str]:
        return {each["key"] for each in service.listed("--state", "dead", "--limit", "1000")}

    drill(
        happen,
        {"DeadEvents"},
        "500 dead: grants.grant: discarded",
        "python -m service events list --state dead --handler grants.grant --reason discarded",
        "5 dead: effects.second: discarded",
        cure=mend,
        cured=lambda: dead() == set(others),
    )


def test_a_handler_is_gone(service, grants, drill, wait_until) -> None:
    service.keep_reconciliation_out()
    service.start_worker()
    key = service.deliver_verified(service.verified(behave="later"))
    wait_until(lambda: "grants.grant" in service.done("service events show", key))

    def happen() -> None:
        service.stop_worker()
        # Past the hour that a rolling deploy may take.
        with service.redis.client() as client:
            field = client.hget(f"iw:evt:{key}", "h:grants.grant").decode().split("|")
            field[3] = str(int(field[3]) - 7_200_000)
            client.hset(f"iw:evt:{key}", "h:grants.grant", "|".join(field))
        service.environment["HANDLERS"] = "effects"
        service.start_worker()

    drill(
        happen,
        {"DeadEvents"},
        "1 dead: grants.grant: this release has no such handler",
        cure=lambda: service.done("service events discard --handler grants.grant"),
    )
    assert service.state(key) == "done"


def test_all_there_is_is_a_session_or_a_reference(service, wait_until) -> None:
    """A customer asks; nobody knows the event."""
    service.keep_reconciliation_out()
    service.start_worker()
    session = service.verified(client_reference_id="user-42")
    key = service.deliver_verified(session)
    wait_until(lambda: service.state(key) == "done")

    assert session in service.done("workers sessions list --reference user-42")
    shown = service.done("service events show", session)
    for word in (key, "verified", "effects.second", "done"):
        assert word in shown

"""How long an event waits: longer the older it is, and never longer than is said."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_py

from identity_webhooks import Verification, on
from service import connection
from service.settings import Settings
from workers import dispatch, failures, jobs
from workers.failures import StripeFailure
from workers.own_process import NotRun, OwnProcess
from workers.router import Router, backoff
from workers.stop import Stop

NEEDED = "verified_outputs.dob"


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def patched(owner: object, name: str, error: BaseException) -> Callable[[Any, Any], None]:
    return lambda _, patch: patch.setattr(owner, name, raising(error))


def refused(call: Any, kind: Any) -> StripeFailure:
    return StripeFailure(kind, call=call)


HINDRANCES: dict[str, tuple[Callable[[Any, Any], None], float]] = {
    "Stripe fails": (patched(jobs.Fetcher, "fetch", refused("session", "broken")), 60),
    "a limit": (patched(jobs.Fetcher, "fetch", refused("session", "limited")), 60),
    "a lock": (patched(jobs.Fetcher, "fetch", refused("session", "locked")), 4),
    "its fields": (
        lambda desk, patch: patch.setattr(
            desk.restricted, "fetch_sensitive", raising(refused("sensitive", "broken"))
        ),
        60,
    ),
    "Redis fails": (patched(jobs.Fetcher, "fetch", redis_py.ConnectionError()), 60),
    "a fault of ours": (patched(jobs.Fetcher, "fetch", ValueError()), 60),
    "its process is busy": (
        lambda _, patch: patch.setattr(OwnProcess, "is_busy", property(lambda _: True)),
        60,
    ),
    "its process does not start": (patched(OwnProcess, "run", NotRun("x")), 60),
}


@pytest.mark.parametrize("days", [0, 4], ids=["young", "old"])
@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_no_wait_is_longer_than_is_said(hindrance, days, desk, monkeypatch) -> None:
    """After an outage all events are old, and what hindered them has passed."""
    hinder, longest = HINDRANCES[hindrance]
    for module in (jobs, failures):
        monkeypatch.setattr(module, "backoff", backoff)
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    desk.expects_faults = True

    @on("*", own_process="its process" in hindrance, needs=[NEEDED])
    def handle(_: Verification) -> None:
        """Never run."""

    desk.restricted = desk.sandbox.api("rk_test_x")
    processor = desk.processor(handle, restricted_api=desk.restricted)
    session = desk.sandbox.session("verified")
    began = desk.now()
    event = desk.accept("verified", session)
    desk.redis.hincrby(f"iw:evt:{event.key}", "accepted", -days * 86_400_000)
    with monkeypatch.context() as patch:
        hinder(desk, patch)
        desk.turn(processor)
        ended = desk.now()
    assert desk.record(event).state == "pending"
    waits = longest * 1000
    if days:
        assert began + waits - 1 <= desk.due(event) <= ended + waits + 1
    else:
        assert desk.due(event) <= ended + 4 * (2_000 + ended - began)


@pytest.mark.parametrize(("age", "longest"), [(0, 2), (1, 4), (5, 16), (20, 64), (100, 256)])
def test_waits_for_stripe_grow_with_the_time_that_has_passed(age, longest, monkeypatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    assert backoff(failures.rounds(age)) == longest


def test_who_waits_for_its_process_looks_again_after_half_its_age(desk, monkeypatch) -> None:
    @on("*")
    def handle(_: Verification) -> None:
        """Never run."""

    desk.accept("created", "vs_1")
    (claim,) = desk.processor(handle).claim()
    for least, most in ((False, 0.1), (True, 15)):
        monkeypatch.setattr(random, "uniform", lambda *range_, least=least: range_[least])
        claim.since = claim.now - 30_000
        assert dispatch.busy_wait(claim) == most


def test_a_worker_waits_longer_for_a_free_connection(server) -> None:
    """Else, on a busy machine, a result is not written, and its handler runs again."""
    settings = Settings(redis_url=server.url, stripe_api_key="sk_test_workers")
    processor = jobs.Processor.from_settings(settings, Stop(), Router())
    pool = processor._inbox._connections._client.connection_pool
    taken = [pool.get_connection() for _ in range(pool.max_connections)]
    free = threading.Timer(1.3 * connection.WAIT, lambda: [pool.release(each) for each in taken])
    free.start()
    try:
        assert processor.claim() == []
    finally:
        free.join()
        processor.end()
        pool.disconnect()

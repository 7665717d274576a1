"""Redis away, frozen or full: Stripe is told "not now" in time, and its retry is taken."""

from __future__ import annotations

import time

import pytest

PATIENCE = 5.0
"""Seconds within which a sender gets its answer, whatever Redis does. Two are promised; the rest is
for a machine that is busy with other tests. Without a deadline it would be thirty."""

pytestmark = pytest.mark.any_server


@pytest.fixture
def server(new_server):
    return new_server()


@pytest.fixture
def receiver(new_receiver, server):
    return new_receiver(REDIS_URL=server.url)


def accepted(receiver, body: bytes, *, within: float = 120) -> str:
    """Deliver as Stripe does, again and again, until it is taken; the last answer."""
    deadline = time.monotonic() + within
    while (answer := receiver.deliver(body)).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer.json()["answer"]


def records(server) -> int:
    with server.client() as client:
        assert client.llen("rq:queue:identity") == client.zcard("iw:due")
        return len(client.keys("iw:evt:*"))


def refuses_in_time(receiver, body: bytes, because: str = "redis_failed") -> None:
    answer = receiver.deliver(body)
    assert (answer.status, answer.json()) == (503, {"received": False, "answer": because})
    assert answer.seconds < PATIENCE
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.sample(1)
def test_redis_stopped(receiver, server) -> None:
    assert accepted(receiver, receiver.event("evt_before")) == "new"
    server.stop()
    refuses_in_time(receiver, receiver.event())
    assert receiver.get("/healthz").status_code == 200
    assert receiver.get("/readyz").status_code == 503
    page = receiver.get("/metrics").text
    assert 'identity_webhooks_web_deliveries_total{answer="redis_failed"} 1.0' in page
    assert "identity_webhooks_redis_up 0.0" in page
    # What proves nothing is refused without asking Redis.
    assert receiver.deliver(receiver.event(), "t=1,v1=0").status == 400
    server.start()
    assert accepted(receiver, receiver.event()) == "new"
    assert receiver.get("/readyz").status_code == 200
    assert records(server) == 2


@pytest.mark.sample(1)
def test_redis_frozen(receiver, server) -> None:
    assert accepted(receiver, receiver.event("evt_before")) == "new"
    server.freeze()
    try:
        refuses_in_time(receiver, receiver.event())
        assert receiver.get("/healthz").status_code == 200
        started = receiver.clock()
        assert receiver.get("/readyz").status_code == 503
        assert receiver.clock() - started < PATIENCE
        # Within the ten seconds that Prometheus waits.
        assert "identity_webhooks_redis_up 0.0" in receiver.get("/metrics").text
        assert receiver.clock() - started < PATIENCE + 8
    finally:
        server.thaw()
    # Thawed, Redis runs the scripts that were sent meanwhile: known or new, it is there once.
    assert accepted(receiver, receiver.event()) in {"new", "pending"}
    assert records(server) == 2


@pytest.mark.sample(1)
def test_redis_full(receiver, server) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1kb")
        refuses_in_time(receiver, receiver.event(), because="memory_short")
        assert receiver.get("/readyz").status_code == 503
        client.config_set("maxmemory", "0")
    assert accepted(receiver, receiver.event()) == "new"
    assert records(server) == 1


@pytest.mark.sample(1)
def test_redis_comes_after_the_receiver(new_server, new_receiver) -> None:
    server = new_server()
    server.stop()
    receiver = new_receiver(REDIS_URL=server.url)
    refuses_in_time(receiver, receiver.event())
    server.start()
    assert accepted(receiver, receiver.event()) == "new"


@pytest.mark.sample(1)
def test_an_unsafe_redis_that_comes_later_gets_nothing(new_server, new_receiver) -> None:
    server = new_server("--appendonly", "no")
    server.stop()
    receiver = new_receiver(REDIS_URL=server.url)
    server.start()
    refuses_in_time(receiver, receiver.event())
    ready = receiver.get("/readyz")
    assert ready.status_code == 503
    assert "append-only" in ready.text
    assert records(server) == 0


@pytest.mark.sample(1)
def test_one_that_gets_unsafe_gets_nothing_more(receiver, server) -> None:
    assert accepted(receiver, receiver.event("evt_before")) == "new"
    with server.client() as client:
        client.config_set("appendonly", "no")
        ready = receiver.get("/readyz")
        assert ready.status_code == 503
        assert "append-only" in ready.text
        refuses_in_time(receiver, receiver.event())
        client.config_set("appendonly", "yes")
    assert receiver.get("/readyz").status_code == 200
    assert accepted(receiver, receiver.event()) == "new"
    server.process.kill()  # it would first finish writing its new file


@pytest.mark.sample(1)
def test_no_log_line_of_the_trouble_is_more_than_ids(receiver, server, canary) -> None:
    # The fixture no_canary searches the log; here it is made to hold something.
    server.stop()
    refuses_in_time(receiver, receiver.event())
    answer = receiver.post(receiver.event(), f"User-Agent: {canary}", f"Cookie: {canary}")
    assert answer.status == 400
    assert receiver.get(f"/{canary}?email={canary}").status_code == 404

"""Counts in Redis: every process reports the same, and an outage loses none."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import connection, metrics
from service.inbox import Inbox
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import wait_until

COUNTING = """
import sys
from redis import Redis
from service.metrics import Metrics

counting = Metrics(Redis.from_url(sys.argv[1]))
for _ in range(10):
    counting.count("claims", "claimed")
"""


def total(client, name: str, *labels: str) -> float:
    text = metrics.render(client, Inbox(client)).decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"identity_webhooks_{name}" and set(sample.labels.values()) == {*labels}
    )


def test_two_that_count_in_one_process_add_up(redis) -> None:
    for counting in (Metrics(redis), Metrics(redis)):
        counting.count("settled", "done", "verified", by=2)
        counting.observe("settle_seconds", 0.02)
        counting.flush()
    assert total(redis, "settled_total", "done", "verified") == 4
    assert total(redis, "settle_seconds_count") == 2


def test_processes_add_up_and_flush_as_they_end(redis, server, processes) -> None:
    started = [processes.python("-c", COUNTING, server.url)[0] for _ in range(2)]
    assert [process.wait(30) for process in started] == [0, 0]
    assert total(redis, "claims_total", "claimed") == 20


def test_counts_come_by_themselves_within_seconds(redis) -> None:
    Metrics(redis).count("redriven", by=5)
    wait_until(lambda: total(redis, "redriven_total") == 5, within=5)


@pytest.mark.parametrize("outage", ["stopped", "frozen"])
def test_counts_wait_while_redis_is_away(outage, new_server) -> None:
    server = new_server()
    client = connection.connect(Settings(redis_url=server.url))
    counting = Metrics(client)
    counting.count("claims", "claimed")
    counting.flush()
    server.stop() if outage == "stopped" else server.freeze()
    counting.count("claims", "claimed", by=2)
    started = time.monotonic()
    counting.flush()
    assert time.monotonic() - started < 5
    counting.count("claims", "claimed", by=4)
    server.start() if outage == "stopped" else server.thaw()
    counting.flush()
    # A frozen server may find what was sent to it in its sockets, and count it twice; never less.
    found = total(client, "claims_total", "claimed")
    assert found == 7 if outage == "stopped" else found >= 7

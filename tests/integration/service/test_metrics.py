"""What processes say of themselves in Redis: added up once, whatever is done to Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from service import connection, processes
from service import metrics as service_metrics
from service.inbox import Inbox, keys
from service.metrics import Metrics, Role
from service.processes import FORGOTTEN
from service.settings import Settings
from service.survey import survey
from tests.conftest import wait_until
from tests.unit.service.test_status import SEEN

COUNTING = """
import sys
from redis import Redis
from service.metrics import Metrics

counting = Metrics(Redis.from_url(sys.argv[1]))
for _ in range(10):
    counting.count("claims", "claimed")
"""


@pytest.fixture
def metrics() -> Iterator[Callable[..., Metrics]]:
    """Make metrics, which end with the test."""
    made: list[Metrics] = []

    def make(client: Redis, role: Role = "worker") -> Metrics:
        made.append(Metrics(client, role))
        return made[-1]

    yield make
    for each in made:
        each.end()


def total(client, name: str) -> float:
    return sum(each.process.counts.get(name, 0) for each in survey(client).running)


def test_when_each_was_last_seen_is_kept_for_those_who_look(redis) -> None:
    """All that `status` asks for."""
    series = {"verified_with|default", *(name for _, seen in SEEN for name in seen)}
    metrics = Metrics(redis, "worker")
    for each in series:
        metrics.count(*each.split("|"))
    metrics.end()
    assert survey(redis).seen.keys() == series


def test_a_report_costs_one_command_however_much_was_counted(
    redis, server, metrics, monkeypatch
) -> None:
    monkeypatch.setattr(Metrics, "_report_for_ever", lambda _: None)  # else it reports by itself
    counting = metrics(redis)
    counting.flush()
    for answer in ("claimed", "gone", "leased"):
        counting.count("claims", answer)
    counting.observe("settle_seconds", 0.02)
    with server.client() as other, other.monitor() as monitor:
        counting.flush()
        redis.echo("that was all")
        seen = []
        while (command := monitor.next_command())["command"] != "ECHO that was all":
            seen.append(command)
    sent = [each["command"].split()[0] for each in seen if each["client_type"] != "lua"]
    assert sent == ["EVALSHA"]
    assert len(seen) == 4, "GET clock, TIME, HSET"


def test_processes_add_up_and_say_that_they_end(redis, server, processes) -> None:
    started = [processes.python("-c", COUNTING, server.url)[0] for _ in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    assert total(redis, "claims|claimed") == 20
    assert all(each.process.ended and not each.alive for each in survey(redis).running)


def test_no_report_after_the_end_says_that_it_lives(redis, metrics) -> None:
    counting = metrics(redis)
    counting.start()
    wait_until(lambda: [each for each in survey(redis).running if each.alive])
    counting.end()
    counting.flush()  # by whoever asks for the page meanwhile
    assert [each.process.ended for each in survey(redis).running] == [True]


def test_who_counts_nothing_says_all_the_same_that_it_lives(redis, metrics, monkeypatch) -> None:
    monkeypatch.setattr(service_metrics, "PERIOD", 0.02)
    monkeypatch.setattr(service_metrics, "BEAT", 0.1)
    counting = metrics(redis)
    counting.start()
    for _ in range(3):  # also after Redis was emptied
        wait_until(lambda: [each for each in survey(redis).running if each.alive], within=30)
        redis.flushdb()


def test_counts_come_by_themselves_within_seconds(redis, metrics) -> None:
    metrics(redis).count("redriven", by=5)
    wait_until(lambda: total(redis, "redriven") == 5, within=30)


@pytest.mark.parametrize("outage", ["stopped", "frozen", "emptied"])
def test_counts_are_exact_after_an_outage(outage, new_server, metrics) -> None:
    server = new_server()
    client = connection.connect(Settings(redis_url=server.url))
    counting = metrics(client)
    counting.count("claims", "claimed")
    counting.flush()
    if outage == "emptied":
        client.flushall()
    else:
        server.stop() if outage == "stopped" else server.freeze()
    counting.count("claims", "claimed", by=2)
    started = time.monotonic()
    counting.flush()
    assert time.monotonic() - started < 30
    counting.count("claims", "claimed", by=4)
    if outage != "emptied":
        server.start() if outage == "stopped" else server.thaw()
    counting.flush()
    # What Redis does not take yet, it is told again.
    wait_until(lambda: total(client, "claims|claimed") == 7)


@pytest.mark.parametrize("outage", ["stopped", "frozen"])
def test_what_could_not_be_told_is_told_by_itself_and_with_it_when_it_was(
    outage, new_server, metrics
) -> None:
    """A worker that is idle after an outage counts nothing that would bring the rest."""
    server = new_server()
    client = connection.connect(Settings(redis_url=server.url))
    counting = metrics(client, "periodic")
    counting.flush()
    server.stop() if outage == "stopped" else server.freeze()
    counting.count("reconcile_missed", by=3)
    counting.flush()
    server.start() if outage == "stopped" else server.thaw()
    wait_until(lambda: "reconcile_missed" in survey(client).seen, within=30)
    assert total(client, "reconcile_missed") == 3


def test_they_are_told_also_while_redis_is_full(new_server, metrics) -> None:
    server = new_server()
    with server.client() as client:
        counting = metrics(client, "worker")
        counting.count("claims", "claimed")
        client.config_set("maxmemory", 1)
        counting.flush()
        assert total(client, "claims|claimed") == 1


def test_it_is_kept_when_something_was_last_counted(redis, metrics) -> None:
    counting = metrics(redis, "web")
    counting.count("refusals", "signature_mismatch")
    counting.flush()
    redis.hincrby(keys.SEEN, "refusals|signature_mismatch", -60_000)
    counting.count("refusals", "signature_expired")
    counting.flush()
    seen = survey(redis).seen
    assert 60 <= seen["refusals|signature_mismatch"] < 90
    assert 0 <= seen["refusals|signature_expired"] < 30


def test_what_ended_long_ago_is_forgotten(redis, metrics) -> None:
    metrics(redis).flush()
    now = Inbox(redis).now() * 1000
    processes.forget(redis, now + processes.ALIVE * 1000 + 1000)  # its last counts may be unread
    processes.forget(redis, now)
    assert len(survey(redis).running) == 1
    processes.forget(redis, now + FORGOTTEN * 1000 + 1000)
    assert survey(redis).running == []

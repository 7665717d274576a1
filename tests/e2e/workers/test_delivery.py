"""What the service promises about handlers, with real processes that really die."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def statuses(event: dict) -> dict[str, tuple[str, int]]:
    return {h["name"]: (h["status"], h["attempts"]) for h in event["handlers"]}


ALL_DONE = {
    "audit.log_event": ("done", 1),
    "effects.first": ("done", 1),
    "effects.second": ("done", 1),
    "effects.third": ("done", 1),
}


def test_every_handler_runs_once_and_sees_the_personal_data(system) -> None:
    running = system()
    event = running.settled(running.verify())

    assert statuses(event) == ALL_DONE
    assert running.words("third") == ["saw-personal-data", "done"]
    assert len({line[5] for line in running.effects() if line[1] == "first"}) == 1
    assert event["outcome"] == "verified"


def test_fifty_posts_of_one_event_are_one_run_per_handler(system) -> None:
    running = system(BEHAVIOUR="slow")
    session = running.verify()
    running.wait_until(lambda: running.event(session))
    event = running.event(session)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: running.deliver(event), range(50)))

    assert answers == [200] * 50
    assert statuses(running.settled(session)) == ALL_DONE
    assert running.words("first") == ["done"]
    listed = json.loads(running.command("service", "events", "list", "--json"))
    assert [e["id"] for e in listed].count(event["id"]) == 1


@pytest.mark.sample(1)
@pytest.mark.parametrize("who", ["child", "both"])
def test_a_worker_killed_in_the_second_handler_costs_only_that_run(system, who) -> None:
    running = system(BEHAVIOUR="wait")
    session = running.verify()
    child = running.running()
    (key,) = {line[0] for line in running.effects()}
    parent = running.workers[0][0]
    if who == "both":
        kill(parent.pid, child)
        running.start_worker()
    else:
        kill(child)
        # Should it die of it again, the reason of its quarantine names the handler.
        with running.redis.client() as redis:
            running.wait_until(lambda: redis.hget(f"iw:evt:{key}", "ran") == b"effects.second")
    running.let_go()
    running.wait_until(lambda: running.words("second").count("started") == 2)
    event = running.settled(session)

    assert statuses(event) == ALL_DONE
    assert running.words("first") == ["done"], "what was done is not done again"
    assert running.words("second") == ["started", "started", "done"]
    assert running.words("third")[-1] == "done"
    assert (parent.poll() is None) == (who == "child"), "the parent starts a new child by itself"
    if who == "child":
        (died,) = running.lines("worker_died")
        assert (died["exit_code"], died["running"]) == (-9, ["effects.second"])
        assert died["in_hand"] == [event["id"]]
        kill(running.lines("worker_ready")[-1]["pid"])
        running.wait_until(lambda: len(running.lines("worker_died")) == 2)
        assert running.lines("worker_died")[1]["in_hand"] == [], "not what an earlier one had"


def test_sigterm_lets_the_running_handler_finish_and_gives_the_rest_back(system) -> None:
    running = system(BEHAVIOUR="wait")
    session = running.verify()
    running.running()
    worker = running.workers[0][0]
    worker.terminate()
    with running.redis.client() as redis:
        running.wait_until(lambda: not redis.scard("rq:workers"))  # left by one that is to stop
    running.let_go()
    assert worker.wait(120) == 0

    assert running.words("second") == ["started", "done"]
    assert running.words("third") == [], "nothing new was begun"
    running.start_worker()
    assert statuses(running.settled(session)) == ALL_DONE
    assert running.words("first") == ["done"]


def test_sigterm_gives_back_what_does_not_finish_in_time(system) -> None:
    running = system(BEHAVIOUR="long")
    session = running.verify()
    running.running()
    worker = running.workers[0][0]
    worker.terminate()
    started = time.monotonic()
    assert worker.wait(120) == 0

    assert 20 < time.monotonic() - started < 50, "the handler would take 60 s"
    (left,) = running.lines("worker_leaves")  # by itself: its parent would kill it 3 s later
    assert left["reason"] == "grace_period_over"
    event = running.event(session)
    assert event is not None
    assert event["state"] == "pending"
    assert "effects.second" not in statuses(event), "no attempt was spent"


def test_a_worker_leaves_also_while_redis_is_away(system, wait_until) -> None:
    running = system()
    worker, log = running.workers[0]
    running.settled(running.verify())
    running.redis.stop()
    wait_until(lambda: "could not connect" in log.read_text())
    worker.terminate()

    assert worker.wait(20) == 0, "sooner than a handler's 25 s"
    lines = map(json.loads, log.read_text().splitlines())
    (said, *_) = [line["event"] for line in lines if line["logger"].startswith("rq.")]
    assert re.fullmatch(r"Worker \w+: could not connect to [^%]*: [^%<]+ retrying in 1 .*", said)


def test_an_idle_worker_leaves_soon(system, clock) -> None:
    running = system()
    worker = running.workers[0][0]
    began = clock(worker)
    worker.terminate()
    while worker.poll() is None:
        assert clock(worker) - began < 20, "sooner than a handler's 25 s"
        time.sleep(0.1)
    assert worker.returncode == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("behaviour", "trace"),
    [
        ("raise", "ValueError"),
        ("exit", "SystemExit"),
        ("base", "BaseException"),
        ("unprintable", "Unprintable"),
        ("retry", "wait for [personal]"),
    ],
)
def test_whatever_a_handler_raises_is_its_own_trouble(system, behaviour, trace) -> None:
    running = system(BEHAVIOUR=behaviour)
    session = running.verify()
    event = running.settled(session)

    assert statuses(event) == ALL_DONE | {"effects.second": ("done", 2)}
    assert running.words("first") == ["done"]
    assert running.words("third") == ["saw-personal-data", "done"]
    assert trace in running.worker_log()
    assert "worker_died" not in running.worker_log()


def test_a_handler_that_hangs_is_ended_and_tried_again(system) -> None:
    running = system(BEHAVIOUR="hang")

    def counted() -> str:
        return requests.get(f"http://127.0.0.1:{running.port}/metrics", timeout=120).text

    # Of a process that it has never seen, the page does not add what is older than a minute.
    running.wait_until(lambda: 'processes{role="worker"} 1.0' in counted())
    session = running.verify()
    event = running.settled(session)

    assert statuses(event) == ALL_DONE | {"effects.second": ("done", 2)}
    (line,) = running.lines("handler_timeout")
    assert (line["handler"], line["event_id"]) == ("effects.second", event["id"])
    assert line["session_id"] == session
    # The process that timed out has written its counts before it left.
    assert 'handler_runs_total{handler="effects.second",status="retry"} 1.0' in counted()
    assert running.words("first") == ["done"]


@pytest.mark.walk
@pytest.mark.parametrize(
    ("behaviour", "code"), [("os-exit", 3), pytest.param("segfault", -11, marks=pytest.mark.walk)]
)
def test_what_kills_its_process_costs_one_worker_and_the_others_no_attempt(
    system, behaviour, code
) -> None:
    running = system()
    poison = running.verify(behave=behaviour)
    others = [running.verify(behave="slow") for _ in range(4)]
    for session in others:
        assert statuses(running.settled(session)) == ALL_DONE, "no attempt was spent"
    event = running.settled(poison)

    # The first run ended the worker. The second ended the process that it had beside the worker,
    # which is a failed attempt; so has the third, in which the handler behaves.
    assert statuses(event) == ALL_DONE | {"effects.second": ("done", 2)}
    assert f"failed: its process died (exit code {code})" in running.worker_log()
    (died,) = running.lines("worker_died")
    assert "effects.second" in died["running"]
    runs = [line for line in running.effects() if line[0] == event["id"]]
    assert [line[1] for line in runs].count("first") == 1
    started = [line for line in runs if line[1:4:2] == ["second", "started"]] or runs
    assert len({line[2] for line in started if line[1] == "second"}) == 3, "three processes"
    assert running.workers[0][0].poll() is None


def test_a_dead_event_stays_dead_on_redelivery_and_can_be_replayed(system) -> None:
    running = system(BEHAVIOUR="never")
    session = running.verify()
    event = running.settled(session, state="dead")
    assert event["reason"] == "effects.second: discarded: no such user: [personal]"

    assert running.deliver(event) == 200
    time.sleep(2)
    assert running.words("second").count("started") == 1
    running.command("service", "events", "replay", event["key"])
    running.wait_until(lambda: running.words("second").count("started") == 2)
    running.settled(session, state="dead")
    assert running.words("first") == ["done"]


def test_a_dead_event_is_reopened_on_redelivery_if_so_set(system) -> None:
    running = system(BEHAVIOUR="never", REOPEN_DEAD_ON_REDELIVERY="1")
    session = running.verify()
    event = running.settled(session, state="dead")
    assert running.deliver(event) == 200

    running.wait_until(lambda: running.words("second").count("started") == 2)
    assert running.words("first") == ["done"]


def test_a_change_that_comes_in_both_forms_is_handled_once(system) -> None:
    running = system(forms=2)
    sessions = [running.verify() for _ in range(5)]
    for session in sessions:
        running.settled(session)
    running.wait_until(lambda: not running.listed("pending"))

    # created and processing have no handler but `audit`, verified has them all.
    assert len(running.words("first")) == 5
    twins = [e for e in running.listed("done") if e["outcome"] == "twin"]
    worked_on = [e for e in running.listed("done") if e["outcome"] != "twin"]
    assert len(worked_on) == 15
    assert len(twins) <= 15, "the rest leads to the event that was first"
    keys = {line[5] for line in running.effects() if line[1] == "first"}
    snapshots = {e["id"] for s in sessions for e in running.stripe_events(s)}
    assert {key.partition(":")[0] for key in keys} <= snapshots, "the key is the same in both forms"


def test_while_stripe_refuses_the_key_everything_waits_and_nothing_is_spent(system) -> None:
    running = system()
    running.control("keys/revoke", key="sk_test_workers")
    session = running.verify(key="sk_test_other")
    running.wait_until(lambda: "stripe_refuses_our_key" in running.worker_log())
    running.wait_until(lambda: len(running.listed("pending")) == 3)
    events = running.listed("pending")

    assert {e["session"] for e in events} == {session}
    assert [e["handlers"] for e in events] == [[], [], []]
    assert any(e["reason"].startswith("stripe: key 401") for e in events)
    assert running.worker_log().count("stripe_refuses_our_key") < 3, "the others did not try"

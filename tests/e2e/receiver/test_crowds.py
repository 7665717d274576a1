"""No client ends a process, none makes another wait, and a Redis in trouble holds nobody."""

from __future__ import annotations

import re
import selectors
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

PATIENCE = 5.0
"""Seconds: the worst answer a good client may get. Two are promised; on two cores that two thousand
clients and four other tests share, 3.4 were seen. Without a deadline it would be thirty."""


@pytest.mark.walk
@pytest.mark.parametrize("size", [700, pytest.param(2000, marks=pytest.mark.walk)])
def test_a_crowd_beside_a_redis_that_freezes(
    size, new_receiver, new_server, processes, children, wait_until
) -> None:
    server = new_server()
    receiver = new_receiver(REDIS_URL=server.url, WEB_CONCURRENCY="2", LOG_LEVEL="error")
    wait_until(lambda: len(children(receiver.process.pid)) == 2)
    before = children(receiver.process.pid)
    processes.python("tests/e2e/receiver/crowd.py", str(receiver.port), str(size))
    number, worst = 0, 0.0
    statuses = set()
    for frozen in (False, True, False):
        if frozen:
            server.freeze()
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            number += 1
            answer = receiver.deliver(receiver.event(f"evt_{number}"))
            statuses.add((frozen, answer.status))
            worst = max(worst, answer.seconds)
            if frozen:
                assert receiver.get("/healthz").status_code == 200
        if frozen:
            server.thaw()
    assert statuses <= {(False, 200), (True, 503), (True, 200), (False, 503)}
    assert {(False, 200), (True, 503)} <= statuses
    assert worst < PATIENCE
    assert children(receiver.process.pid) == before


def deliveries(receiver, count: int) -> list[socket.socket]:
    """Send as many deliveries at once, each on a connection of its own."""
    sockets: list[socket.socket] = []
    for number in range(count):
        body = receiver.event(f"evt_{number}")
        header = f"Stripe-Signature: {receiver.sign(body)}"
        one = receiver.connect()
        one.sendall(receiver.request(body, f"Content-Length: {len(body)}", header))
        sockets.append(one)
    return sockets


def answers(sockets: list[socket.socket], within: float) -> list[int | None]:
    """Return the status that each was answered with, None for one that was not in time."""
    statuses: dict[socket.socket, int | None] = dict.fromkeys(sockets)
    ends = time.monotonic() + within
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map() and (left := ends - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                data = key.fileobj.recv(4096)
                statuses[key.fileobj] = int(data.split()[1]) if data else None
    for one in sockets:
        one.close()
    return list(statuses.values())


HEAD = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"


def test_one_who_leaves_before_the_answer_takes_no_other_with_it(
    new_receiver, server, redis, children
) -> None:
    receiver = new_receiver(REDIS_URL=server.url, LOG_LEVEL="error")
    before = children(receiver.process.pid)
    gone = (
        b"POST /webhooks/stripe HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        b"GET /readyz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    for number in range(100):
        for raw in gone:
            with receiver.connect() as one:
                one.sendall(raw)
        assert receiver.deliver(receiver.event(f"evt_{number}")).status == 200
    assert children(receiver.process.pid) == before


@pytest.mark.sample(1)
@pytest.mark.parametrize("path", [b"GET /healthz", b"GET /readyz", b"GET /metrics", b"POST /x"])
def test_floods_of_requests_hold_nobody(path, new_receiver, server, redis, children) -> None:
    receiver = new_receiver(REDIS_URL=server.url, LOG_LEVEL="error")
    before = children(receiver.process.pid)
    flood = (path + b" HTTP/1.1\r\nHost:\r\n\r\n") * 8_000
    held = []
    for number in range(60):
        one = receiver.connect()
        one.setblocking(False)
        with suppress(OSError):
            one.send(flood)
        held.append(one)
        if number % 5 == 0:
            answer = receiver.deliver(receiver.event(f"evt_{number}"))
            assert answer.status == 200
            assert answer.seconds < PATIENCE
    for one in held:
        one.close()
    assert children(receiver.process.pid) == before


class Trouble:
    """What may become of Redis while deliveries are under way."""

    @staticmethod
    def freeze(server, **_: object) -> None:
        server.freeze()

    @staticmethod
    def stop(server, **_: object) -> None:
        server.stop()

    @staticmethod
    def lose_the_name(server, names: Path, **_: object) -> None:
        names.touch()
        server.stop()


@pytest.mark.sample(1)
@pytest.mark.parametrize("trouble", ["freeze", "stop", "lose_the_name"])
def test_500_deliveries_under_way_when_redis_goes(
    trouble, new_receiver, new_server, tmp_path, wait_until
) -> None:
    server, names = new_server(), tmp_path / "names-hang"
    receiver = new_receiver(
        REDIS_URL=server.url.replace("127.0.0.1", "slow.test"),
        PYTHONPATH="tests/data/slow_names",
        SLOW_NAMES_WHILE=str(names),
    )
    assert receiver.deliver(receiver.event("evt_first")).status == 200
    with ThreadPoolExecutor(1) as aside:
        getattr(Trouble, trouble)(server=server, names=names)
        sockets = deliveries(receiver, 500)
        sent = receiver.clock()
        told = aside.submit(lambda: (answers(sockets, within=120), receiver.clock()))
        while not told.done():
            began = receiver.clock()
            assert receiver.get("/healthz").status_code == 200
            assert receiver.clock() - began < PATIENCE, "the loop waits for nobody"
            time.sleep(0.02)
        statuses, answered = told.result()
    assert set(statuses) == {503}
    assert answered - sent < PATIENCE
    ready = receiver.clock()
    assert receiver.get("/readyz").status_code == 503
    assert receiver.clock() - ready < PATIENCE
    names.unlink(missing_ok=True)
    server.thaw() if trouble == "freeze" else server.start()
    wait_until(lambda: receiver.deliver(receiver.event("evt_last")).status == 200)


def test_memory_is_bounded_by_what_is_kept(new_receiver, new_server, children) -> None:
    receiver = new_receiver(REDIS_URL=new_server().url)
    (worker,) = children(receiver.process.pid)

    def resident() -> int:
        status = Path(f"/proc/{worker}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024

    before = resident()
    body = HEAD + b"Content-Length: 262144\r\n\r\n" + b"x" * 250_000
    held = []
    for _ in range(600):
        one = receiver.connect()
        with suppress(OSError):
            one.sendall(body)
        held.append(one)
    assert receiver.deliver(receiver.event()).status == 200
    assert resident() - before < 100, "of 150 MB that were sent"
    for one in held:
        one.close()

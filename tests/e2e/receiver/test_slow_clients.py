"""Clients that send slowly, stay, or come in crowds: everyone else is served all the same."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

CROWD = 40
"""Connections of each kind."""

PATIENCE = 5.0
"""Seconds: the worst answer a good client may get. Two are promised; the rest is for a machine that
is busy with other tests. Whoever waited for the slow ones would wait for six or more."""


@pytest.fixture
def small_receiver(new_receiver, server, redis):  # empties the inbox
    """One gunicorn worker, so that there is nobody else to serve."""
    return new_receiver(REDIS_URL=server.url)


class Crowd:
    """Connections that each send some bytes, and then one byte a second."""

    def __init__(self, receiver, opening: bytes, count: int = CROWD) -> None:
        self.sockets = [receiver.connect() for _ in range(count)]
        for connection in self.sockets:
            with suppress(OSError):  # more than it takes
                connection.sendall(opening)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        self._thread.start()

    def _drip(self) -> None:
        while not self._over.wait(1):
            for connection in self.sockets:
                with suppress(OSError):
                    connection.sendall(b"x")

    def closed_within(self, seconds: float) -> bool:
        """Whether the server closes every one of these connections in time."""
        deadline = time.monotonic() + seconds
        for connection in self.sockets:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                while connection.recv(4096):
                    pass
            except TimeoutError:
                return False
            except ConnectionError:
                continue
        return True

    def leave(self) -> None:
        self._over.set()
        self._thread.join()
        for connection in self.sockets:
            connection.close()


@pytest.fixture
def crowd() -> Iterator[type[Crowd]]:
    crowds = []

    def gather(*args, **kwargs):
        crowds.append(Crowd(*args, **kwargs))
        return crowds[-1]

    yield gather
    for one in crowds:
        one.leave()


POST = "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"
HEAD = POST.encode()
OPENINGS = {
    "nothing": b"",
    "slow line": b"POST /web",
    "slow headers": HEAD + b"Accept: ",
    "slow body": HEAD + b"Content-Length: 200000\r\n\r\n{",
    "slow chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n20000\r\n{",
    "answered and stays": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "refused and stays": b"NONSENSE\r\n\r\n",
    "asks without reading": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
}


def test_others_are_served_meanwhile(small_receiver, crowd) -> None:
    receiver = small_receiver
    crowds = {name: crowd(receiver, opening) for name, opening in OPENINGS.items()}
    for number in range(20):
        answer = receiver.deliver(receiver.event(f"evt_{number}"))
        assert answer.status == 200
        assert answer.seconds < PATIENCE
    let_go = {name: held.closed_within(120) for name, held in crowds.items()}
    assert all(let_go.values()), let_go


def test_a_full_house_lets_the_slowest_go_first(small_receiver, crowd) -> None:
    crowd(small_receiver, HEAD, count=1_200)  # MAX_CONNECTIONS is 1,000
    for number in range(20):
        answer = small_receiver.deliver(small_receiver.event(f"evt_{number}"))
        assert answer.status == 200
        assert answer.seconds < PATIENCE


def test_unfinished_bodies_cannot_fill_the_memory(small_receiver, crowd) -> None:
    # 300 of these are 75 MB; the process keeps 16.
    body = HEAD + b"Content-Length: 262144\r\n\r\n" + b"x" * 250_000
    held = []
    with small_receiver.connect() as idle:
        ask_healthz(idle)
        for _ in range(300):
            connection = small_receiver.connect()
            with suppress(OSError):
                connection.sendall(body)
            held.append(connection)
        assert small_receiver.deliver(small_receiver.event()).status == 200
        ask_healthz(idle)  # who holds nothing is not dropped for it
    kept = 0
    for connection in held:
        connection.setblocking(False)
        try:
            connection.recv(1)
        except BlockingIOError:
            kept += 1
        except ConnectionError:
            pass
        connection.close()
    assert kept <= 70


def test_a_delivery_that_waits_for_redis_is_not_dropped_for_them(new_receiver, new_server) -> None:
    own = new_server()
    receiver = new_receiver(REDIS_URL=own.url)
    assert receiver.deliver(receiver.event()).status == 200
    body = receiver.event("evt_2", padding="x" * 255_000)  # no other holds as much
    more = HEAD + b"Content-Length: 262144\r\n\r\n" + b"x" * 250_000
    signed = receiver.request(
        body, f"Content-Length: {len(body)}", f"Stripe-Signature: {receiver.sign(body)}"
    )
    with receiver.connect() as waits, ExitStack() as stack:
        own.freeze()
        waits.sendall(signed)
        others = [stack.enter_context(receiver.connect()) for _ in range(100)]
        for connection in others:  # 25 MB; the process keeps 16
            with suppress(OSError):
                connection.sendall(more)
        assert select.select(others, [], [], 120)[0], "it has dropped some"
        own.thaw()
        waits.settimeout(60)
        # In time or not: it is answered.
        assert waits.recv(4096).startswith((b"HTTP/1.1 200", b"HTTP/1.1 503"))


def ask_healthz(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_requests_that_wait_for_their_answers_cannot_fill_the_memory(
    small_receiver, children
) -> None:
    receiver = small_receiver
    (worker,) = children(receiver.process.pid)
    before = resident_megabytes(worker)
    body = b"POST /absent HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n" + b"x" * 250_000
    held = []
    for _ in range(300):  # 75 MB; the process keeps 16
        connection = receiver.connect()
        with suppress(OSError):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 30 + body)
        held.append(connection)
    assert receiver.deliver(receiver.event()).status == 200
    assert resident_megabytes(worker) < before + 50
    for connection in held:
        connection.close()
    assert children(receiver.process.pid) == [worker]


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_a_request_that_begins_behind_another_has_its_deadline(small_receiver) -> None:
    begun = HEAD + b"Content-Length: 262144\r\n\r\n" + b"x" * 100_000
    with small_receiver.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + begun)
        received = b""
        while part := connection.recv(65_536):
            received += part
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1 408") == 1


@pytest.mark.sample(2)
@pytest.mark.parametrize("waited", [1, 4.8])
@pytest.mark.parametrize("kept_back", ["all", "the end"])
def test_a_delivery_that_comes_late_is_answered_when_redis_hangs(
    new_receiver, new_server, waited, kept_back
) -> None:
    """The deadline of the client, which has nearly passed, is not that of the answer."""
    own = new_server()
    receiver = new_receiver(REDIS_URL=own.url)
    body = receiver.event()
    raw = receiver.request(
        body, f"Content-Length: {len(body)}", f"Stripe-Signature: {receiver.sign(body)}"
    )
    rest = raw if kept_back == "all" else raw[-5:]
    with receiver.connect() as connection:
        connection.sendall(raw.removesuffix(rest))
        time.sleep(waited)
        own.freeze()
        began = receiver.clock()
        connection.sendall(rest)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")
        assert receiver.clock() - began < PATIENCE
    own.thaw()


class TestOneConnection:
    def answers(self, receiver, *pieces: bytes, pause: float = 0.05) -> bytes:
        with receiver.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            with suppress(ConnectionError):
                while part := connection.recv(65_536):
                    received += part
        return received

    def test_many_requests_one_after_another(self, receiver) -> None:
        body = receiver.event()
        head = f"{POST}Stripe-Signature: {receiver.sign(body)}\r\n"
        one = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        received = self.answers(receiver, one, one, one)
        assert received.count(b"HTTP/1.1 200 OK") == 3

    def test_many_requests_at_once(self, receiver) -> None:
        received = self.answers(receiver, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        assert received.count(b"HTTP/1.1 200 OK") == 50

    def test_a_request_that_comes_in_many_pieces(self, receiver) -> None:
        body = receiver.event()
        head = f"{POST}Stripe-Signature: {receiver.sign(body)}\r\n"
        one = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        pieces = [one[start : start + 97] for start in range(0, len(one), 97)]
        received = self.answers(receiver, *pieces, pause=0.005)
        assert received.startswith(b"HTTP/1.1 200 OK")

    def test_one_who_asks_before_sending_the_body(self, receiver) -> None:
        body = receiver.event()
        head = (
            f"{POST}Stripe-Signature: {receiver.sign(body)}\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        with receiver.connect() as connection:
            connection.sendall(head.encode())
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")

    def test_the_rest_of_a_refused_body_is_no_request(self, receiver) -> None:
        inner = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        head = POST.encode() + b"Content-Length: 999999\r\n\r\n"
        received = self.answers(receiver, head, inner * 10)
        assert received.startswith(b"HTTP/1.1 413")
        assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /absent HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"<script>alert(1)</script>\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_no_answer_says_what_serves_or_repeats_what_was_sent(receiver, request_) -> None:
    answer = receiver.send(request_)
    assert answer.status is not None
    assert "server" not in answer.headers
    assert b"gunicorn" not in answer.body
    assert b"script" not in answer.body


# The second in which a quiet one may say a last word may pass for us alone.
UNHURRIED = """
from service.server import worker
worker.LAST_WORD *= 10
worker.LAST_SECONDS *= 2
from gunicorn.app.wsgiapp import run
run()
"""


def test_sigterm_finishes_what_came_whole(serve, gunicorn) -> None:
    bind = ("--workers", "1", "--bind", "127.0.0.1:{port}")
    receiver = serve("-c", UNHURRIED, *gunicorn[gunicorn.index("-c") :], *bind)
    with receiver.connect() as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle.recv(4096)
        receiver.process.terminate()
        answer = b""
        while b"Connection: close" not in answer:  # until the worker knows
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = idle.recv(4096)
            assert b"200 OK" in answer
            time.sleep(0.01)
    assert receiver.process.wait(120) == 0
    assert "Worker exiting" in receiver.log.read_text(), "gunicorn kills it after 25 s"


def test_what_connects_after_sigterm_is_answered_and_told_that_it_is_the_last(
    new_receiver, server, redis, wait_until
) -> None:
    """A proxy would send its next delivery on a connection that it believes is kept."""
    receiver = new_receiver(REDIS_URL=server.url, DRAIN_SECONDS="10")
    receiver.process.terminate()
    wait_until(lambda: receiver.get("/readyz").status_code == 503)
    with receiver.connect() as late:
        late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: late.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in answer


def test_a_whole_crowd_that_has_connected_before_the_end_is_answered(
    new_receiver, server, redis, children
) -> None:
    """The kernel has accepted them; the process stood still, and comes back only to end."""
    receiver = new_receiver(REDIS_URL=server.url, DRAIN_SECONDS="0")
    (worker,) = children(receiver.process.pid)
    os.kill(worker, signal.SIGSTOP)
    receiver.process.terminate()
    with ExitStack() as open_ones:
        # More than it accepts before it knows that it is to end.
        crowd = [open_ones.enter_context(receiver.connect()) for _ in range(10 * CROWD)]
        for number, connection in enumerate(crowd):
            body = receiver.event(f"evt_{number}")
            length, signed = f"Content-Length: {len(body)}", receiver.sign(body)
            connection.sendall(receiver.request(body, length, f"Stripe-Signature: {signed}"))
        os.kill(worker, signal.SIGCONT)
        answers = [b"".join(iter(lambda c=each: c.recv(4096), b"")) for each in crowd]
    statuses = [answer.split()[1] for answer in answers]
    # On a busy machine Redis may take longer than it has for them.
    assert set(statuses) <= {b"200", b"503"}
    assert statuses.count(b"200") <= redis.zcard("iw:due")
    assert receiver.process.wait(120) == 0


@pytest.mark.parametrize(
    ("drain", "pause"),
    [("0", 0), ("0", 1.5), ("10", 0)],
    ids=["at once", "after a pause in which quiet ones are closed", "while it drains"],
)
def test_a_delivery_that_has_begun_before_sigterm_is_taken_in_after_it(
    drain, pause, new_receiver, server, redis, wait_until
) -> None:
    receiver = new_receiver(REDIS_URL=server.url, DRAIN_SECONDS=drain)
    body = receiver.event("evt_begun")
    length, signed = f"Content-Length: {len(body)}", f"Stripe-Signature: {receiver.sign(body)}"
    raw = receiver.request(body, length, signed)

    def is_told() -> bool:
        try:
            return receiver.get("/readyz").status_code == 503
        except requests.RequestException:  # nobody listens any more
            return True

    with receiver.connect() as begun:
        begun.sendall(raw[:-7])
        assert receiver.get("/readyz").status_code == 200  # by then the first part has come
        receiver.process.terminate()
        wait_until(is_told)
        time.sleep(pause)
        begun.sendall(raw[-7:])
        answer = b"".join(iter(lambda: begun.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert redis.exists("iw:evt:evt_begun")
    if drain != "0":
        late = receiver.deliver(receiver.event("evt_late"))
        assert (late.status, late.json()["answer"]) == (200, "new")
        assert redis.zcard("iw:due") == 2

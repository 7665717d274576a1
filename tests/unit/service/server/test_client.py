"""Which deadline a connection has in each of its states, and what happens when it passes."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from service.limits import (
    ANSWER_DEADLINE,
    KEEP_ALIVE,
    LINGER,
    MAX_CONNECTIONS,
    MAX_HELD,
    MAX_WAITING_PAGES,
    READ_DEADLINE,
    SEND_DEADLINE,
)
from service.server import client as client_module
from service.server import worker
from service.server.client import Client
from service.server.http import Exchange, Refusal, Response
from service.server.worker import _Server
from tests.logs import Said

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_GET = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
BEGUN = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"


class World:
    """A loop whose time is set, a transport, and a server that answers when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.clients: set[Client] = set()
        self.held = 0
        self.asked: list[Exchange] = []
        self.sent = b""
        self.ended = ""
        self.refusals: list[str] = []
        self.reads = True
        self.client = Client(self, self)  # type: ignore[arg-type]
        self.client.connection_made(self)  # type: ignore[arg-type]

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        callback(*args)

    def dispatch(self, _: Client, exchange: Exchange) -> None:
        self.asked.append(exchange)

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal.reason)

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.ended == "dropped"

    def write_eof(self) -> None:
        self.ended = "closed"

    def close(self) -> None:
        self.ended = "closed at once"

    def abort(self) -> None:
        self.ended = "dropped"

    def get_extra_info(self, name: str) -> object:
        return {"peername": ("192.0.2.7", 50_000), "sockname": ("198.51.100.1", 8000)}[name]

    def relieve(self) -> None: ...

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def set_write_buffer_limits(self, high: int) -> None: ...

    def receive(self, data: bytes, after: float = 0) -> None:
        self.now += after
        self.client.data_received(data)

    def answer(self, after: float = 0) -> None:
        self.now += after
        self.client.respond(self.asked[-1], Response(200))


def answered(world: World) -> None:
    world.receive(GET)
    world.answer(after=1)


def linger(world: World) -> None:
    world.receive(LAST_GET)
    world.answer()


STATES: dict[str, tuple[Callable[[World], Any], float, str]] = {
    "nothing came": (lambda w: None, READ_DEADLINE, "closed"),
    "a request has begun": (lambda w: w.receive(BEGUN, after=2), READ_DEADLINE, "408"),
    "it goes on": (
        lambda w: (w.receive(BEGUN), w.receive(b'"', after=2)),
        READ_DEADLINE - 2,
        "408",
    ),
    "a request is whole, late": (
        lambda w: (w.receive(GET[:5]), w.receive(GET[5:], after=READ_DEADLINE - 0.1)),
        ANSWER_DEADLINE,
        "dropped",
    ),
    "another has begun behind it": (lambda w: w.receive(GET + BEGUN), ANSWER_DEADLINE, "dropped"),
    "the first is answered": (
        lambda w: (w.receive(GET + BEGUN), w.answer(after=3)),
        READ_DEADLINE,
        "408",
    ),
    "all is answered": (answered, KEEP_ALIVE, "closed"),
    "the next one waits for its answer": (
        lambda w: (answered(w), w.receive(GET, after=KEEP_ALIVE - 0.1)),
        ANSWER_DEADLINE,
        "dropped",
    ),
    "the client does not read": (
        lambda w: (answered(w), w.client.pause_writing()),
        SEND_DEADLINE,
        "dropped",
    ),
    "it reads again": (
        lambda w: (answered(w), w.client.pause_writing(), w.client.resume_writing()),
        KEEP_ALIVE,
        "closed",
    ),
    "it is answered while it does not read": (
        lambda w: (w.receive(GET), w.client.pause_writing(), w.answer(after=1)),
        SEND_DEADLINE - 1,
        "dropped",
    ),
    "all is said": (linger, LINGER, "dropped"),
    "all is said to one that does not read": (
        lambda w: (w.receive(LAST_GET), w.client.pause_writing(), w.answer()),
        SEND_DEADLINE,
        "dropped",
    ),
    "it has read the end at last": (
        lambda w: (
            w.receive(LAST_GET),
            w.client.pause_writing(),
            w.answer(),
            w.client.resume_writing(),
        ),
        LINGER,
        "dropped",
    ),
}


@pytest.mark.parametrize(("reach", "seconds", "end"), STATES.values(), ids=STATES)
def test_each_state_has_its_deadline(reach, seconds, end, said: Said) -> None:
    world = World()
    reach(world)
    assert world.client.deadline == pytest.approx(world.now + seconds)
    world.client.expire()
    if end == "408":
        assert world.sent.rpartition(b"HTTP/1.1 ")[2].startswith(b"408")
        end = "closed"
        assert world.refusals == ["request_too_slow"]
    assert world.ended == end
    # Only where the process owes the answer.
    lines = [(line["event"], line["level"]) for line in said()]
    late = ("request_not_answered", "error")
    assert lines == ([late] if seconds == ANSWER_DEADLINE else [])


def test_a_client_has_its_address_and_ours() -> None:
    client = World().client
    assert (client.address, client.server_address) == ("192.0.2.7", ("198.51.100.1", 8000))


def test_a_client_of_a_unix_socket_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "get_extra_info", lambda *_: "")
    client = World().client
    assert (client.address, client.server_address) == ("unix", ("unix", 0))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x00", "malformed_request"),
        (BEGUN.replace(b": 9", b": 999999"), "body_too_large"),
        (BEGUN, "request_incomplete"),
    ],
)
def test_the_server_is_told_why_a_request_was_refused(sent: bytes, reason: str) -> None:
    world = World()
    world.receive(sent)
    world.client.eof_received()
    assert world.refusals == [reason]


def test_one_that_has_ended_its_part_is_answered_and_then_let_go_at_once() -> None:
    world = World()
    world.receive(GET)
    assert world.client.eof_received(), "the connection stays until it is answered"
    world.answer()
    assert world.sent.startswith(b"HTTP/1.1 200 ")
    assert world.ended == "closed at once"


def test_one_that_has_reset_the_connection_is_dropped_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_gone(_: World) -> None:
        raise OSError(errno.ENOTCONN, "gone")

    monkeypatch.setattr(World, "write_eof", is_gone)
    world = World()
    linger(world)
    assert (world.ended, world.clients) == ("dropped", set())


@pytest.mark.parametrize("fails", ["dispatch", "answer"])
def test_what_goes_wrong_with_a_client_is_said_and_ends_its_connection(
    fails: str, said: Said
) -> None:
    def fail(*_: object) -> None:
        raise KeyError

    world = World()
    if fails == "dispatch":
        world.dispatch = fail  # type: ignore[method-assign]
    world.receive(GET)
    if fails == "answer":
        world.client.respond(world.asked[-1], Response(200, headers=[("A\n", "b")]))
    assert (world.ended, world.clients, world.held) == ("dropped", set(), 0)
    assert [line["event"] for line in said()] == ["client_failed"]


QUIET: dict[str, Callable[[World], Any]] = {
    "nothing came": lambda w: None,
    "all is answered": answered,
    "a request has begun": lambda w: w.receive(BEGUN),
    "a request waits": lambda w: w.receive(GET),
}


@pytest.mark.parametrize("after", [0.9, 1.1])
@pytest.mark.parametrize("state", QUIET)
def test_at_the_end_one_without_a_request_is_closed_after_a_moment(state, after) -> None:
    world = World()
    QUIET[state](world)
    world.now += after
    world.client.close_if_quiet(1.0)
    ends = after > 1 and state in {"nothing came", "all is answered"}
    assert world.ended == ("closed" if ends else "")


def test_each_response_has_the_time_at_which_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(client_module.time, "time", lambda: now)
    for fraction, second in [(0.0, b"20"), (0.9, b"20"), (1.0, b"21"), (0.0, b"20")]:
        now = 1_790_000_000 + fraction
        world = World()
        answered(world)
        assert b"\r\nDate: Mon, 21 Sep 2026 14:13:%b GMT\r\n" % second in world.sent


def lost(world: World) -> None:
    world.ended = "dropped"
    world.client.connection_lost(ConnectionResetError())


def answered_all(world: World) -> None:
    world.client.retire()
    while len(world.asked) > sum(each.response is not None for each in world.asked):
        world.answer()
    lost(world)


ENDS = {
    "it leaves": lost,
    "it is dropped": lambda w: (w.client.drop(), lost(w)),
    "it is dropped twice": lambda w: (w.client.drop(), w.client.drop()),
    "its deadline passes": lambda w: (w.client.expire(), lost(w)),
    "it is answered": answered_all,
}
HELD = {
    "a request has begun": BEGUN,
    "a request is whole": GET,
    "many are whole": GET * 3,
    "one is whole and another has begun": GET + BEGUN,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sent", HELD.values(), ids=HELD)
def test_what_is_held_of_a_client_is_given_back_however_it_ends(sent, end) -> None:
    """Else the memory of all would be used up one day, and everybody be dropped."""
    world = World()
    world.held = 1000  # of others
    world.receive(sent)
    assert world.held > 1000
    assert world.clients == {world.client}
    end(world)
    assert (world.held, world.clients) == (1000, set())


def test_requests_of_a_client_are_seen_to_one_after_another_and_none_once_it_left() -> None:
    world = World()
    for number in range(4):
        world.receive(GET.replace(b"/metrics", b"/%d" % number))
    for number in range(3):
        assert [each.request.path for each in world.asked] == [f"/{n}" for n in range(number + 1)]
        if number < 2:
            world.answer()
    asked = world.asked[-1]
    lost(world)
    world.client.respond(asked, Response(200))
    assert len(world.asked) == 3


@pytest.mark.parametrize("waiting", [1, 3])
def test_one_that_reads_slowly_gets_the_next_answer_when_it_has_read_the_one_before(
    waiting: int,
) -> None:
    world = World()
    world.receive(GET * (1 + waiting))
    for number in range(waiting):
        world.client.pause_writing()
        world.answer()
        assert (len(world.asked), world.reads) == (1 + number, False)
        world.client.resume_writing()
        assert (len(world.asked), world.reads) == (2 + number, number + 1 == waiting)


LAST: dict[str, Callable[[World], Any]] = {
    "its last request is answered": linger,
    "the server has no more for it": lambda w: (answered(w), w.client.close()),
    "nothing came": lambda w: w.client.expire(),
    "it was too slow": lambda w: (w.receive(BEGUN), w.client.expire()),
    "others waited behind it": lambda w: (
        w.receive(GET * 3),
        w.client.retire(),
        w.answer(),
    ),
}


@pytest.mark.parametrize("reach", LAST.values(), ids=LAST)
def test_what_is_still_sent_at_the_end_is_read_and_thrown_away(reach) -> None:
    """Else the kernel answers it with a reset, and the client loses what it was told."""
    world = World()
    reach(world)
    assert (world.ended, world.reads) == ("closed", True)
    told = world.sent
    world.receive(GET)
    assert (world.sent, world.ended) == (told, "closed")


@pytest.mark.parametrize(("clients", "goes"), [(20, 2), (8, 1), (1, 0)])
def test_of_a_full_house_who_is_silent_longest_goes_and_no_delivery(clients, goes) -> None:
    """Half of them, the longest silent among these, have a delivery under way."""
    worlds = [World() for _ in range(clients)]
    for number, world in enumerate(worlds):
        world.client.since = float(number)
        world.client.delivers = number % 2 == 0
    server = object.__new__(_Server)
    server.clients = {world.client for world in worlds}
    assert server._drop_some() == (goes > 0)
    dropped = [n for n, world in enumerate(worlds) if world.ended == "dropped"]
    assert dropped == [1, 3, 5][:goes]


@pytest.mark.parametrize(
    ("delivers", "gone"), [(0, []), (2, ["most"]), (9, ["most", "some"])], ids=str
)
def test_who_holds_most_goes_first_until_half_of_the_memory_is_free(delivers, gone) -> None:
    """A delivery stays, and so does who holds no more than a share."""
    share = MAX_HELD // MAX_CONNECTIONS
    # Without a delivery these hold half of it.
    held = {"a share": share, "some": 3 << 20, "most": (5 << 20) - share}
    held["delivers"] = delivers << 20
    worlds = {name: World() for name in held}
    server: Any = object.__new__(_Server)
    server.clients, server.held = {world.client for world in worlds.values()}, sum(held.values())
    for name, world in worlds.items():
        world.client._server, world.client.held = server, held[name]
        world.client.delivers = name == "delivers"
    server.relieve()
    assert sorted(name for name, world in worlds.items() if world.ended) == gone


def look_after(
    *, listening: bool = True, stopping: bool = False, paused: bool = False, master: int = 7
) -> list[str]:
    """Have a server of the parent process `master` look after its clients once; what it did."""
    done: list[str] = []
    server: Any = object.__new__(_Server)
    server._loop = SimpleNamespace(time=lambda: 100.0)
    server._stop = SimpleNamespace(is_set=lambda: stopping)
    server._worker = SimpleNamespace(notify=lambda: None, ppid=master)
    server._listening, server._paused_until = listening, 160.0 if paused else 99.0
    server._listen = lambda: done.append("listen")
    server._quit = lambda: done.append("quit")
    server.clients = set()
    with pytest.raises(RuntimeError, match="no running event loop"):  # where it would sleep
        server._keep_house().send(None)
    return done


@pytest.mark.parametrize(("master", "parent"), [(7, 7), (7, 8), (7, 1), (1, 1), (1, 8)], ids=str)
def test_one_whose_master_is_gone_ends(master, parent, monkeypatch) -> None:
    """Whoever has taken it over: that need not be process 1, and process 1 may be the master."""
    monkeypatch.setattr(os, "getppid", lambda: parent)
    assert look_after(master=master) == ([] if parent == master else ["quit"])


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_one_whose_deliveries_are_answered_may_be_dropped_like_any_other(answers: int) -> None:
    """The server marks it when a delivery begins, and each response ends the mark."""
    delivering, idle = World(), World()
    delivering.receive(GET * 2)
    for _ in range(answers):
        delivering.client.delivers = True
        delivering.answer()
    delivering.client.delivers = delivering.client.delivers or answers == 0
    delivering.client.since, idle.client.since = 1.0, 2.0
    server = object.__new__(_Server)
    server.clients = {delivering.client, idle.client}
    assert server._drop_some()
    assert (delivering.ended == "dropped") == (answers > 0)


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("paused", [False, True])
def test_one_that_was_full_listens_again_when_it_may(
    listening: bool, stopping: bool, paused: bool
) -> None:
    """Not while it still listens, has no descriptors left, or is about to stop."""
    done = look_after(listening=listening, stopping=stopping, paused=paused, master=os.getppid())
    assert done == ([] if listening or stopping or paused else ["listen"])


@pytest.mark.parametrize("waiting", [0, 1, 8, 9, 300])
def test_all_that_wait_to_be_accepted_are_accepted_before_the_listener_ends(waiting) -> None:
    """The kernel has taken them for us, and would reset them."""
    said: list[str] = []

    def accept_one(_: object) -> bool:
        said.append("asked")
        return len(said) <= waiting

    server: Any = object.__new__(_Server)
    listener = SimpleNamespace(close=lambda: said.append("closed"))
    server._web, server._listening, server._loop = None, set(), SimpleNamespace(time=lambda: 1.0)
    server._worker = SimpleNamespace(sockets=[listener])
    server.clients, server._opening, server._accept_one = set(), set(), accept_one
    with pytest.raises(StopIteration):
        server._drain().send(None)
    assert said == ["asked"] * (waiting + 1) + ["closed"]


def test_gunicorn_is_told_again_and_again_that_the_process_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends one that was silent for 30 s. Clients past their deadline end meanwhile."""
    now, told = 100.0, []
    worlds = [World(), World()]
    worlds[1].client.deadline = 120.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 110:
            raise asyncio.CancelledError

    server: Any = object.__new__(_Server)
    server._loop = SimpleNamespace(time=lambda: now)
    server._stop = SimpleNamespace(is_set=lambda: False)
    server._worker = SimpleNamespace(notify=lambda: told.append(now), ppid=os.getppid())
    server._listening, server._paused_until = True, 0.0
    server.clients = {world.client for world in worlds}
    monkeypatch.setattr(worker.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        server._keep_house().send(None)
    assert told[0] == 100
    gaps = [later - earlier for earlier, later in pairwise([*told, now])]
    assert max(gaps) <= 2
    assert [world.ended for world in worlds] == ["dropped", ""]


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (4096, 4096, None, MAX_CONNECTIONS),
        (256, 4096, (1100, 4096), MAX_CONNECTIONS),
        (256, resource.RLIM_INFINITY, (1100, resource.RLIM_INFINITY), MAX_CONNECTIONS),
        (256, 512, (512, 512), 412),
        (64, 64, (64, 64), 1),
    ],
)
def test_as_many_connections_are_taken_as_there_are_descriptors(
    soft: int,
    hard: int,
    raised: tuple[int, int] | None,
    connections: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred are kept for all else; the soft limit is raised as far as the hard one allows."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert worker._connection_limit() == connections
    assert asked == ([raised] if raised else [])


@pytest.mark.parametrize(
    ("number", "waits"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.EAGAIN, False)]
)
def test_without_descriptors_clients_are_dropped_and_no_more_are_taken_for_a_moment(
    number: int, waits: bool, said: Said
) -> None:
    def accept() -> object:
        raise OSError(number, "")

    world = World()
    server: Any = object.__new__(_Server)
    server.clients, server._opening, server._capacity = {world.client}, set(), 10
    server._listening, server._paused_until, server._loop = set(), 0.0, world
    assert not server._accept_one(SimpleNamespace(accept=accept))
    assert world.ended == ("dropped" if waits else "")
    assert (server._paused_until > world.now) == waits
    codes = [(line["event"], line["code"]) for line in said()]
    assert codes == ([("connection_not_accepted", errno.errorcode[number])] if waits else [])


@pytest.mark.parametrize(("clients", "opening"), [(3, 0), (2, 1), (0, 3)])
@pytest.mark.parametrize("capacity", [3, 4])
def test_those_that_are_about_to_be_clients_take_room_too(clients, opening, capacity) -> None:
    worlds = [World() for _ in range(clients)]
    server: Any = object.__new__(_Server)
    server.clients = {world.client for world in worlds}
    server._opening, server._capacity = set(range(opening)), capacity
    full = capacity == 3
    assert server._make_room() == (not full or clients > 0)
    assert sum(world.ended == "dropped" for world in worlds) == (full and clients > 0)


WHO_ANSWERS = {
    "POST /webhooks/stripe": "delivery",
    "POST /webhooks%2Fstripe": "delivery",
    "GET /webhooks/stripe": "page",
    "GET /readyz": "readiness",
    "HEAD /readyz": "readiness",
    "POST /readyz": "page",
    "GET /healthz": "the loop",
    "HEAD /healthz": "the loop",
    "POST /healthz": "page",
    "GET /metrics": "page",
    "GET /console/": "page",
    "POST /nowhere": "page",
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("line", "who"), WHO_ANSWERS.items())
def test_while_pages_wait_deliveries_and_checks_are_answered(line, who, full) -> None:
    world, pages, asked = World(), [], []
    server: Any = object.__new__(_Server)
    server._web, server._deliveries, server._loop = True, deque(), world
    server._decide = lambda: asked.append("delivery")
    server._check_readiness = lambda *_: asked.append("readiness")
    waiting = MAX_WAITING_PAGES - (not full)
    server._pages = SimpleNamespace(qsize=lambda: waiting, put=pages.append)
    world.receive(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    server.dispatch(world.client, world.asked[-1])
    status = world.sent[9:12].decode()
    expected = {"page": [] if full else ["page"], "the loop": []}.get(who, [who])
    assert asked + ["page"] * len(pages) == expected
    assert status == {"page": "503" if full else "", "the loop": "200"}.get(who, "")


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_delivery_is_marked_as_one_until_it_is_answered(method: str) -> None:
    world = World()
    server: Any = object.__new__(_Server)
    server._web, server._deliveries, server._loop = True, deque(), world
    server._decide = server._check_readiness = lambda *_: None
    server._pages = SimpleNamespace(qsize=lambda: 0, put=lambda _: None)
    world.receive(f"{method} /webhooks/stripe HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    server.dispatch(world.client, world.asked[-1])
    assert world.client.delivers == (method == "POST")
    world.answer()
    assert not world.client.delivers

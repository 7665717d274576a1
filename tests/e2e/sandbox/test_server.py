"""The process: how it starts, stops, and what it refuses."""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe


def test_it_answers_as_soon_as_it_says_its_address_and_stops_when_told(run: Any) -> None:
    sandbox = run()
    assert requests.get(f"{sandbox.url}/_sandbox/clock", timeout=120).status_code == 200
    sandbox.stop()


def test_a_state_file_outlives_the_process(run: Any, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state.sqlite"))
    first = run(*state)
    session = first.client().v1.identity.verification_sessions.create({"type": "document"})
    first.submit(session.id, hold=True)
    first.control("POST", "clock", advance=1000)
    events = [event.id for event in first.client().v1.events.list()]
    first.stop()

    second = run(*state)
    assert second.control("GET", "clock")["ahead"] == 1000
    client = second.client()
    assert client.v1.identity.verification_sessions.retrieve(session.id).status == "processing"
    assert [event.id for event in client.v1.events.list()] == events
    second.control("POST", f"sessions/{session.id}/complete")
    assert client.v1.identity.verification_sessions.retrieve(session.id).status == "verified"


def files(state: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in state.parent.glob(f"{state.name}*")}


def test_no_byte_of_a_redacted_session_stays_in_the_state_file(run: Any, tmp_path: Path) -> None:
    state = tmp_path / "state.sqlite"
    first = run("--state", str(state), "--marker", "MARKER7Q")
    sessions = first.client().v1.identity.verification_sessions
    ids = [
        sessions.create(
            {"type": "document", "metadata": {"a": "MARKER7Q" * 50}},
            {"idempotency_key": f"k{n}"},
        ).id
        for n in range(20)
    ]
    for id_ in ids:
        first.submit(id_)
    assert any(b"MARKER7Q" in content for content in files(state).values())
    for id_ in ids:
        first.control("POST", f"sessions/{id_}/redact", delay=0)
    assert not any(b"MARKER7Q" in content for content in files(state).values())
    sessions.create({"type": "document"})
    first.stop()
    left = files(state)
    assert set(left) == {state.name}, "the log of SQLite is gone"
    assert b"MARKER7Q" not in left[state.name]
    second = run("--state", str(state))
    assert len(second.client().v1.identity.verification_sessions.list()) == 10
    assert not any(b"MARKER7Q" in content for content in files(state).values())


def test_a_state_file_is_one_sandbox_s(run: Any, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state.sqlite"))
    first = run(*state)
    session = first.client().v1.identity.verification_sessions.create({"type": "document"}).id
    words = [sys.executable, "-m", "stripe_identity_sandbox", "serve", "--port", "0", *state]
    second = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert f"Another sandbox has {state[1]}" in second.stderr
    assert "Traceback" not in second.stderr
    first.process.kill()
    first.process.wait(120)
    first.process.stdout.close()
    third = run(*state)
    assert third.client().v1.identity.verification_sessions.retrieve(session).id == session


def test_the_secret_given_last_is_the_one_that_signs(
    run: Any, tmp_path: Path, listener: Any
) -> None:
    state = ("--state", str(tmp_path / "state.sqlite"), "--deliver-to", listener.url)
    for secret in ("whsec_one", "whsec_two"):
        sandbox = run(*state, "--secret", secret)
        sandbox.client().v1.identity.verification_sessions.create({"type": "document"})
        got = listener.next()
        assert stripe.Webhook.construct_event(got.body, got.signature, secret)
        sandbox.stop()


def test_live_keys_are_refused_and_told_why(sandbox: Any) -> None:
    for key in ("sk_live_0123456789", "rk_live_0123456789"):
        with pytest.raises(stripe.AuthenticationError, match="takes no live keys") as caught:
            sandbox.client(key).v1.identity.verification_sessions.list()
        assert "0123456789" not in str(caught.value)


def test_pages_of_other_origins_are_not_served(sandbox: Any) -> None:
    answer = requests.post(
        f"{sandbox.url}/_sandbox/clock",
        json={"advance": 1},
        headers={"Origin": "https://evil.example"},
        timeout=120,
    )
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("host", "served"),
    [
        *(("127.0.0.1", True), ("127.0.0.2:80", True), ("localhost:1", True), ("10.0.0.1", True)),
        *(("a.localhost", True), ("[::1]:5", True), ("LOCALHOST", True), ("[", False)),
        *(("evil.example", False), ("evil.example:12111", False), ("sandbox", False)),
        *(("127.0.0.1.evil.example", False), ("localhost.evil.example", False)),
    ],
)
def test_it_is_served_by_addresses_and_its_own_names(sandbox: Any, host: str, served: bool) -> None:
    """A page of a site whose name was made to mean this machine reads nothing."""
    session = sandbox.client().v1.identity.verification_sessions.create({"type": "document"})
    places = {
        *("/_sandbox/clock", "/_sandbox/requests", "//_sandbox/requests", "/%5fsandbox/requests"),
        *("/_sandbox/", "/_sandbox/log", "/_sandbox/setup", "/_sandbox/changes?since=0"),
        *(session.url.removeprefix(sandbox.url), "/v1/identity/verification_sessions"),
        *(f"/_sandbox/sessions/{session.id}", "/v2/core/events"),
    }
    for place in places:
        answer = requests.get(
            sandbox.url + place, headers={"Host": host}, auth=("sk_test_x", ""), timeout=120
        )
        assert answer.status_code == (200 if served else 403), place
        assert served or session.id not in answer.text
    posted = requests.post(f"{sandbox.url}/_sandbox/clock", json={"advance": 0}, timeout=120,
                           headers={"Host": host})  # fmt: skip
    assert posted.status_code == (200 if served else 403)


def test_the_name_it_listens_on_is_its_own(run: Any) -> None:
    sandbox = run("--host", "localhost")
    answer = requests.get(
        f"{sandbox.url}/_sandbox/clock", headers={"Host": "localhost"}, timeout=120
    )
    assert answer.status_code == 200


def test_who_listens_on_every_address_has_names_that_are_not_known(run: Any) -> None:
    sandbox = run("--host", "0.0.0.0")  # noqa: S104
    answer = requests.get(f"{sandbox.url}/_sandbox/clock", headers={"Host": "sandbox"}, timeout=120)
    assert answer.status_code == 200


def test_it_never_redirects(sandbox: Any) -> None:
    for path in ("/v1/identity/verification_sessions/", "/v1//x", "//v1/events", "/nothing"):
        answer = requests.get(
            sandbox.url + path, auth=("sk_test_x", ""), allow_redirects=False, timeout=120
        )
        assert answer.status_code in {200, 404}
        assert answer.headers["Request-Id"].startswith("req_")


@pytest.mark.parametrize(("length", "status"), [(5_000, 400), (20_000, 400), (70_000, 414)])
def test_a_long_url_gets_stripes_envelope(sandbox: Any, length: int, status: int) -> None:
    answer = requests.get(
        f"{sandbox.url}/v1/identity/verification_sessions?surprise={'x' * length}",
        auth=("sk_test_x", ""),
        timeout=120,
    )
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_long_header_gets_stripes_envelope(sandbox: Any) -> None:
    answer = requests.post(
        f"{sandbox.url}/v1/identity/verification_sessions",
        data={"type": "document"},
        headers={"Idempotency-Key": "k" * 20_000},
        auth=("sk_test_x", ""),
        timeout=120,
    )
    assert answer.status_code == 400
    assert "255" in answer.json()["error"]["message"]


# -- nobody holds it ---------------------------------------------------------------------------


#: More connections than there may be.
MANY = 1100


@pytest.fixture
def many_files() -> Iterator[None]:
    """Leave room for them in this process."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, min(most, MANY + 500)), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


#: Who waits for a client that is silent waits for minutes, and a machine that is slow does not.
UNHURRIED = """
import runpy
from stripe_identity_sandbox import connections
connections.LINGER, connections.SILENCE = 120.0, 120
runpy.run_module("stripe_identity_sandbox", run_name="__main__")
"""


@pytest.fixture
def alone(run: Any) -> Any:
    """A sandbox that no other test uses."""
    return run(program=("-c", UNHURRIED))


@pytest.fixture
def connect(alone: Any) -> Iterator[Callable[[bytes], socket.socket]]:
    """A way to send that sandbox bytes and then be silent."""
    port = int(alone.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:

        def send(request: bytes) -> socket.socket:
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", port), 120))
            opened.sendall(request)
            return opened

        yield send


def answered(connection: socket.socket) -> bytes:
    """Return the first bytes of what is answered."""
    return connection.recv(1000)


def whole(connection: socket.socket) -> bytes:
    """Return all that is answered until the connection ends."""
    return b"".join(iter(lambda: connection.recv(1000), b""))


def until(connection: socket.socket, word: bytes, times: int = 1) -> bytes:
    """Return what is answered, as soon as a word came so many times."""
    got = b""
    while got.count(word) < times:
        piece = connection.recv(1000)
        assert piece, got
        got += piece
    return got


ASK = (
    b"GET /v1/identity/verification_sessions HTTP/1.1\r\nHost: localhost\r\n"
    b"Authorization: Bearer sk_test_x"
)
FORM = ASK.replace(b"GET", b"POST") + b"\r\nContent-Type: application/x-www-form-urlencoded\r\n"


def test_pages_that_watch_hold_no_thread(connect: Any) -> None:
    """Also those that nobody looks at any more."""
    watch = (
        b"GET /_sandbox/changes?since=0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    watching = [connect(watch) for _ in range(200)]
    assert answered(connect(ASK + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert all(b"retry: " in whole(one) for one in watching), "each was answered, and ended"


def test_answers_that_wait_leave_threads_for_the_control_routes(connect: Any) -> None:
    fault = b'{"kind": "timeout", "seconds": 600}'
    post = (
        b"POST /_sandbox/faults HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    connect(post + b"Content-Length: %d\r\n\r\n%s" % (len(fault), fault)).recv(1000)
    waiting = [connect(ASK + b"\r\n\r\n") for _ in range(100)]
    clear = connect(b"DELETE /_sandbox/faults HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answered(clear).startswith(b"HTTP/1.1 200")
    for one in waiting:
        one.close()  # whose clients are gone do not wait any more
    assert answered(connect(ASK + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (ASK + b"\r\nX: %s\r\n\r\n" % (b"x" * 70_000), 431),
        (ASK + b"\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"NONSENSE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (ASK.replace(b"/v1", b"/" + b"x" * 70_000) + b"\r\n\r\n", 414),
    ],
    ids=["a long header", "many headers", "no path", "every path", "no method", "a long path"],
)
def test_what_no_route_gets_is_refused_in_stripe_s_envelope(
    connect: Any, sent: bytes, status: int
) -> None:
    head, _, body = whole(
        connect(sent.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    ).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: application/json" in head
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"GET",
        ASK,
        FORM + b"Content-Length: 100\r\n\r\ntype=doc",
        FORM + b"Content-Length: 99999999\r\n\r\ntype=doc",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n5\r\ntype",
        FORM + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n",
        ASK + b"\r\nConnection: close\r\n\r\n",
        ASK + b"\r\n\r\n",
        ASK + b"\r\n\r\n" + FORM + b"Content-Length: 100\r\n\r\ntype=doc",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=[
        *("nothing", "a word", "half a head", "half a body", "too long a body", "no chunk"),
        *("half a chunk", "a question", "one that stays", "one that keeps", "one and a half"),
        "TLS",
    ],
)
@pytest.mark.usefixtures("many_files")
def test_silent_clients_hold_nobody(alone: Any, connect: Any, clock: Any, part: bytes) -> None:
    """Not even more of them than there may be connections."""
    for _ in range(MANY):
        connect(part)
    began = clock(alone.process)
    for _ in range(3):
        assert answered(connect(ASK + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    # With threads of their own, each of which waits for minutes, they would take longer.
    assert clock(alone.process) - began < 60, "they have no thread, and no place in the line"


def test_answers_that_nobody_reads_hold_nobody(alone: Any, clock: Any) -> None:
    sandbox = alone
    sessions = sandbox.client().v1.identity.verification_sessions
    for _ in range(100):
        sessions.create({"type": "document", "metadata": {str(n): "x" * 500 for n in range(10)}})
    for _ in range(20):
        sessions.list({"limit": 100})
    whole_list = requests.get(f"{sandbox.url}/_sandbox/requests", timeout=120)
    assert len(whole_list.content) > 7_000_000, "more than the system keeps for a client"
    address = ("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
    ask = b"GET /_sandbox/requests HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = stack.enter_context(socket.socket())
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(address)
            silent.sendall(ask)
        began = clock(sandbox.process)
        first = requests.get(f"{sandbox.url}/_sandbox/clock", timeout=120)
        assert first.status_code == 200
        assert clock(sandbox.process) - began < 60, "less than what one of them may take"
        second = requests.get(f"{sandbox.url}/_sandbox/clock", timeout=120)
        assert second.status_code == 200
    assert requests.get(f"{sandbox.url}/_sandbox/requests", timeout=120).content


def test_few_files_leave_room_for_fewer(run: Any) -> None:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        sandbox = run()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    address = ("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection(address, 30))
        one = stack.enter_context(socket.create_connection(address, 30))
        one.sendall(ASK + b"\r\n\r\n")
        assert answered(one).startswith(b"HTTP/1.1 200")


def dribble(connection: socket.socket, data: bytes) -> None:
    """Send bytes in pieces that arrive one by one."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(data), 7):
        connection.sendall(data[at : at + 7])
        time.sleep(0.001)


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 27\r\n\r\ntype=document&metadata[a]=b",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\ntype=\r\n8;x=y\r\ndocument\r\n"
        b"e\r\n&metadata[a]=b\r\n0\r\nX: y\r\n\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 27\r\n\r\n"
        b"type=document&metadata[a]=b",
        b"Content-Length: 40\r\nupgrade: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: b\r\n\r\n"
        b"type=document&metadata[a]=b\nupgrade: c\r\n",
    ],
    ids=["length", "chunks", "upgrade", "upgrades"],
)
def test_requests_come_in_pieces_or_several_at_once(connect: Any, body: bytes) -> None:
    one = connect(b"")
    dribble(one, FORM + body)
    until(one, b'"a": "b')
    one.sendall((ASK + b"\r\n\r\n") * 3)
    assert until(one, b'"has_more"', 3).count(b"HTTP/1.1 200") == 3


def test_a_client_that_asks_before_it_sends_is_told_to(connect: Any) -> None:
    one = connect(FORM + b"Content-Length: 13\r\nExpect: 100-continue\r\n\r\n")
    assert one.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    one.sendall(b"type=document")
    assert b"200 OK" in until(one, b'"url"')


@pytest.mark.parametrize(
    ("long", "status"),
    [
        (b"Content-Length: 1048577\r\n\r\n", b"413"),
        (b"Content-Length: 17000000\r\n\r\n" + b"x" * 17_000_000, b"413"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"3E8\r\n%s\r\n" % (b"x" * 1000) * 3000, b"413"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 400_000, b"413"),
        (b"X: %s\r\n" % (b"x" * 3_000_000), b"413"),
        (b"Content-Length: x\r\n\r\n", b"400"),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    ],
    ids=["announced", "sent", "chunks", "small chunks", "head", "no number", "two ends"],
)
def test_what_is_too_long_or_has_no_end_gets_stripes_envelope(
    connect: Any, long: bytes, status: bytes
) -> None:
    one = connect(FORM + long)
    got = whole(one)
    assert got.startswith(b"HTTP/1.1 " + status)
    error = json.loads(got.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error"
    assert answered(connect(ASK + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


def test_the_longest_body_that_the_api_takes(sandbox: Any) -> None:
    metadata = {f"{number}".rjust(40, "\U0001f600"): "\U0001f600" * 500 for number in range(50)}
    session = sandbox.client().v1.identity.verification_sessions.create(
        {"type": "document", "metadata": metadata}
    )
    assert session.metadata.to_dict() == metadata


@pytest.mark.parametrize(
    "request_",
    [
        ASK + b"\r\nIdempotency-Key: \x01\x7f\xff\r\n\r\n",
        ASK + b"\r\nStripe-Version: 2020-08-27;\x01\r\n\r\n",
        ASK.replace(b" HTTP", b"?x\xff=%ff&y[%ff]=\xff HTTP") + b"\r\n\r\n",
        ASK.replace(b"GET /", b"POST /\xff") + b"\r\nContent-Length: 3\r\n\r\n\xff=\xff",
        ASK.replace(b"GET", b"POST") + b"\r\nIdempotency-Key: \x01\r\nContent-Length: 0\r\n\r\n",
        ASK.replace(b"GET", b"BREW") + b"\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: [\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
    ],
    ids=["key", "version", "query", "path", "key of a POST", "method", "address", "TLS"],
)
def test_bytes_that_no_sdk_sends(connect: Any, request_: bytes) -> None:
    status = answered(connect(request_)).split()[1:2]
    assert status
    assert status[0] < b"500"
    for page in ("requests", "log", "setup", ""):
        shown = connect(b"GET /_sandbox/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % page.encode())
        assert answered(shown).startswith(b"HTTP/1.1 200")

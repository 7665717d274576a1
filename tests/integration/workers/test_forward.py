"""The built-in handler `forward`: what is posted, what counts as received, where it may go."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from stripe.identity import VerificationSession

from identity_webhooks import REASONS
from identity_webhooks.testing import conformance, run, verification
from service.settings import Settings
from tests.conftest import free_port, wait_until
from tests.integration.workers.conftest import DRIPS, PATIENCE
from workers import plugins
from workers.handlers import forward as forwarding
from workers.handlers.forward import Forward, is_public

SECRET = "whsec_Rm9yd2FyZFNlY3JldE9mMzJCeXRlczEyMzQ1Njc4"
OTHER = "whsec_T3RoZXJTZWNyZXRPZjMyQnl0ZXMxMjM0NTY3ODkw"


@dataclass
class Receiver:
    """An HTTP server that answers `status`, and keeps what comes."""

    server: ThreadingHTTPServer
    status: int = 204
    location: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hooks?from=stripe"

    def verified(self) -> list[dict[str, Any]]:
        """Return the messages, verified by the official library."""
        return [Webhook(SECRET).verify(body, headers) for _, headers, body in self.got]


@pytest.fixture
def start() -> Iterator[Callable[..., Receiver]]:
    started = []

    def start(certificate: Path | None = None) -> Receiver:
        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, dict(self.headers.items()), body))
                self.send_response(receiver.status)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.end_headers()

            def do_GET(self) -> None:
                receiver.got.append((self.path, {}, b""))

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        receiver = Receiver(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        started.append(server)
        return receiver

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver(start: Callable[..., Receiver]) -> Receiver:
    return start()


def forward(url: str, *, private: bool = True) -> Forward:
    return Forward(url, SECRET, private=private)


def test_the_official_library_verifies_what_comes(receiver: Receiver) -> None:
    v = verification("document_expired", reference="user-7", account="acct_1")
    assert run(forward(receiver.url).send, v).status == "done"
    assert receiver.verified() == [
        {
            "type": "identity.verification_session.requires_input",
            "timestamp": "2026-09-21T14:13:20+00:00",
            "data": {
                "session": v.event.session,
                "account": "acct_1",
                "livemode": False,
                "subject": "user-7",
                "outcome": "needs_input",
                "reason": "document_expired",
                "user_can_retry": True,
                "redacted": False,
            },
        }
    ]
    ((path, headers, body),) = receiver.got
    assert path == "/hooks?from=stripe"
    assert headers["Host"] == f"127.0.0.1:{receiver.server.server_port}"
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"user-7", b"user-8"), headers)


TOLD: dict[str, tuple[str, str | None, bool]] = {
    "created": ("created", None, True),
    "processing": ("processing", None, False),
    "needs_input": ("requires_input", "document_expired", True),
    "under_supported_age": ("requires_input", "under_supported_age", False),
    "verified": ("verified", None, False),
    "canceled": ("canceled", None, False),
    "redacted": ("redacted", None, False),
}
"""By outcome: the kind of event, the reason, and whether the person can try again."""


@pytest.mark.parametrize("livemode", [False, True])
@pytest.mark.parametrize("outcome", TOLD)
def test_what_is_told_is_what_happened(outcome: str, livemode: bool, receiver: Receiver) -> None:
    v, (kind, reason, again) = verification(outcome), TOLD[outcome]
    v = replace(v, event=replace(v.event, livemode=livemode))
    assert run(forward(receiver.url).send, v).status == "done"
    (message,) = receiver.verified()
    assert message["type"] == f"identity.verification_session.{kind}"
    assert message["data"] == {
        "session": v.event.session,
        "account": None,
        "livemode": livemode,
        "subject": "user-1",
        "outcome": "needs_input" if reason else outcome,
        "reason": reason,
        "user_can_retry": again,
        "redacted": outcome == "redacted",
    }


def test_a_session_that_was_redacted_since_is_told_as_such(receiver: Receiver) -> None:
    v = verification("verified")
    redacted = v.session.to_dict() | {"redaction": {"status": "redacted"}}
    v = replace(v, session=VerificationSession.construct_from(redacted, None))
    assert run(forward(receiver.url).send, v).status == "done"
    (message,) = receiver.verified()
    assert (message["data"]["outcome"], message["data"]["redacted"]) == ("verified", True)


def test_an_event_has_one_id_however_often_and_wherever_it_is_sent(start) -> None:
    receivers = [start(), start()]
    for attempt in (1, 2):
        for number, receiver in enumerate(receivers):
            v = verification(key=f"evt_1:forward-{number}.send", attempt=attempt)
            run(forward(receiver.url).send, v)
    sent = {headers["webhook-id"] for each in receivers for _, headers, _ in each.got}
    assert sent == {"evt_1"}
    assert [len(each.got) for each in receivers] == [2, 2]


@pytest.mark.parametrize("outcome", ["created", "verified", "canceled", "redacted", *REASONS])
def test_nothing_personal_is_in_it(outcome: str, receiver: Receiver) -> None:
    marker = "Zyxmarker7"
    given = {"first_name": marker, "last_name": marker, "metadata": {"note": marker}}
    v = verification(outcome, reference=f"{marker}@example.com", **given)
    assert run(forward(receiver.url).send, v).status == "done"
    (message,) = receiver.verified()
    assert message["data"]["subject"] is None, "an e-mail address"
    assert marker not in json.dumps(message)


@pytest.mark.parametrize("private", [True, False])
def test_of_the_settings_each_url_is_posted_to_once_and_alone(private: bool, start) -> None:
    receivers = [start() for _ in range(3)]
    settings = Settings(
        audit=False,
        forward_to=tuple(each.url for each in receivers),
        forward_secret=SecretStr(SECRET),
        forward_private=private,
    )
    handlers = {each.name: each for each in plugins.load(settings).handlers}
    for sent, receiver in enumerate(receivers, 1):
        handler = handlers[f"forward-127.0.0.1-{receiver.server.server_port}.send"]
        result = run(handler.function, verification())
        assert result.status == ("done" if private else "retry"), result
        assert "has a private address" in result.reason or private
        assert [len(each.got) for each in receivers] == [private] * sent + [0] * (3 - sent)
    assert all(len(each.verified()) == private for each in receivers)


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_every_2xx_is_taken(status: int, receiver: Receiver) -> None:
    receiver.status = status
    assert run(forward(receiver.url).send, verification()).status == "done"


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 410, 429, 500, 503])
def test_any_other_answer_is_tried_again(status: int, receiver: Receiver) -> None:
    receiver.status = status
    result = run(forward(receiver.url).send, verification())
    assert (result.status, result.reason) == ("retry", f"retry: the receiver answered {status}")
    assert len(receiver.got) == 1, "the inbox tries again, nobody else"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int, start) -> None:
    receiver, elsewhere = start(), start()
    receiver.status, receiver.location = status, elsewhere.url
    result = run(forward(receiver.url).send, verification())
    assert result.reason == f"retry: the receiver answered {status}"
    assert elsewhere.got == []


def test_nobody_there() -> None:
    result = run(forward(f"http://127.0.0.1:{free_port()}").send, verification())
    assert result.reason == "retry: the receiver cannot be reached: ConnectionRefusedError"
    result = run(forward("https://nowhere.invalid").send, verification())
    assert result.reason == "retry: the receiver's host is not found"


HUNG_UP = {
    f"retry: the receiver cannot be reached: {name}"
    for name in ("RemoteDisconnected", "ConnectionResetError", "BrokenPipeError")
}


def hang_up(server: socket.socket) -> None:
    server.accept()[0].close()


def test_one_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=[server]).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = run(forward(url).send, verification())
    assert result.reason in HUNG_UP


@pytest.fixture
def no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the host found at once: the time is for what follows."""
    monkeypatch.setattr(Forward, "_addresses", lambda *_: ["127.0.0.1"])


@pytest.mark.parametrize("what", ["the status", "the headers", "one header after another"])
def test_one_that_drips_its_answer_holds_nobody(what, drip, monkeypatch, no_look_up) -> None:
    monkeypatch.setattr(forwarding, "WITHIN", 0.5)
    port, began = drip(*DRIPS[what]), time.monotonic()
    result = run(forward(f"http://127.0.0.1:{port}").send, verification())
    assert result.reason == "retry: the receiver cannot be reached: TimeoutError"
    assert 0.4 < time.monotonic() - began < PATIENCE


def test_interim_answers_hold_nobody(drip, monkeypatch) -> None:
    monkeypatch.setattr(forwarding, "WITHIN", 0.5)
    port, began = drip(*DRIPS["interim answers"]), time.monotonic()
    assert run(forward(f"http://127.0.0.1:{port}").send, verification()).status == "retry"
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("what", ["the body", "chunks", "a body without an end"])
def test_a_body_is_not_waited_for(what, drip) -> None:
    began = time.monotonic()
    result = run(forward(f"http://127.0.0.1:{drip(*DRIPS[what])}").send, verification())
    assert result.status == "done"
    assert time.monotonic() - began < PATIENCE


def test_one_that_drips_its_handshake_or_says_nothing(
    drip, monkeypatch, silent, no_look_up
) -> None:
    monkeypatch.setattr(forwarding, "WITHIN", 0.5)
    monkeypatch.setattr(forwarding, "CONNECT", 0.5)
    for url in (f"https://127.0.0.1:{silent}", f"http://127.0.0.1:{silent}"):
        began = time.monotonic()
        result = run(forward(url).send, verification())
        assert result.reason == "retry: the receiver cannot be reached: TimeoutError"
        assert time.monotonic() - began < PATIENCE
    # A record of TLS, of which the rest comes byte by byte.
    port, began = drip(b"\x16\x03\x03\x40\x00", b"\x00"), time.monotonic()
    assert run(forward(f"https://127.0.0.1:{port}").send, verification()).status == "retry"
    assert time.monotonic() - began < PATIENCE


def test_dripping_over_tls(certificate, drip, monkeypatch, no_look_up) -> None:
    monkeypatch.setattr(forwarding, "WITHIN", 0.7)
    monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    port, began = drip(*DRIPS["the headers"], context), time.monotonic()
    result = run(forward(f"https://localhost:{port}").send, verification())
    assert result.reason == "retry: the receiver cannot be reached: TimeoutError"
    assert time.monotonic() - began < PATIENCE


def test_all_addresses_of_a_host_have_one_limit(monkeypatch, silent) -> None:
    """Each takes no connection, or is silent in the handshake."""
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", silent))]
    answers += [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", silent)) for n in "23"]
    lookup = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *a, **k: answers if "." not in host else lookup(host, *a, **k),
    )
    monkeypatch.setattr(forwarding, "WITHIN", 4)
    monkeypatch.setattr(forwarding, "CONNECT", 3)
    began = time.monotonic()
    assert run(forward("https://hooks").send, verification()).status == "retry"
    assert time.monotonic() - began < 8, "with a limit for each it would be nine"


def test_a_resolver_that_hangs_holds_no_event_and_one_thread(monkeypatch, receiver) -> None:
    lookup, hangs, asked = socket.getaddrinfo, threading.Event(), []

    def answer(host: str, *rest: Any, **more: Any) -> Any:
        if host == "hooks.test":
            asked.append(host)
            assert hangs.wait(120)
        return lookup("127.0.0.1" if host == "hooks.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(forwarding, "WITHIN", 0.3)
    send = forward(f"http://hooks.test:{receiver.server.server_port}").send
    before, began = set(threading.enumerate()), time.monotonic()
    results = []
    waiting = [
        threading.Thread(target=lambda: results.append(run(send, verification()))) for _ in range(5)
    ]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    assert time.monotonic() - began < PATIENCE
    assert [each.reason for each in results] == [
        "retry: the receiver's host is not found in time"
    ] * 5
    assert run(send, verification()).status == "retry"
    wait_until(lambda: asked)
    assert len(set(threading.enumerate()) - before) == len(asked) == 1
    hangs.set()
    monkeypatch.setattr(forwarding, "WITHIN", 15.0)
    assert run(send, verification()).status == "done"
    # That of the receiver may stay.
    wait_until(lambda: len(set(threading.enumerate()) - before) <= 1)


@pytest.mark.parametrize("first", [None, "127.0.0.2"], ids=["not found", "moved"])
def test_each_run_looks_the_host_up_again(monkeypatch, receiver, first) -> None:
    lookup, answers = socket.getaddrinfo, [first, "127.0.0.1"]

    def answer(host: str, *rest: Any, **more: Any) -> Any:
        if host != "hooks.test":
            return lookup(host, *rest, **more)
        if (found := answers.pop(0)) is None:
            raise socket.gaierror
        return lookup(found, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    send = forward(f"http://hooks.test:{receiver.server.server_port}").send
    assert run(send, verification()).status == "retry"
    assert run(send, verification()).status == "done"


@pytest.mark.parametrize("host", ["no.such.host.invalid", f"{'a' * 64}.test", ".test"])
def test_a_host_that_is_not_found_is_tried_again(host) -> None:
    result = run(forward(f"http://{host}:1").send, verification())
    assert result.reason == "retry: the receiver's host is not found"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_conformance(receiver: Receiver) -> None:
    def received() -> set[str]:
        return {headers["webhook-id"] for _, headers, _ in receiver.got}

    handler = forward(receiver.url).send
    assert conformance(handler, effects=received, reset=receiver.got.clear) == []


PRIVATE = (
    *("127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("0.0.0.0", "100.64.0.1", "192.0.0.1", "198.18.0.1", "203.0.113.1", "224.0.0.1"),  # noqa: S104
    *("240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("0.1.2.3", "100.127.255.254", "192.88.99.1", "192.0.2.1", "198.51.100.1", "239.1.1.1"),
    # An address of IPv4 in one of IPv6.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
    *("64:ff9b::8.8.8.8", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1"),
    *("2002:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    # Those of one site, of documentation, of tests, to be discarded, of nobody yet.
    *("fec0::1", "3fff::1", "2001:2::1", "2001:10::1", "100::1", "5f00::1", "4000::1", "fe80::1%1"),
    *("ff0e::1", "::ffff:224.0.0.1", "::ffff:100.64.0.1"),
)
PUBLIC = ("1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1")


@pytest.mark.parametrize("address", [*PRIVATE, *PUBLIC])
def test_which_addresses_are_public(address: str) -> None:
    assert is_public(address) is (address in PUBLIC)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "127.1", "0"])
def test_a_private_address_is_refused_however_it_is_written(host: str, receiver: Receiver) -> None:
    url = f"http://{host}:{receiver.server.server_port}"
    result = run(forward(url, private=False).send, verification())
    assert result.status == "retry"
    assert result.reason in {
        "retry: the receiver has a private address: FORWARD_PRIVATE=1 allows it",
        "retry: the receiver's host is not found",  # without IPv6 on this machine
    }
    assert receiver.got == []


def test_what_was_checked_is_what_is_connected_to(monkeypatch, receiver: Receiver) -> None:
    """The name is looked up once: a second answer could be another address."""
    lookup, asked = socket.getaddrinfo, []

    def answer(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        changed = "127.0.0.1" if asked.count(host) == 1 else "192.0.2.1"
        return lookup(changed if host == "hooks.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    url = f"http://hooks.test:{receiver.server.server_port}/x"
    assert run(forward(url).send, verification()).status == "done"
    assert asked.count("hooks.test") == 1
    assert receiver.got[0][1]["Host"] == f"hooks.test:{receiver.server.server_port}"


@pytest.mark.parametrize("found", [("1.1.1.1", "127.0.0.1"), ("127.0.0.1", "1.1.1.1")])
def test_one_private_address_among_several_is_enough(found, monkeypatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443)) for each in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    result = run(forward("https://hooks.test", private=False).send, verification())
    assert result.reason == "retry: the receiver has a private address: FORWARD_PRIVATE=1 allows it"


def test_the_next_address_is_tried_when_one_takes_no_connection(monkeypatch, receiver) -> None:
    port = receiver.server.server_port
    answers = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
        for each in ("127.0.0.2", "127.0.0.1")
    ]
    lookup = socket.getaddrinfo

    def answer(host: str, *rest: Any, **more: Any) -> Any:
        return answers if host == "hooks.test" else lookup(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert run(forward(f"http://hooks.test:{port}").send, verification()).status == "done"
    assert len(receiver.got) == 1


@pytest.mark.parametrize("does", ["hangs up", "answers 500"])
def test_what_one_address_has_taken_is_sent_to_no_other(does, monkeypatch, start) -> None:
    """It may have had its effect there."""
    receiver = start()
    port, lookup = receiver.server.server_port, socket.getaddrinfo
    answers = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
        for each in ("127.0.0.2", "127.0.0.1")
    ]
    with socket.create_server(("127.0.0.2", port)) as server:
        server.settimeout(60)

        def answer(host: str, *rest: Any, **more: Any) -> Any:
            return answers if host == "hooks.test" else lookup(host, *rest, **more)

        def take() -> None:
            with server.accept()[0] as connection:
                if does == "answers 500":
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        thread = threading.Thread(target=take)
        thread.start()
        result = run(forward(f"http://hooks.test:{port}").send, verification())
        thread.join(120)
    assert result.status == "retry"
    assert receiver.got == []


@pytest.mark.parametrize(
    ("url", "to"),
    [
        ("https://hooks.test", ("hooks.test", 443)),
        ("http://hooks.test/x", ("hooks.test", 80)),
        ("https://hooks.test:8443", ("hooks.test", 8443)),
        ("HTTPS://Hooks.Test.:80/x?y", ("hooks.test", 80)),
        ("http://[::1]:8000", ("::1", 8000)),
    ],
)
def test_where_a_url_leads(url, to, monkeypatch) -> None:
    asked = []

    def nowhere(host: str, port: int, **_: Any) -> Any:
        asked.append((host, port))
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert run(forward(url).send, verification()).status == "retry"
    assert asked == [to]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", path, "-out", path.with_suffix(".crt")),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_a_certificate_has_to_be_of_the_host_and_trusted(certificate, monkeypatch, start) -> None:
    receiver = start(certificate)
    port = receiver.server.server_port
    refused = "retry: the receiver cannot be reached: SSLCertVerificationError"
    assert run(forward(f"https://localhost:{port}").send, verification()).reason == refused
    monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(certificate))
    assert run(forward(f"https://localhost:{port}").send, verification()).status == "done"
    assert run(forward(f"https://127.0.0.1:{port}").send, verification()).reason == refused
    # A dot at the end says that the name is whole; certificates name it without.
    assert run(forward(f"HTTPS://localhost.:{port}").send, verification()).status == "done"
    assert len(receiver.verified()) == 2

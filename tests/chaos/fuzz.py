"""A crowd that sends the receiver everything: good deliveries, and all that can go wrong.

Each request comes with what may be answered. Whoever gets 2xx must have been rightly signed, which
Stripe's own SDK judges; nobody gets 5xx; a good delivery is always taken. The same seed makes the
same requests (of each sender; their order among each other is the machine's).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import stripe

SENDERS = 24
PATIENCE = 20.0
"""Seconds to wait for an answer; the receiver promises less, the machine may be busy."""


@dataclass(frozen=True)
class Case:
    """A request, and how its answer is judged."""

    kind: str
    raw: bytes
    must: str
    """`taken`, `refused`, or `judged`: taken only if it is rightly signed."""
    body: bytes = b""
    pieces: int = 1
    alone: bool = True
    """On a connection of its own, which is half-closed behind it."""


@dataclass
class Report:
    """What came of it."""

    answers: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def requests(self) -> int:
        return sum(self.answers.values())

    def lines(self) -> list[str]:
        kinds = sorted({kind for kind, _ in self.answers})
        return [
            f"{kind:12}"
            + "  ".join(
                f"{status or 'closed'}: {count}"
                for (of, status), count in sorted(self.answers.items(), key=str)
                if of == kind
            )
            for kind in kinds
        ]


class Sender:
    """One of the crowd: makes requests from its seed, sends them, judges the answers."""

    def __init__(self, port: int, secret: str, seed: str, report: Report) -> None:
        self._port, self._secret, self._report = port, secret, report
        self._random = random.Random(seed)
        self._name = hashlib.sha256(seed.encode()).hexdigest()[:12]
        self._connection: socket.socket | None = None
        self._number = 0
        self._makers: list[tuple[Callable[[], Case], int]] = [
            (self._valid, 10),
            (self._chunked, 6),
            (self._slow, 1),
            (self._badly_signed, 18),
            (self._signed_nonsense, 12),
            (self._mutated, 24),
            (self._framing, 12),
            (self._cut_off, 8),
            (self._noise, 9),
        ]

    def run(self, count: int) -> None:
        makers, weights = zip(*self._makers, strict=True)
        for maker in self._random.choices(makers, weights, k=count):
            case = maker()
            started = time.monotonic()
            try:
                status = self._send(case)
            except (OSError, ValueError) as error:
                self._report.faults.append(f"{case.kind}: {error!r} for {case.raw[:300]!r}")
                self._hang_up()
                continue
            self._report.slowest = max(self._report.slowest, time.monotonic() - started)
            self._report.answers[case.kind, status] += 1
            if not self._fits(case, status):
                self._report.faults.append(f"{case.kind}: {status} for {case.raw[:2000]!r}")
        self._hang_up()

    def _fits(self, case: Case, status: int | None) -> bool:
        if case.must == "taken":
            return status == 200
        # 501 is HTTP's word for an unknown transfer coding, 505 for another version (RFC 9112).
        if status is None or 400 <= status < 500 or status in {501, 505}:
            return True
        return case.must == "judged" and status == 200 and is_signed(case, self._secret)

    # --- what is sent ------------------------------------------------------------------------

    def _event(self) -> bytes:
        self._number += 1
        event = {
            "id": f"evt_{self._name}{self._number}",
            "object": "event",
            "created": int(time.time()),
            "data": {
                "object": {
                    "id": f"vs_{self._name}{self._number}",
                    "object": "identity.verification_session",
                    "metadata": {"padding": "x" * self._random.randint(0, 3000)},
                }
            },
            "livemode": False,
            "type": "identity.verification_session.verified",
        }
        return json.dumps(event).encode()

    def _mac(self, at: object, body: bytes) -> str:
        return hmac.digest(self._secret.encode(), f"{at}.".encode() + body, "sha256").hex()

    def _signature(self, body: bytes) -> bytes:
        at = int(time.time())
        return f"Stripe-Signature: t={at},v1={self._mac(at, body)}".encode()

    def _request(self, body: bytes, *lines: bytes) -> bytes:
        head = [b"POST /webhooks/stripe HTTP/1.1", b"Host: receiver", *lines, b"", b""]
        return b"\r\n".join(head) + body

    def _sized(self, body: bytes, *lines: bytes) -> bytes:
        return self._request(body, b"Content-Length: %d" % len(body), *lines)

    def _valid(self) -> Case:
        body = self._event()
        return Case("valid", self._sized(body, self._signature(body)), "taken", alone=False)

    def _chunked(self) -> Case:
        body = self._event()
        chunks, at = b"", 0
        while at < len(body):
            piece = body[at : at + self._random.randint(1, 700)]
            chunks += b"%x\r\n%b\r\n" % (len(piece), piece)
            at += len(piece)
        lines = (b"Transfer-Encoding: chunked", self._signature(body))
        return Case("chunked", self._request(chunks + b"0\r\n\r\n", *lines), "taken", alone=False)

    def _slow(self) -> Case:
        case = self._random.choice([self._valid, self._chunked])()
        return Case("slow", case.raw, "taken", pieces=self._random.randint(2, 8), alone=False)

    def _badly_signed(self) -> Case:
        body, at, pick = self._event(), int(time.time()), self._random
        good = self._mac(at, body)
        header = pick.choice(
            [
                lambda: f"t={at},v1={good[:-1]}{(int(good[-1], 16) + 1) % 16:x}",
                lambda: f"t={at - 400},v1={self._mac(at - 400, body)}",
                lambda: f"t={at + 10_000},v1={self._mac(at + 10_000, body)}",
                lambda: f"t={at + 1},v1={good}",
                lambda: f"v1={good}",
                lambda: f"t={at}",
                lambda: f"t={at},v0={good}",
                lambda: f"t={at},t={at},v1={good}",
                lambda: f"t={at},v1={good.upper()}" if good.upper() != good else "",
                lambda: ",".join(f"v1={pick.randbytes(32).hex()}" for _ in range(30)),
                lambda: pick.randbytes(pick.randint(0, 60)).hex(),
                lambda: "",
                lambda: f"t={at},v1={self._mac(at, body + b' ')}",
                lambda: f"t=0{at},v1={good}",
                lambda: f"t={at}.0,v1={good}",
            ]
        )()
        line = f"Stripe-Signature: {header}".encode("latin-1")
        return Case("bad-signed", self._sized(body, line), "refused", alone=False)

    def _signed_nonsense(self) -> Case:
        pick = self._random
        body = pick.choice(
            [
                lambda: pick.randbytes(pick.randint(0, 400)),
                lambda: json.dumps(self._value(4)).encode(),
                lambda: b"[" * pick.randint(1, 5000),
                lambda: self._event()[: pick.randint(0, 100)],
                lambda: self._event().replace(b'"evt_', b'"'),
                lambda: self._event().replace(b'"vs_', b'"cs_'),
                lambda: self._event().replace(b'"created": ', b'"created": -'),
                lambda: self._event().replace(b"false", pick.choice([b"0", b"null", b'"no"'])),
            ]
        )()
        raw = self._sized(body, self._signature(body))
        return Case("nonsense", raw, "refused", alone=False)

    def _value(self, depth: int) -> object:
        pick = self._random
        if depth == 0 or pick.random() < 0.3:
            return pick.choice([None, True, -1, 1e308, "", "\ud800", "x" * 50])
        if pick.random() < 0.5:
            return [self._value(depth - 1) for _ in range(pick.randint(0, 4))]
        keys = ["id", "object", "type", "created", "data", "livemode", "account"]
        return {pick.choice(keys): self._value(depth - 1) for _ in range(pick.randint(0, 4))}

    def _mutated(self) -> Case:
        pick, body = self._random, self._event()
        raw = bytearray(self._sized(body, self._signature(body)))
        for _ in range(pick.randint(1, 4)):
            # The head is short and matters most.
            at = pick.randrange(min(len(raw), 300) if pick.random() < 0.6 else len(raw))
            cut = pick.choice([0, 1, 1, 1, 2, 8, 60])
            piece = pick.choice(
                [
                    b"",
                    pick.randbytes(1),
                    pick.randbytes(pick.randint(1, 8)),
                    bytes(raw[at : at + pick.randint(1, 60)]) * 2,
                    pick.choice(
                        [b"\r\n", b"\n", b"\r\n\r\n", b"\0", b":", b" ", b"\t", b"0", b","]
                    ),
                ]
            )
            raw[at : at + cut] = piece
        return Case("mutated", bytes(raw), "judged", body)

    def _framing(self) -> Case:
        pick, body = self._random, self._event()
        size = len(body)
        lines = pick.choices(
            [
                b"Content-Length: %d" % size,
                b"Content-Length: %d" % (size + pick.randint(-5, 5)),
                b"Content-Length: %d" % pick.choice([0, 1, 262_144, 262_145, 10**11, 10**30]),
                b"Content-Length: +%d" % size,
                b"Content-Length: -1",
                b"Content-Length:",
                b"Content-Length: %d, %d" % (size, size),
                b"Content_Length: 3",
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: "
                + pick.choice([b"gzip", b"identity", b"xchunked", b"", b","]),
                b"Transfer-Encoding: chunked, chunked",
                b"Transfer-Encoding:\tchunked",
                b"Transfer-Encoding : chunked",
                b"Connection: " + pick.choice([b"close", b"keep-alive", b"upgrade", b"x"]),
                b"Upgrade: h2c",
                b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                b"Expect: " + pick.choice([b"100-continue", b"200-ok"]),
                b"Trailer: x",
                b" folded",
                b"no colon",
                b": no name",
                b"X: " + b"y" * pick.choice([10, 9000, 40_000]),
                b"Host: " + pick.randbytes(4).hex().encode(),
                b"Content-Type: multipart/form-data; boundary=x",
                b"Content-Encoding: gzip",
                b"X-Forwarded-Proto: https",
                b"SCRIPT_NAME: /x",
                b"Script-Name: /x",
                b"X-HTTP-Method-Override: DELETE",
            ],
            k=pick.randint(1, 5),
        )
        return Case("framing", self._request(body, *lines, self._signature(body)), "judged", body)

    def _cut_off(self) -> Case:
        case = self._random.choice([self._valid, self._chunked])()
        raw = case.raw[: self._random.randrange(1, len(case.raw) - 8)]
        return Case("cut-off", raw, "refused")

    def _noise(self) -> Case:
        pick = self._random
        raw = pick.choice(
            [
                lambda: pick.randbytes(pick.randint(1, 600)),
                lambda: b"GET /" + pick.randbytes(pick.randint(0, 80)) + b" HTTP/1.1\r\n\r\n",
                lambda: (
                    b"%b /webhooks/stripe HTTP/1.1\r\n\r\n"
                    % pick.choice(
                        [b"GET", b"PUT", b"OPTIONS", b"HEAD", b"TRACE", b"CONNECT", b"BREW"]
                    )
                ),
                lambda: (
                    b"POST /webhooks/stripe HTTP/%b\r\n\r\n"
                    % pick.choice([b"0.9", b"1.0", b"1.1", b"2.0", b"3", b"1.99", b"x"])
                ),
                lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + pick.randbytes(40),
                lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + pick.randbytes(500),
                lambda: b"POST /" + b"x" * pick.choice([100, 3000, 60_000]) + b" HTTP/1.1\r\n\r\n",
                lambda: b"\r\n" * pick.randint(1, 300),
                lambda: b"POST http://elsewhere/webhooks/stripe HTTP/1.1\r\n\r\n",
            ]
        )()
        return Case("noise", raw, "refused")

    # --- sending -----------------------------------------------------------------------------

    def _send(self, case: Case) -> int | None:
        if case.alone:
            with self._dial() as connection:
                with suppress(OSError):  # refused before it was all sent
                    connection.sendall(case.raw)
                    connection.shutdown(socket.SHUT_WR)
                return _answer(connection)
        if self._connection is None:
            self._connection = self._dial()
        connection = self._connection
        try:
            marks = sorted(self._random.randrange(len(case.raw)) for _ in range(case.pieces - 1))
            for start, end in zip([0, *marks], [*marks, len(case.raw)], strict=True):
                if start:
                    time.sleep(self._random.random() / 5)
                connection.sendall(case.raw[start:end])
            answer = _answer(connection, keep=True)
        except ConnectionError:
            answer = None  # it had been idle for too long
        if answer is None:
            self._hang_up()
            self._connection = self._dial()
            self._connection.sendall(case.raw)
            answer = _answer(self._connection, keep=True)
        if answer is None or answer >= 400:
            # It may be closing; what is taken stays open.
            self._hang_up()
        return answer

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)


def is_signed(case: Case, secret: str) -> bool:
    """Whether what was sent holds the very body, and a signature that the SDK accepts for it."""
    headers = re.findall(rb"(?i)\r\nstripe-signature:[ \t]*([^\r]*)", case.raw)
    if case.body not in case.raw:
        return False
    # A header that is there twice counts as one list, says HTTP. The SDK crashes on an entry that
    # is not ASCII, also beside a good one (docs/security.md).
    entries = b",".join(headers).decode("latin-1").split(",")
    header = ",".join(entry for entry in entries if entry.isascii())
    try:
        return stripe.WebhookSignature.verify_header(
            case.body.decode(), header, secret, tolerance=300
        )
    except stripe.SignatureVerificationError:
        return False


def _answer(connection: socket.socket, *, keep: bool = False) -> int | None:
    """Read one answer, and with `keep` no further; its status, None if there was none."""
    received = b""
    while True:
        head, found, body = received.partition(b"\r\n\r\n")
        if found and head.startswith(b"HTTP/1.1 100"):
            received = body
            continue
        length = re.search(rb"(?i)content-length: (\d+)", head) if found else None
        if found and keep and length and len(body) >= int(length[1]):
            if len(body) > int(length[1]):
                raise ValueError("more than one answer")
            break
        try:
            part = connection.recv(65_536)
        except ConnectionResetError:
            break
        if not part:
            break
        received += part
    return int(received.split(b" ", 2)[1]) if received else None


def fuzz(
    port: int, secret: str, *, requests: int, seed: int, progress: Callable[[Report], None]
) -> Report:
    """Send that many requests, and see how they are answered."""
    report = Report()
    senders = [Sender(port, secret, f"{seed}-{number}", report) for number in range(SENDERS)]
    started = time.monotonic()
    threads = [
        threading.Thread(target=sender.run, args=(requests // SENDERS + 1,), daemon=True)
        for sender in senders
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5)
        report.seconds = time.monotonic() - started
        progress(report)
    return report

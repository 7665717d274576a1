"""Hostile input: never 5xx, never 2xx without a right signature, nothing in the inbox."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable

import pytest
import stripe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIMIT = 262_144
"""Bytes of a body that are taken, at most."""


def signed(receiver, body: bytes) -> str:
    """Return a right header for any bytes: the SDK signs text only."""
    at, key = now(), receiver.secret.encode()
    mac = hmac.new(key, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


def now() -> int:
    return int(time.time())


Header = Callable[[object, bytes], str | bytes]

HEADERS: dict[str, Header] = {
    "none": lambda r, b: "",
    "blank": lambda r, b: "   ",
    "noise": lambda r, b: "hello",
    "wrong secret": lambda r, b: r.sign(b, secret="whsec_" + "x" * 32),
    "blank secret": lambda r, b: f"t={now()},v1={hmac.new(b' ', b, 'sha256').hexdigest()}",
    "empty secret": lambda r, b: (
        f"t={now()},v1={hmac.new(b'', f'{now()}.'.encode() + b, 'sha256').hexdigest()}"
    ),
    "secret None": lambda r, b: r.sign(b, secret="None"),
    "too old": lambda r, b: r.sign(b, at=now() - 310),
    "a year ahead": lambda r, b: r.sign(b, at=now() + 31_536_000),
    "time changed": lambda r, b: r.sign(b).replace(f"t={now()}"[:6], "t=2111"),
    "two times, the old one first": lambda r, b: f"t=1,{r.sign(b)}",
    "two times, the old one last": lambda r, b: f"{r.sign(b)},t=1",
    "time with an underscore": lambda r, b: r.sign(b).replace("t=1", "t=1_"),
    "time with a space": lambda r, b: r.sign(b).replace("t=", "t= "),
    "time with a sign": lambda r, b: r.sign(b).replace("t=", "t=+"),
    "time with a leading zero": lambda r, b: r.sign(b).replace("t=", "t=0"),
    "time in Arabic digits": lambda r, b: "t={},{}".format(
        "".join(chr(0x660 + int(digit)) for digit in str(now())), r.sign(b).partition(",")[2]
    ).encode(),
    "time of 5,000 digits": lambda r, b: f"t={'9' * 5000},{r.sign(b).partition(',')[2]}",
    "no time": lambda r, b: r.sign(b).partition(",")[2],
    "no signature": lambda r, b: r.sign(b).partition(",")[0],
    "v0 only": lambda r, b: r.sign(b).replace("v1=", "v0="),
    "upper-case hex": lambda r, b: r.sign(b).upper().replace("T=", "t=").replace("V1", "v1"),
    "space behind the comma": lambda r, b: r.sign(b).replace(",", ", "),
    "semicolons": lambda r, b: r.sign(b).replace(",", ";"),
    "non-ASCII v1 alone": lambda r, b: f"t={now()},v1=\xe9".encode("latin-1"),
    "UTF-8 v1": lambda r, b: f"t={now()},v1=é€".encode(),
    "NUL-like and control bytes": lambda r, b: f"t={now()},v1=\x01\x7f".encode(),
    "17 signatures": lambda r, b: r.sign(b) + f",v1={'0' * 64}" * 16,
    "a header of 8,000 bytes": lambda r, b: r.sign(b) + ",v1=0" * 1580,
    "signature cut": lambda r, b: r.sign(b)[:-1],
    "signature of the empty body": lambda r, b: r.sign(b""),
    "the secret itself": lambda r, b: f"t={now()},v1={r.secret}",
}


@pytest.fixture(autouse=True)
def nothing_taken_in(receiver, stored):
    yield
    assert not stored()
    assert receiver.get("/readyz").status_code == 200


@pytest.mark.any_server
class TestSignatures:
    @pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
    def test_refused(self, receiver, header) -> None:
        body = receiver.event()
        value = header(receiver, body)
        value = value if isinstance(value, bytes) else value.encode("latin-1")
        answer = receiver.post(body, b"Stripe-Signature: " + value)
        assert answer.status == 400
        assert receiver.secret.encode() not in answer.body

    def test_without_the_header(self, receiver) -> None:
        assert receiver.post(receiver.event()).status == 400

    def test_the_header_twice(self, receiver) -> None:
        body = receiver.event()
        good = f"Stripe-Signature: {receiver.sign(body)}"
        assert receiver.post(body, good, good).status == 400

    @pytest.mark.parametrize("name", ["Stripe_Signature", "X-Stripe-Signature", "Authorization"])
    def test_under_another_name(self, receiver, name) -> None:
        body = receiver.event()
        assert receiver.post(body, f"{name}: {receiver.sign(body)}").status == 400

    @pytest.mark.parametrize(
        "name", ["x-djstripe-webhook-secret", "Stripe-Webhook-Secret", "X-Webhook-Secret"]
    )
    def test_the_sender_cannot_choose_the_secret(self, receiver, name) -> None:
        body, secret = receiver.event(), "whsec_" + "chosenBySender0123456789"
        header = f"Stripe-Signature: {receiver.sign(body, secret=secret)}"
        assert receiver.post(body, header, f"{name}: {secret}").status == 400

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body + b" ",
            lambda body: body + b"\n",
            lambda body: body[:-1],
            lambda body: body.replace(b"\n", b"\r\n"),
            lambda body: json.dumps(json.loads(body)).encode(),
            lambda body: body.replace(b"vs_", b"vs_x"),
            gzip.compress,
            lambda body: body.decode().encode("utf-16"),
            lambda _: b"",
        ],
        ids=["space", "newline", "cut", "crlf", "reserialised", "other", "gzip", "utf-16", "empty"],
    )
    def test_a_body_that_was_changed_on_the_way(self, receiver, change) -> None:
        body = receiver.event()
        assert receiver.deliver(change(body), receiver.sign(body)).status == 400

    def test_gzip_is_not_unpacked(self, receiver) -> None:
        body = gzip.compress(receiver.event())
        header = f"Stripe-Signature: {signed(receiver, body)}"
        assert receiver.post(body, header, "Content-Encoding: gzip").status == 400


@pytest.mark.any_server
class TestSignedButNoEvent:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b'"x"',
            b"null",
            b"5",
            b"{}",
            b"{",
            b"NaN",
            b"\xff\xfe",
            b"[" * 5_000,
            b'{"a":' * 40_000,
            b"[" * 100_000 + b"]" * 100_000,
            b"9" * 200_000,
            b'{"object": "event"}',
            b'{"object": "event", "type": 5}',
            b'{"object": "event", "type": "identity.verification_session.verified"}',
            b'{"object": "charge", "type": "identity.verification_session.verified"}',
            '{"object": "event"}'.encode("utf-16"),
            b"id=evt_1&object=event",
            b"<event/>",
            b"\x80\x04\x95\x00.",
        ],
        ids=lambda body: f"{body[:20]!r} {len(body)}",
    )
    def test_refused(self, receiver, body) -> None:
        answers = [receiver.deliver(body, signed(receiver, body)) for _ in range(5)]
        for answer in answers:
            assert (answer.status, answer.json()["error"]) == (400, "malformed_event")
        assert min(answer.seconds for answer in answers) < 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"id": "evt_ 1"},
            {"id": "evt_" + "x" * 121},
            {"id": "x:y\r\nDEL"},
            {"id": None},
            {"created": float("nan")},
            {"created": float("inf")},
            {"created": -1},
            {"livemode": "false"},
            {"data": None},
            {"data": {"object": {"id": "cs_1", "object": "checkout.session"}}},
            {"account": "acct 1"},
            {"account": "../../x"},
        ],
        ids=str,
    )
    def test_an_event_with_a_misshapen_field(self, receiver, canary, changes) -> None:
        answer = receiver.deliver(receiver.event(**changes, note=canary))
        assert (answer.status, answer.json()["error"]) == (400, "malformed_event")
        assert canary.encode() not in answer.body

    def test_a_wide_event_costs_little(self, receiver, redis) -> None:
        wide = {str(number): number for number in range(12_000)}
        bodies = [receiver.event(f"evt_{number}", request=wide) for number in range(5)]
        assert 200_000 < len(bodies[0]) < LIMIT
        answers = [receiver.deliver(body) for body in bodies]
        assert {answer.status for answer in answers} == {200}
        assert min(answer.seconds for answer in answers) < 0.5
        redis.flushdb()


@pytest.mark.any_server
class TestSize:
    def exact(self, receiver, size: int) -> bytes:
        body = receiver.event(type="charge.succeeded")
        return body[:-1] + b" " * (size - len(body)) + b"}"

    def chunked(self, receiver, body: bytes) -> bytes:
        size = 60_000
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
        header = f"Stripe-Signature: {receiver.sign(body)}"
        return receiver.request(chunks, "Transfer-Encoding: chunked", header)

    def test_up_to_the_limit(self, receiver) -> None:
        body = self.exact(receiver, LIMIT)
        assert receiver.deliver(body).status == 200
        assert receiver.send(self.chunked(receiver, body)).status == 200

    @pytest.mark.parametrize("size", [LIMIT + 1, 3_000_000], ids=str)
    def test_above_it_with_a_length(self, receiver, size) -> None:
        assert receiver.deliver(self.exact(receiver, size)).status == 413

    @pytest.mark.parametrize("size", [LIMIT + 1, 3_000_000], ids=str)
    def test_above_it_in_chunks(self, receiver, size) -> None:
        # Cut silently at the limit it would be answered for a body that never came.
        assert receiver.send(self.chunked(receiver, self.exact(receiver, size))).status == 413

    def test_a_length_that_is_only_claimed(self, receiver) -> None:
        header = f"Stripe-Signature: {receiver.sign(b'{}')}"
        raw = receiver.request(b"{}", "Content-Length: 99999999999", header)
        assert receiver.send(raw).status == 413


class TestMalformedRequests:
    """Malformed HTTP around a rightly signed event: refused."""

    @pytest.mark.parametrize(
        ("headers", "statuses"),
        [
            (["Content-Length: 2", "Transfer-Encoding: chunked"], {400}),
            (["Content-Length: {n}", "Content-Length: 2"], {400}),
            (["Content-Length: +{n}"], {400}),
            (["Content-Length: -1"], {400}),
            (["Content-Length: x"], {400}),
            (["Content-Length: {n}, {n}"], {400}),
            (["Content-Length: {n}0"], {400}),  # the body ends early
            (["Content-Length: 10"], {400}),  # the body goes on
            (["Transfer-Encoding: chunked"], {400}),  # the body is no chunks
            (["Transfer-Encoding: xchunked"], {501}),
            (["Transfer-Encoding : chunked"], {400}),
            (["Transfer-Encoding: chunked, chunked"], {400}),
            (["Transfer-Encoding: gzip, chunked"], {501}),
            (["Transfer-Encoding:\x0bchunked"], {400, 501}),
            (["Content-Length: {n}", "Folded: a\r\n b"], {400}),
            (["Content-Length: {n}", "No colon"], {400}),
            (["Content-Length: {n}", ": no name"], {400}),
            (["Content-Length: {n}", "Bare: line\nfeed"], {400}),
            (["Content-Length: {n}", "Nul: a\x00b"], {400}),
            (["Content-Length: {n}", "X: " + "x" * 40_000], {431}),
            (["Content-Length: {n}", *[f"X-{number}: 1" for number in range(120)]], {431}),
            ([], {400, 411}),
        ],
        ids=lambda value: str(value)[:60] if isinstance(value, list) else None,
    )
    def test_headers(self, receiver, headers, statuses) -> None:
        body = receiver.event()
        lines = [line.format(n=len(body)) for line in headers]
        signed = f"Stripe-Signature: {receiver.sign(body)}"
        assert receiver.send(receiver.request(body, *lines, signed)).status in statuses

    @pytest.mark.parametrize(
        "chunks",
        [
            b"zz\r\n{}\r\n0\r\n\r\n",
            b"-2\r\n{}\r\n0\r\n\r\n",
            b"0x2\r\n{}\r\n0\r\n\r\n",
            b"2\r\n{}XX0\r\n\r\n",
            b"2\n{}\n0\n\n",
            b"5\r\n{}",
            b"ffffffffffffffffff\r\n{}",
            b"\r\n\r\n",
            b"",
        ],
        ids=repr,
    )
    def test_chunks(self, receiver, chunks) -> None:
        header = f"Stripe-Signature: {receiver.sign(b'{}')}"
        raw = receiver.request(chunks, "Transfer-Encoding: chunked", header)
        assert receiver.send(raw).status in {400, None}

    @pytest.mark.parametrize(
        ("line", "statuses"),
        [
            (b"POST /webhooks/stripe", {400, None}),  # HTTP/0.9
            (b"POST /webhooks/stripe HTTP/9.9", {400, 505}),
            (b"POST /webhooks/stripe HTTP/1.1 x", {400}),
            (b"post /webhooks/stripe HTTP/1.1", {400}),
            (b"POST /webhooks/stripe\x00 HTTP/1.1", {400, 404}),
            (b"POST /" + b"x" * 40_000 + b" HTTP/1.1", {431}),
            (b"GET /webhooks/stripe HTTP/1.1", {405}),
            (b"PUT /webhooks/stripe HTTP/1.1", {405}),
            (b"DELETE /webhooks/stripe HTTP/1.1", {405}),
            (b"BREW /webhooks/stripe HTTP/1.1", {400}),
            (b"POST /webhooks/%73tripe/ HTTP/1.1", {404}),
            (b"POST /webhooks/../webhooks/stripe HTTP/1.1", {404}),
            (b"POST * HTTP/1.1", {404, 400}),
            (b"\xff\xfe\x00", {400, None}),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400, None}),  # TLS
        ],
        ids=lambda value: repr(value)[:50] if isinstance(value, bytes) else None,
    )
    def test_request_lines(self, receiver, line, statuses) -> None:
        body = receiver.event()
        header = f"Stripe-Signature: {receiver.sign(body)}"
        raw = receiver.request(body, f"Content-Length: {len(body)}", header)
        _, _, rest = raw.partition(b"\r\n")
        assert receiver.send(line + b"\r\n" + rest).status in statuses


BOUNDED = settings(
    max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class TestEveryInput:
    """None is a connection closed without an answer."""

    @pytest.mark.parametrize("raw", [b"", b"\r\n", b"\r\n" * 9, b"\r\n\r\n", b" \r\n\r\n", b"\0"])
    def test_no_request_at_all(self, receiver, raw) -> None:
        assert harmless(receiver.send(raw))

    def test_random_bytes(self, receiver) -> None:
        @BOUNDED
        @given(st.binary(max_size=500))
        def send(raw: bytes) -> None:
            assert harmless(receiver.send(raw))

        send()

    def test_random_headers_and_bodies(self, receiver) -> None:
        line = st.binary(max_size=80).filter(
            lambda value: b"\r" not in value and b"\n" not in value
        )

        @BOUNDED
        @given(body=st.binary(max_size=500), value=line)
        def send(body: bytes, value: bytes) -> None:
            assert harmless(receiver.post(body, b"Stripe-Signature: " + value))

        send()

    def test_signed_random_bodies(self, receiver) -> None:
        @BOUNDED
        @given(st.binary(max_size=300) | st.text().map(str.encode))
        def send(body: bytes) -> None:
            answer = receiver.deliver(body, signed(receiver, body))
            assert answer.status == 400

        send()

    def test_a_valid_request_with_bytes_changed(self, receiver, redis) -> None:
        @BOUNDED
        @given(data=st.data(), piece=st.binary(max_size=4), cut=st.integers(0, 4))
        def send(data: st.DataObject, piece: bytes, cut: int) -> None:
            body = receiver.event()
            header = f"Stripe-Signature: {receiver.sign(body)}"
            raw = receiver.request(body, f"Content-Length: {len(body)}", header)
            at = data.draw(st.integers(0, len(raw) - 1))
            changed = raw[:at] + piece + raw[at + cut :]
            answer = receiver.send(changed)
            if answer.status == 200:
                assert is_signed(changed, receiver.secret)
                redis.flushdb()
            else:
                assert harmless(answer)

        send()


def is_signed(raw: bytes, secret: str) -> bool:
    """Ask the SDK: a change of what nobody signs, such as the Host header, does not matter."""
    head, _, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length:\s*(\d+)", head)
    value = re.search(rb"(?i)stripe-signature:\s*([^\r]*)", head)
    return stripe.WebhookSignature.verify_header(
        body[: int(length[1])], value[1].decode("latin-1"), secret, tolerance=300
    )


def harmless(answer) -> bool:
    return answer.status is None or 400 <= answer.status < 500

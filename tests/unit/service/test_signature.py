"""`service.signature`, alone and against Stripe's own SDK."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from service import signature
from service.signature import (
    MAX_SIGNATURES,
    TOLERANCE,
    MalformedHeader,
    Secret,
    SignatureError,
    SignatureExpired,
    SignatureMismatch,
    sign,
    verify,
)

NOW = 1_790_000_000
OLD = Secret("old", b"whsec_q7H2kP9sXv4LbN8wRt3YcZ6m")
NEW = Secret("new", b"whsec_Jd5Gf1Ue0Ta7Io2WnMxVbQhE")
BODY = '{"id": "evt_1", "city": "Zürich"}'.encode()


def v1(header: str) -> str:
    return header.partition(",")[2]


class TestVerify:
    def test_what_sign_makes_is_accepted(self) -> None:
        assert verify(BODY, sign(BODY, OLD, now=NOW), [OLD], now=NOW) is OLD

    def test_known_answer(self) -> None:
        # printf '1790000000.{}' | openssl dgst -sha256 -hmac whsec_q7H2kP9sXv4LbN8wRt3YcZ6m
        digest = "d8b94b43b816fc655e3ea95cf1ef62dc28a51620a84bd76788a5c5d31cf5e9c9"
        assert sign(b"{}", OLD, now=NOW) == f"t=1790000000,v1={digest}"

    @pytest.mark.parametrize("secrets", [[OLD, NEW], [NEW, OLD]], ids=["first", "last"])
    def test_it_tells_which_secret_matched(self, secrets: list[Secret]) -> None:
        assert verify(BODY, sign(BODY, NEW, now=NOW), secrets, now=NOW) is NEW

    def test_while_rolling_one_of_two_entries_suffices(self) -> None:
        header = f"{sign(BODY, OLD, now=NOW)},{v1(sign(BODY, NEW, now=NOW))}"
        assert verify(BODY, header, [NEW], now=NOW) is NEW
        assert verify(BODY, header, [OLD], now=NOW) is OLD
        assert verify(BODY, header, [NEW, OLD], now=NOW) is NEW

    def test_every_pair_is_compared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compared = []
        compare = signature.hmac.compare_digest
        monkeypatch.setattr(
            signature.hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b)
        )
        header = f"{sign(BODY, OLD, now=NOW)},v1={'0' * 64}"
        verify(BODY, header, [OLD, NEW], now=NOW)
        assert len(compared) == 4

    def test_the_tolerance_is_that_of_the_sdk(self) -> None:
        assert stripe.Webhook.DEFAULT_TOLERANCE == TOLERANCE

    @pytest.mark.parametrize("away", [-TOLERANCE, 0, TOLERANCE], ids=str)
    def test_inside_the_tolerance(self, away: int) -> None:
        assert verify(BODY, sign(BODY, OLD, now=NOW + away), [OLD], now=NOW)

    @pytest.mark.parametrize("away", [-TOLERANCE - 1, TOLERANCE + 1, 31_536_000], ids=str)
    def test_outside_the_tolerance(self, away: int) -> None:
        with pytest.raises(SignatureExpired):
            verify(BODY, sign(BODY, OLD, now=NOW + away), [OLD], now=NOW)

    def test_an_unsigned_request_learns_nothing_about_our_clock(self) -> None:
        with pytest.raises(SignatureMismatch):
            verify(BODY, sign(BODY, NEW, now=1), [OLD], now=NOW)

    def test_without_secrets_nothing_is_accepted(self) -> None:
        with pytest.raises(SignatureMismatch):
            verify(BODY, sign(BODY, OLD, now=NOW), [], now=NOW)

    @pytest.mark.parametrize(
        "header",
        [
            "",
            ",",
            "garbage",
            "t",
            "v1",
            "=",
            f"t={NOW}",
            f"v1={'0' * 64}",
            f"t={NOW},v0={'0' * 64}",
            f"t={NOW},v1=",
            f"t={NOW},v1={'0' * 63}",
            f"t={NOW},v1={'0' * 65}",
            f"t={NOW},v1={'A' * 64}",
            f"t={NOW}, v1={'0' * 64}",
            f"t={NOW},v1={'0' * 64}\n",
            f"t=,v1={'0' * 64}",
            f"t=-1,v1={'0' * 64}",
            f"t={'9' * 13},v1={'0' * 64}",
            f"t=nan,v1={'0' * 64}",
            f"T={NOW},v1={'0' * 64}",
        ],
    )
    def test_malformed_headers(self, header: str) -> None:
        with pytest.raises(MalformedHeader):
            verify(BODY, header, [OLD], now=NOW)

    @pytest.mark.parametrize("name", ["t", "v1"])
    def test_a_name_without_a_value_spoils_a_good_header(self, name: str) -> None:
        with pytest.raises(MalformedHeader):
            verify(BODY, f"{sign(BODY, OLD, now=NOW)},{name}", [OLD], now=NOW)

    @pytest.mark.parametrize("extra", [",", ",,", f",v0={'0' * 64}", ",v2=x", ",a=b=c"])
    def test_other_items_are_ignored(self, extra: str) -> None:
        assert verify(BODY, sign(BODY, OLD, now=NOW) + extra, [OLD], now=NOW)

    def test_sixteen_entries_and_no_more(self) -> None:
        header = sign(BODY, OLD, now=NOW)
        assert verify(BODY, header + f",v1={'0' * 64}" * (MAX_SIGNATURES - 1), [OLD], now=NOW)
        with pytest.raises(MalformedHeader):
            verify(BODY, header + f",v1={'0' * 64}" * MAX_SIGNATURES, [OLD], now=NOW)


class TestEveryInput:
    """On any bytes: an answer, or a SignatureError."""

    def test_every_single_bit_counts(self) -> None:
        header = sign(BODY, OLD, now=NOW)
        for changed in bit_flips(BODY):
            with pytest.raises(SignatureMismatch):
                verify(changed, header, [OLD], now=NOW)
        for changed in bit_flips(header.encode("latin-1")):
            with pytest.raises(SignatureError):
                verify(BODY, changed.decode("latin-1"), [OLD], now=NOW)

    @given(
        body=st.binary(),
        header=st.text(st.characters())
        | st.binary().map(lambda raw: raw.decode("latin-1"))
        | st.lists(
            st.tuples(st.sampled_from(["t", "v1", "v0", ""]), st.sampled_from("=,"), st.text()),
            max_size=20,
        ).map(lambda items: ",".join(map("".join, items)))
        | st.text("tv10=,9af"),
    )
    def test_nothing_but_a_signature_error_comes_out(self, body: bytes, header: str) -> None:
        with pytest.raises(SignatureError) as caught:
            verify(body, header, [OLD, NEW], now=NOW)
        assert caught.value.code in {"malformed_header", "signature_mismatch"}

    @given(body=st.binary(), now=st.integers(1, 10**12 - 1))
    def test_any_body_signs_and_verifies(self, body: bytes, now: int) -> None:
        assert verify(body, sign(body, NEW, now=now), [OLD, NEW], now=now) is NEW


def test_errors_and_secrets_show_no_content() -> None:
    assert "whsec_" not in repr(OLD)
    marker = "Zyxmarker"
    for header in (f"t={marker},v1={'0' * 64}", f"t={NOW},v1={marker}", sign(b"", NEW, now=NOW)):
        with pytest.raises(SignatureError) as caught:
            verify(marker.encode(), header, [OLD], now=NOW)
        assert marker not in str(caught.value)
        assert "whsec_" not in str(caught.value)


# Against the SDK.

Verdict = Literal["accepted", "refused", "crashed"]


@dataclass
class SDK:
    """Stripe's `WebhookSignature` at a time of our choice."""

    clock: SimpleNamespace

    def verdict(
        self, body: bytes, header: str, *, now: float = NOW, tolerance: int = TOLERANCE
    ) -> Verdict:
        self.clock.time = lambda: now
        try:
            stripe.WebhookSignature.verify_header(body, header, OLD.key.decode(), tolerance)
        except stripe.SignatureVerificationError:
            return "refused"
        except Exception:  # noqa: BLE001  # that it can crash is what the table below shows
            return "crashed"
        return "accepted"

    def sign(self, body: bytes, *, now: int = NOW) -> str:
        return stripe.WebhookSignature.generate_signature_header(
            body.decode(), OLD.key.decode(), now
        )


@pytest.fixture(scope="module")
def sdk() -> SDK:
    clock = SimpleNamespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[stripe.WebhookSignature.__module__], "time", clock)
        yield SDK(clock)


def our_verdict(body: bytes, header: str, *, now: int = NOW, tolerance: int = TOLERANCE) -> Verdict:
    try:
        verify(body, header, [OLD], now=now, tolerance=tolerance)
    except SignatureError:
        return "refused"
    return "accepted"


def values(header: str, scheme: str) -> list[str]:
    return [item[len(scheme) + 1 :] for item in header.split(",") if item.startswith(scheme + "=")]


def is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass
class Difference:
    """One deliberate difference: what we do otherwise, why, one example, and when it applies."""

    name: str
    why: str
    theirs: Verdict
    ours: Verdict
    header: str
    applies: Callable[[bytes, str], bool]
    body: bytes = BODY


SIGNED = sign(BODY, OLD, now=NOW)
NOT_UTF8 = b'{"name": "\xff"}'
DIFFERENCES = [
    Difference(
        "timestamp ahead of the clock",
        "a signature made for next year would be good for a year; the PHP and .NET SDKs refuse it",
        theirs="accepted",
        ours="refused",
        header=sign(BODY, OLD, now=NOW + 31_536_000),
        applies=lambda _, header: any(
            t.isdecimal() and int(t[:20]) > NOW + TOLERANCE for t in values(header, "t")
        ),
    ),
    Difference(
        "two timestamps",
        "Python takes the first, Node the last; Stripe sends one",
        theirs="accepted",
        ours="refused",
        header=f"{SIGNED},t={NOW - 1}",
        applies=lambda _, header: len(values(header, "t")) > 1,
    ),
    Difference(
        "spellings of the timestamp: sign, spaces, underscores, leading zeros, other digits",
        "int() reads them; Stripe sends plain digits, and the .NET SDK signs the text as it came",
        theirs="accepted",
        ours="refused",
        header=SIGNED.replace("t=1", "t= +0\u06601_"),  # with an Arabic zero
        applies=lambda _, header: any(
            not re.fullmatch("[1-9][0-9]{0,11}", t, re.ASCII) for t in values(header, "t")
        ),
    ),
    Difference(
        "something behind a second '=' of an item",
        "the SDK cuts it off unread",
        theirs="accepted",
        ours="refused",
        header=f"{SIGNED}=more",
        applies=lambda _, header: any(
            "=" in value for scheme in ("t", "v1") for value in values(header, scheme)
        ),
    ),
    Difference(
        "more than 16 entries",
        "Stripe sends one per active secret; each costs us a comparison per secret",
        theirs="accepted",
        ours="refused",
        header=SIGNED + f",v1={'0' * 64}" * MAX_SIGNATURES,
        applies=lambda _, header: len(values(header, "v1")) > MAX_SIGNATURES,
    ),
    Difference(
        "non-ASCII v1",
        "compare_digest() takes no such str: an unsigned request would be answered 500",
        theirs="crashed",
        ours="refused",
        header=f"t={NOW},v1=\xe9",
        applies=lambda _, header: any(not entry.isascii() for entry in values(header, "v1")),
    ),
    Difference(
        "non-ASCII v1 beside a good one",
        "an entry that is no signature proves nothing, and harms nothing",
        theirs="crashed",
        ours="accepted",
        header=f"t={NOW},v1=\xe9,{v1(SIGNED)}",
        applies=lambda _, header: any(not entry.isascii() for entry in values(header, "v1")),
    ),
    Difference(
        "body that is not UTF-8, unsigned",
        "the SDK decodes before it checks; we check the bytes",
        theirs="crashed",
        ours="refused",
        header=SIGNED,
        body=NOT_UTF8,
        applies=lambda body, _: not is_utf8(body),
    ),
    Difference(
        "body that is not UTF-8, signed",
        "the signature is over bytes; that it is no event is for service.event to say",
        theirs="crashed",
        ours="accepted",
        header=sign(NOT_UTF8, OLD, now=NOW),
        body=NOT_UTF8,
        applies=lambda body, _: not is_utf8(body),
    ),
]


class TestAgainstTheSDK:
    @given(body=st.text(st.characters(codec="utf-8")), now=st.integers(1, 10**12 - 1))
    def test_they_sign_we_verify(self, sdk: SDK, body: str, now: int) -> None:
        assert our_verdict(body.encode(), sdk.sign(body.encode(), now=now), now=now) == "accepted"

    @given(body=st.text(st.characters(codec="utf-8")), now=st.integers(1, 10**12 - 1))
    def test_we_sign_they_verify(self, sdk: SDK, body: str, now: int) -> None:
        header = sign(body.encode(), OLD, now=now)
        assert sdk.verdict(body.encode(), header, now=now) == "accepted"

    @pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: row.name)
    def test_deliberate_differences(self, sdk: SDK, row: Difference) -> None:
        assert sdk.verdict(row.body, row.header) == row.theirs
        assert our_verdict(row.body, row.header) == row.ours
        assert row.applies(row.body, row.header)

    def test_the_page_lists_them(self) -> None:
        rows = [f"| {row.name} | {row.theirs} | {row.ours} | {row.why} |" for row in DIFFERENCES]
        table = "\n".join(["| header or body | SDK | here | why |", "|---|---|---|---|", *rows])
        page = (Path(__file__).parents[3] / "docs/security.md").read_text(encoding="utf-8")
        assert f"<!-- differences -->\n{table}\n<!-- end -->" in page, table

    def test_deliberate_difference_tolerance_none_or_zero(self, sdk: SDK) -> None:
        # They skip the age check then; for us 0 is the strictest tolerance.
        header = sign(BODY, OLD, now=1)
        assert sdk.verdict(BODY, header, tolerance=0) == "accepted"
        assert our_verdict(BODY, header, tolerance=0) == "refused"

    def test_deliberate_difference_whole_seconds(self, sdk: SDK) -> None:
        # Their clock has fractions, ours has not: at the far edge we accept up to a second more.
        header = sign(BODY, OLD, now=NOW - TOLERANCE)
        assert sdk.verdict(BODY, header, now=NOW + 0.5) == "refused"
        assert our_verdict(BODY, header, now=int(NOW + 0.5)) == "accepted"

    @settings(max_examples=400)
    @given(data=st.data())
    def test_what_they_refuse_we_refuse_and_other_differences_are_in_the_table(
        self, sdk: SDK, data: st.DataObject
    ) -> None:
        body, header = data.draw(mutated_deliveries())
        theirs, ours = sdk.verdict(body, header), our_verdict(body, header)
        assert theirs == ours or any(
            row.applies(body, header) and (row.theirs, row.ours) == (theirs, ours)
            for row in DIFFERENCES
        )


def bit_flips(data: bytes) -> list[bytes]:
    return [
        data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        for place in range(len(data))
        for bit in range(8)
    ]


@st.composite
def mutated_deliveries(draw: st.DrawFn) -> tuple[bytes, str]:
    """A rightly signed delivery after up to three small changes of its header or body."""
    body = draw(st.sampled_from([BODY, b"", b"{}", NOT_UTF8]))
    now = NOW + draw(st.sampled_from([0, 0, 1, -TOLERANCE, -TOLERANCE - 1, TOLERANCE + 1]))
    items = sign(body, OLD, now=now).split(",")
    item = st.one_of(
        st.sampled_from([f"v1={'0' * 64}", f"v0={'0' * 64}", "", "t", "v1", *items]),
        st.builds("{}={}".format, st.sampled_from(["t", "v1", "v0", "V1", " v1"]), st.text()),
        st.integers(-1, 10**14).map(lambda t: f"t={t}"),
    )
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, max(len(items) - 1, 0)))
        match draw(st.sampled_from(["insert", "drop", "swap", "edit", "upper", "body"])):
            case "insert":
                items.insert(place, draw(item))
            case "drop" if items:
                del items[place]
            case "swap":
                items.reverse()
            case "edit" if items:
                at = draw(st.integers(0, len(items[place])))
                cut = draw(st.integers(0, 1))
                piece = draw(st.sampled_from(["", " ", "=", "0", "+", "_", "x", "\xe9", "\u0660"]))
                items[place] = items[place][:at] + piece + items[place][at + cut :]
            case "upper" if items:
                items[place] = items[place].upper()
            case "body":
                body += draw(st.sampled_from([b" ", b"\n", b"\xff", b"}"]))
    return body, ",".join(items)

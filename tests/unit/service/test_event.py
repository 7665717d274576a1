"""`service.event`: both forms in, identifiers out, and nothing else ever."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from identity_webhooks.event import KINDS, Event
from service.event import MalformedEvent, parse

# As in docs.stripe.com/api/events/object, laid out as Stripe delivers it: two spaces deep.
SNAPSHOT: dict[str, Any] = {
    "id": "evt_1TaWn5LkdIwHu7ix0bXr4Qzy",
    "object": "event",
    "api_version": "2026-09-30.endive",
    "created": 1790000000,
    "data": {
        "object": {
            "id": "vs_1TaWmxLkdIwHu7ixUdtHg3rQ",
            "object": "identity.verification_session",
            "client_reference_id": None,
            "client_secret": None,
            "created": 1789999950,
            "last_error": None,
            "last_verification_report": "vr_1TaWn4LkdIwHu7ixK2sPq8Zc",
            "livemode": False,
            "metadata": {"user_id": "42", "id": "evt_inner", "account": "acct_inner"},
            "options": {"document": {"require_matching_selfie": True}},
            "redaction": None,
            "related_customer": None,
            "status": "verified",
            "type": "document",
            "url": None,
        }
    },
    "livemode": False,
    "pending_webhooks": 1,
    "request": {"id": None, "idempotency_key": None},
    "type": "identity.verification_session.verified",
}

# As in docs.stripe.com/api/v2/core/events, of a /v1 resource.
THIN: dict[str, Any] = {
    "id": "evt_test_65SKbq1QfJ2xYcRk7",
    "object": "v2.core.event",
    "context": None,
    "created": "2026-11-22T10:00:00.500Z",
    "livemode": False,
    "reason": {"type": "request", "request": {"id": "req_1", "idempotency_key": "k"}},
    "related_object": {
        "id": "vs_1TaWmxLkdIwHu7ixUdtHg3rQ",
        "type": "identity.verification_session",
        "url": "/v1/identity/verification_sessions/vs_1TaWmxLkdIwHu7ixUdtHg3rQ",
    },
    "type": "v1.identity.verification_session.verified",
}
FORMS = {"snapshot": SNAPSHOT, "thin": THIN}


def encode(event: object) -> bytes:
    return json.dumps(event, indent=2).encode()


def changed(event: dict[str, Any], path: str, value: object = ...) -> dict[str, Any]:
    """Return the event with the field at the dotted path set, or removed."""
    copy = json.loads(json.dumps(event))
    *parents, last = path.split(".")
    place = copy
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


class TestForms:
    @pytest.mark.parametrize(
        ("body", "form", "name", "created"),
        [
            (SNAPSHOT, "snapshot", "evt_1TaWn5LkdIwHu7ix0bXr4Qzy", 1790000000),
            (THIN, "thin", "evt_test_65SKbq1QfJ2xYcRk7", 1795341600),
        ],
        ids=["snapshot", "thin"],
    )
    def test_what_is_read(self, body: Any, form: Any, name: str, created: int) -> None:
        assert parse(encode(body)) == Event(
            id=name,
            kind="verified",
            form=form,
            session="vs_1TaWmxLkdIwHu7ixUdtHg3rQ",
            created=created,
            livemode=False,
            account=None,
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_six_types(self, kind: str) -> None:
        assert len(KINDS) == 6
        name = f"identity.verification_session.{kind}"
        snapshot = parse(encode({**SNAPSHOT, "type": name}))
        thin = parse(encode({**THIN, "type": f"v1.{name}"}))
        assert snapshot is not None
        assert thin is not None
        assert (snapshot.kind, snapshot.type) == (kind, name)
        assert (thin.kind, thin.type) == (kind, name)

    @pytest.mark.parametrize(
        ("form", "name"),
        [
            ("snapshot", "charge.succeeded"),
            ("snapshot", "identity.verification_session"),
            ("snapshot", "identity.verification_session.expired"),
            ("snapshot", "identity.verification_session.verified "),
            ("snapshot", "Identity.verification_session.verified"),
            ("snapshot", "v1.identity.verification_session.verified"),
            ("snapshot", ""),
            ("thin", "v1.billing.meter.no_meter_found"),
            ("thin", "identity.verification_session.verified"),
            ("thin", "v2.identity.verification_session.verified"),
        ],
    )
    def test_other_types_are_none(self, form: str, name: str) -> None:
        assert parse(encode({**FORMS[form], "type": name})) is None

    def test_an_event_of_another_type_need_not_look_like_ours(self) -> None:
        assert parse(b'{"object": "event", "type": "charge.succeeded", "id": 5}') is None

    @pytest.mark.parametrize("livemode", [True, False], ids=str)
    @pytest.mark.parametrize("form", FORMS)
    def test_livemode(self, form: str, livemode: bool) -> None:
        event = parse(encode({**FORMS[form], "livemode": livemode}))
        assert event is not None
        assert event.livemode is livemode

    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-22T10:00:00.999999Z", 1795341600),
            ("2026-11-22T12:00:00+02:00", 1795341600),
            ("2026-11-22t10:00:00z", 1795341600),
        ],
    )
    def test_times_of_thin_events(self, written: str, seconds: int) -> None:
        event = parse(encode({**THIN, "created": written}))
        assert event is not None
        assert event.created == seconds


class TestAccount:
    """On Connect the same endpoint gets the events of many accounts."""

    @pytest.mark.parametrize(
        ("form", "extra", "account", "key"),
        [
            ("snapshot", {}, None, "{id}"),
            ("snapshot", {"account": None, "context": None}, None, "{id}"),
            ("snapshot", {"account": "acct_A"}, "acct_A", "acct_A-{id}"),
            ("snapshot", {"context": "acct_A"}, "acct_A", "acct_A-{id}"),
            ("snapshot", {"account": "acct_A", "context": "org_B/acct_A"}, "acct_A", "acct_A-{id}"),
            ("thin", {}, None, "{id}"),
            ("thin", {"context": "acct_A"}, "acct_A", "acct_A-{id}"),
            ("thin", {"context": "org_B/acct_A"}, "org_B/acct_A", "org_B-acct_A-{id}"),
        ],
    )
    def test_it_is_part_of_the_key(
        self, form: str, extra: dict[str, str], account: str | None, key: str
    ) -> None:
        event = parse(encode({**FORMS[form], **extra}))
        assert event is not None
        assert event.account == account
        assert event.key == key.format(id=FORMS[form]["id"])

    _name = st.from_regex(r"[A-Za-z0-9_]{1,8}", fullmatch=True)
    _account = st.none() | st.lists(_name, min_size=1, max_size=4).map("/".join)
    _event = st.tuples(_account, _name.map("evt_{}".format))

    @given(one=_event, other=_event)
    def test_two_events_never_share_a_key(
        self, one: tuple[str | None, str], other: tuple[str | None, str]
    ) -> None:
        keys = []
        for account, event_id in (one, other):
            event = parse(encode({**SNAPSHOT, "account": account, "id": event_id}))
            assert event is not None
            assert re.fullmatch("[A-Za-z0-9_-]+", event.key)
            keys.append(event.key)
        assert (keys[0] == keys[1]) == (one == other)


MARKER = "Zyxmarker"
MISSHAPEN = [None, 5, True, [], {}, MARKER, f"evt_{MARKER}\n", f"vs_ {MARKER}", "evt_", "vs_"]


class TestMalformed:
    @pytest.mark.parametrize(
        ("form", "path"),
        [
            (form, path)
            for form, paths in {
                "snapshot": "id object type created livemode data data.object data.object.id"
                " data.object.object",
                "thin": "id object type created livemode related_object related_object.id"
                " related_object.type",
            }.items()
            for path in paths.split()
        ],
    )
    def test_each_field_is_needed_and_of_one_shape(self, form: str, path: str) -> None:
        with pytest.raises(MalformedEvent, match=re.escape(f"`{path.rpartition('.')[2]}`")):
            parse(encode(changed(FORMS[form], path)))
        for value in MISSHAPEN:
            if (path, value) in [("livemode", True), ("created", 5)] or (
                path == "type" and isinstance(value, str)
            ):
                continue
            refuses(encode(changed(FORMS[form], path, value)), path)

    @pytest.mark.parametrize("path", ["account", "context"])
    @pytest.mark.parametrize("value", [5, [], "", f"{MARKER} x", "a//b", "/a", "a-b", "a/b/c/d/e"])
    def test_accounts(self, path: str, value: object) -> None:
        refuses(encode({**SNAPSHOT, path: value}), path)
        refuses(encode({**THIN, "context": value}), "context")

    @pytest.mark.parametrize(
        ("form", "created"),
        [
            ("snapshot", -1),
            ("snapshot", 1 << 41),
            ("snapshot", 10**400),
            ("snapshot", 1.5),
            ("snapshot", 1e300),
            ("snapshot", float("nan")),
            ("snapshot", "1790000000"),
            ("thin", "2026-11-22T10:00:00"),
            ("thin", "2026-13-22T10:00:00Z"),
            ("thin", "2026-11-22"),
            ("thin", "99999-11-22T10:00:00Z"),
            ("thin", 1790000000),
        ],
    )
    def test_times(self, form: str, created: object) -> None:
        refuses(encode({**FORMS[form], "created": created}))

    @pytest.mark.parametrize("name", ["id", "data.object.id"])
    def test_ids_have_a_longest_length(self, name: str) -> None:
        prefix = "evt_" if name == "id" else "vs_"
        assert parse(encode(changed(SNAPSHOT, name, prefix + "x" * 120)))
        refuses(encode(changed(SNAPSHOT, name, prefix + "x" * 121)), name)

    def test_a_signed_marker_in_the_body_is_in_no_fault(self) -> None:
        body = encode({**SNAPSHOT, "data": {"object": {"id": MARKER, "last_name": MARKER}}})
        refuses(body, "data.object.id")


HEAD = encode(SNAPSHOT)[:-2]
"""A snapshot up to where one more member may follow."""


class TestHostileJSON:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"null",
            b"true",
            b"5",
            b'"x"',
            b"[]",
            b"{}",
            b"{",
            b"\x00",
            b"\xff",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            HEAD,
            HEAD + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            HEAD + b',"x":NaN}',
            HEAD + b',"x":Infinity}',
            HEAD + b',"created":1e999}',
            HEAD + b',"created":' + b"9" * 100_000 + b"}",
            HEAD + b',"id":"\\ud800"}',
            HEAD + b',"id":"evt_\\ud800\\u0041"}',
            HEAD + b',"id":"\xff"}',
            HEAD + b',"type":"\xed\xa0\x80"}',
            HEAD + b"} trailing",
            HEAD + b"}" + HEAD + b"}",
            b"\xef\xbb\xbf" + HEAD + b"}",
            (HEAD + b"}").decode().encode("utf-16"),
            (HEAD + b"}").decode().encode("utf-32"),
            (HEAD + b"}").replace(b'"', b"'"),
            b"id=evt_1&object=event",
        ],
        ids=lambda body: repr(body[-12:]) + str(len(body)),
    )
    def test_is_malformed(self, body: bytes) -> None:
        refuses(body)

    @pytest.mark.parametrize(
        "member",
        [
            b'"x":1e999',
            b'"x":' + b"9" * 100_000,
            b'"x":"\xff"',
            b'"\xff":1',
            b'"x":' + b"[" * 100 + b"]" * 100,
        ],
        ids=["float", "integer", "string", "key", "nesting"],
    )
    def test_what_is_not_read_does_no_harm(self, member: bytes) -> None:
        assert parse(HEAD + b"," + member + b"}") == parse(encode(SNAPSHOT))

    def test_of_duplicate_keys_the_last_counts_as_in_the_sdks(self) -> None:
        body = HEAD + b',"id":"evt_last"}'
        event = parse(body)
        assert event is not None
        assert event.id == json.loads(body)["id"] == "evt_last"


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([SNAPSHOT, THIN, "event", "v2.core.event", SNAPSHOT["type"], THIN["type"]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_PATHS = [*SNAPSHOT, *THIN, "data.object", "data.object.id", "data.object.object"]


class TestEveryInput:
    """An Event, None, or MalformedEvent."""

    @staticmethod
    def check(body: bytes) -> None:
        try:
            event = parse(body)
        except MalformedEvent:
            return
        if event is not None:
            assert event.kind in KINDS
            assert re.fullmatch("[A-Za-z0-9_-]{1,400}", event.key)
            assert re.fullmatch("vs_[A-Za-z0-9_]{1,120}", event.session)
            assert type(event.livemode) is bool
            assert type(event.created) is int

    @given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
    @example(b"")
    def test_bytes(self, body: bytes) -> None:
        self.check(body)

    @given(_JSON)
    def test_json(self, value: object) -> None:
        self.check(encode(value))

    @settings(max_examples=300)
    @given(form=st.sampled_from([SNAPSHOT, THIN]), path=st.sampled_from(_PATHS), value=_JSON)
    def test_an_event_with_one_field_changed(
        self, form: dict[str, Any], path: str, value: object
    ) -> None:
        if path.partition(".")[0] in form:
            self.check(encode(changed(form, path, value)))

    @settings(max_examples=300)
    @given(body=st.sampled_from([encode(SNAPSHOT), encode(THIN)]), cut=st.data(), piece=st.binary())
    def test_an_event_with_some_bytes_changed(
        self, body: bytes, cut: st.DataObject, piece: bytes
    ) -> None:
        start = cut.draw(st.integers(0, len(body)))
        end = cut.draw(st.integers(start, min(start + 20, len(body))))
        self.check(body[:start] + piece + body[end:])


def refuses(body: bytes, path: str = "") -> None:
    """Check that the body is malformed, and that the fault names the place and no value."""
    with pytest.raises(MalformedEvent) as caught:
        parse(body)
    text = str(caught.value)
    assert text
    assert MARKER not in text
    assert path in text

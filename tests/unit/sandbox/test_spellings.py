"""Whatever spelling an SDK has for a value, every parameter of every operation reads the same."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe._encode import _api_encode  # the installed SDK's own encoder

from stripe_identity_sandbox.objects import EVENT_TYPES
from stripe_identity_sandbox.operations import OPERATIONS
from stripe_identity_sandbox.operations.base import Operation
from stripe_identity_sandbox.parameters import (
    ApiVersion,
    Array,
    Boolean,
    Enum,
    EventName,
    Integer,
    Kind,
    Metadata,
    Record,
    Text,
    TimeRange,
    Url,
)
from stripe_identity_sandbox.wire import ApiError, Named, nest
from stripe_identity_sandbox.wire_v2 import Moment, MomentRange, query

from .conftest import DESTINATIONS, SESSIONS, Api

# -- how SDKs write a form ---------------------------------------------------------------------
# Read from the SDKs' sources; old versions are named by what they did differently.

Pairs = Iterator[tuple[str, str]]


def flat(name: str, value: Any, *, position: Callable[[int], str], truth: str) -> Pairs:
    """``position`` returns what follows an array's name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{name}[{key}]", inner, position=position, truth=truth)
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from flat(f"{name}{position(n)}", inner, position=position, truth=truth)
    elif isinstance(value, bool):
        yield name, str(value) if truth == "True" else str(value).lower()
    else:
        yield name, str(value)


def writer(
    *, array: str = "[{}]", truth: str = "true", escape: Callable[[str], str] = quote_plus
) -> Callable[[str, Any], str]:
    def write(name: str, value: Any) -> str:
        pairs = flat(name, value, position=array.format, truth=truth)
        return "&".join(f"{escape(key)}={escape(text)}" for key, text in pairs)

    return write


def installed_python(name: str, value: Any) -> str:
    return "&".join(
        f"{quote_plus(key)}={quote_plus(str(text))}" for key, text in _api_encode({name: value})
    )


SPELLINGS = {
    "stripe-python, installed": installed_python,
    "stripe-python up to 12.0": writer(truth="True"),
    "stripe-python 1": writer(truth="True", array="[]"),
    "stripe-node": writer(escape=lambda text: quote(text, safe="[]")),
    "stripe-ruby, stripe-php, stripe-go, stripe-java": writer(),
    "their old versions, curl": writer(array="[]"),
}
#: Queries of /v2 only: up to November 2025 the SDKs repeated the plain name of an array there.
V2_QUERY_SPELLINGS = {
    "stripe-python up to 13": writer(array=""),
    "stripe-node up to 19": writer(array="", escape=lambda text: quote(text, safe="[]")),
}


# -- values of each kind -----------------------------------------------------------------------

LETTERS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
KEYS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="[]"), min_size=1, max_size=20
)
MOMENTS = st.datetimes().map(lambda moment: moment.isoformat())


def bounds(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(("gt", "gte", "lt", "lte")), of, min_size=1)


PLAIN: dict[type[Kind], st.SearchStrategy[Any]] = {
    Url: st.sampled_from(("https://a.example/b?c=d&e=f", "http://127.0.0.1:1/")),
    Text: LETTERS,
    Integer: st.integers(-(10**17), 10**17),
    Boolean: st.booleans(),
    ApiVersion: st.sampled_from(("2020-08-27", "2026-10-28.endive")),
    Metadata: st.dictionaries(KEYS, LETTERS | st.just(""), min_size=1, max_size=5),
    TimeRange: st.integers(0, 10**10) | bounds(st.integers(0, 10**10)),
    Moment: MOMENTS,
    MomentRange: bounds(MOMENTS),
}


def values(kind: Kind) -> st.SearchStrategy[Any]:
    found = PLAIN.get(type(kind))
    match kind:
        case EventName(form="snapshot"):
            found = st.sampled_from(("*", *EVENT_TYPES, "charge.succeeded"))
        case EventName():
            found = st.sampled_from([f"v1.{name}" for name in EVENT_TYPES])
        case Enum(values=words):
            found = st.sampled_from(words)
        case Array(item=item):
            found = st.lists(values(item), min_size=1, max_size=12)
        case Record(fields=fields, required=required):
            optional = {name: values(kind) for name, kind in fields.items() if name not in required}
            found = st.fixed_dictionaries(
                {name: values(fields[name]) for name in required}, optional=optional
            ).filter(bool)
    assert found is not None, f"no values for {kind}"
    return found | st.just("") if kind.unset and not isinstance(kind, Metadata) else found


PARAMETERS = [(op, name) for op in OPERATIONS for name in op.params.fields]


def label(case: tuple[Operation, str]) -> str:
    return f"{case[0].method} {case[0].path} {case[1]}"


@pytest.mark.parametrize("case", PARAMETERS, ids=label)
def test_every_spelling_is_read_alike(case: tuple[Operation, str]) -> None:
    op, name = case
    kind = op.params.fields[name]

    @given(value=values(kind))
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    def check(value: Any) -> None:
        # What JSON says has one spelling only: the bodies of /v2 are read so.
        expected = kind.read(json.loads(json.dumps(value)), name)
        in_query = op.path.startswith("/v2/") and op.method == "GET"
        for sdk, write in (SPELLINGS | (V2_QUERY_SPELLINGS if in_query else {})).items():
            body = write(name, value)
            pairs = parse_qsl(body, keep_blank_values=True)
            nested = query(pairs, op.params) if in_query else nest(pairs)
            assert kind.read(nested[name], name) == expected, f"{sdk}: {body}"

    check()


@pytest.mark.parametrize("sdk", SPELLINGS | V2_QUERY_SPELLINGS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_arrays_in_queries_of_v2(api: Api, sdk: str, count: int) -> None:
    write = (SPELLINGS | V2_QUERY_SPELLINGS)[sdk]
    api.create()
    names = [f"v1.identity.verification_session.{name}" for name in ("created", "verified")]
    names = [*names, "v1.charge.succeeded"][:count]
    found = api.get(f"/v2/core/events?{write('types', names)}")
    assert found.status_code == 200, found.text
    assert [event["type"] for event in found.json["data"]] == names[:1]
    assert (
        api.get(f"/v2/core/events?{write('types', names[1:] or ['v1.charge.failed'])}").json["data"]
        == []
    )
    fields = {
        "name": "x", "type": "webhook_endpoint", "event_payload": "thin", "enabled_events": names,
        "webhook_endpoint": {"url": "http://127.0.0.1:9/"},
    }  # fmt: skip
    made = api.post_json(DESTINATIONS, **fields).json["id"]
    included = write("include", ["webhook_endpoint.url"] * count)
    for path in (DESTINATIONS, f"{DESTINATIONS}/{made}"):
        found = api.get(f"{path}?{included}")
        assert found.status_code == 200, found.text
        assert "http://127.0.0.1:9/" in found.text


STRANGE = ("\x00", "[", "x[0]=y", "-", "٣", "nan", "True ", "{}")


@pytest.mark.parametrize("case", PARAMETERS, ids=label)
def test_no_text_breaks_a_reader(case: tuple[Operation, str]) -> None:
    """It raises Stripe's error, or gives a value."""
    op, name = case
    for text in STRANGE:
        nested = ({"": [text]}, {"": {"a": text}}, {"0": text}, {"0": {"a": text}}, {text: "1"})
        for value in (text, *nested, *map(Named, nested)):
            with contextlib.suppress(ApiError):
                op.params.fields[name].read(value, name)


def test_an_idempotency_key_takes_every_spelling_for_the_same(api: Api) -> None:
    asked = {
        "type": "document",
        "options": {"document": {"require_matching_selfie": True, "allowed_types": ["passport"]}},
        "metadata": {"a": "b"},
    }
    bodies = [
        "&".join(write(name, value) for name, value in order)
        for write in SPELLINGS.values()
        for order in (asked.items(), list(asked.items())[::-1])
    ]
    assert len(set(bodies)) > 6
    answers = [api.post(SESSIONS, body, Idempotency_Key="k") for body in bodies]
    assert {answer.data for answer in answers} == {answers[0].data}
    assert all(answer.headers["Idempotent-Replayed"] == "true" for answer in answers[1:])
    other = bodies[0].replace("passport", "id_card")
    assert api.post(SESSIONS, other, Idempotency_Key="k").status_code == 400


def test_many_items_are_read_in_their_number_s_time() -> None:
    """A body of the greatest length that is taken has this many."""
    count = 60_000
    began = time.process_time()
    nested = nest([("expand[]", "a")] * count)
    assert time.process_time() - began < 3, "each would take longer than the one before"
    assert nested == {"expand": {"": ["a"] * count}}

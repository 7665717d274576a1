"""No bytes of a request are answered 500, break a later page, or part the file from the memory."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import msgspec
from flask import Flask
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from werkzeug.test import EnvironBuilder, run_wsgi_app

from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.objects import Clock
from stripe_identity_sandbox.operations import OPERATIONS
from stripe_identity_sandbox.server import create_app, tidied
from stripe_identity_sandbox.settings import Settings
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.store import Store

from .conftest import DESTINATIONS, SESSIONS

#: What gunicorn sends as the value of a header.
HEADER = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")

NASTY = (
    *("", "0", "-1", "nan", "inf", "1e999", "9" * 5000, "True", "null", "\x00", "\x7f", "\u2028"),
    *("x" * 6000, "é" * 3000, "\U0001f600", "http://a..b/", "http://[", f"http://{'a' * 64}.b/"),
    *("http://é\x01/", "myapp://x", "*", "[", "]", "[]", "%", "..", "acct_1", "0001-01-01T00:00"),
    *(
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "verified",
        "document",
        "a.b.c.d.e",
    ),
    *("whsec_", "{{7*7}}", "<script>", "100000000000000000", "2026-10-28.endive", "31622400"),
)
TEXTS = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
NAMES = sorted(
    {name for op in OPERATIONS for name in op.params.fields}
    | {"outcome", "delay", "hold", "advance", "kind", "next", "rate", "bytes", "retry_after"}
    | {"permissions", "key", "overlap", "action", "back", "session", "event", "seconds", "when"}
)
KEYS = st.sampled_from(NAMES) | TEXTS


@st.composite
def form(draw: st.DrawFn) -> bytes:
    """A form with names in brackets, some of which are very many."""
    pairs = []
    for _ in range(draw(st.integers(0, 5))):
        inner = draw(
            st.lists(st.sampled_from(("", "0", "9" * 5000, "b", "gte")) | KEYS, max_size=3)
        )
        brackets = "".join(f"[{quote_plus(key)}]" for key in inner)
        # Many levels, but no name of a gigabyte.
        brackets *= min(
            draw(st.sampled_from((1, 1, 1, 40, 20_000))), 1 + 60_000 // (len(brackets) + 1)
        )
        pairs.append(f"{quote_plus(draw(KEYS))}{brackets}={quote_plus(draw(TEXTS))}")
    return "&".join(pairs).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
#: Python writes NaN as JSON, too.
OBJECTS = st.dictionaries(KEYS, JSON, max_size=6).map(lambda one: json.dumps(one).encode())
#: What Python can neither write as UTF-8 nor, beyond 4300 digits, read.
STRANGE = tuple(
    body.encode()
    for body in (
        r'{"key": "\ud800"}',
        r'{"name": "\udfff", "metadata": {"\ud83d": "x"}}',
        r'{"kind": "drop", "endpoint": "\ud800"}',
        r'{"webhook_endpoint": {"url": "http://\ud800/"}}',
        f'{{"kind": "rate_limit", "retry_after": {"9" * 6000}}}',
        f'{{"advance": {"9" * 6000}}}',
    )
)
DEEP = (b"[" * 100_000, b'{"a":' * 100_000, b'{"name":' + b"[" * 900 + b"]" * 900 + b"}")
BODIES = (
    form()
    | OBJECTS
    | st.sampled_from((*STRANGE, *DEEP, b"\xff\xfe", b"--x\r\n"))
    | st.binary(max_size=60)
)
TYPES = st.sampled_from(
    (
        "application/x-www-form-urlencoded",
        "application/json",
        "multipart/form-data; boundary=x",
        "application/json; charset=nonsense",
        "",
    )
)
VALUES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=40)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Authorization": VALUES | st.just("Basic /////w=="),
        "Idempotency-Key": VALUES | st.just("k"),
        "Stripe-Version": VALUES | st.sampled_from(("2026-10-28.endive", "2020-08-27; \x01=v1")),
        "Stripe-Account": VALUES | st.just("acct_1"),
        "Stripe-Context": VALUES,
        "Origin": VALUES,
    },
)


def places(app: Flask) -> list[tuple[str, str]]:
    """Return the method and the path of every route."""
    return sorted(
        (method, rule_.rule)
        for rule_ in app.url_map.iter_rules()
        for method in (rule_.methods or ()) - {"OPTIONS", "HEAD"}
    )


class AnyBytes(RuleBasedStateMachine):
    """A sandbox with a state file, in which something of everything is."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "state.sqlite")
        self.now = 1_795_000_000.0
        self.world = World(Settings(), clock=lambda: self.now, save=self.store.save)
        app = create_app(self.world, Faults())
        self.routes = places(app)
        self.app = tidied(app)
        form_body = b"type=document&return_url=http://127.0.0.1/&metadata[a]=b"
        for number in range(3):
            self.send("POST", SESSIONS, body=form_body)
            if number:
                session = list(self.world.sessions.values())[-1]
                with self.world.step() as world:
                    world.submit(session, "verified", hold=number == 1)
        destination = (
            b'{"name": "x", "type": "webhook_endpoint", "event_payload": "thin",'
            b' "enabled_events": ["v1.charge.failed"], "webhook_endpoint": {"url": "http://127.0.0.1:9/"}}'
        )
        assert self.send("POST", DESTINATIONS, body=destination, kind="application/json") == 200
        hook = b"url=http://127.0.0.1:9/&enabled_events[]=*"
        assert self.send("POST", "/v1/webhook_endpoints", body=hook) == 200

    @rule(
        number=st.integers(0, 10_000),
        path=st.none() | st.binary(max_size=40),
        id_=st.integers(0, 10_000),
        query=st.just(b"") | form() | st.binary(max_size=40),
        body=BODIES,
        kind=TYPES,
        headers=HEADERS,
    )
    def ask(
        self,
        number: int,
        path: bytes | None,
        id_: int,
        query: bytes,
        body: bytes,
        kind: str,
        headers: dict[str, str],
    ) -> None:
        method, place = self.routes[number % len(self.routes)]
        known = list(self.ids())
        named = re.sub(r"<[^>]*>", lambda _: known[id_ % len(known)], place)
        raw = named.encode() if path is None else b"/" + path
        status = self.send(
            method, raw.decode("latin-1"), query=query, body=body, kind=kind, headers=headers
        )
        assert status < 500, (method, raw, query, body, kind, headers)
        with self.world.step():
            pass  # what is due
        # Faults that were set would answer for the sandbox.
        assert self.send("DELETE", "/_sandbox/faults") == 200

    def ids(self) -> Iterator[str]:
        world = self.world
        for shelf in (
            world.sessions,
            world.reports.by_id,
            world.events.by_id,
            world.endpoints.by_id,
        ):
            yield from shelf
        yield from (event.thin_id for event in world.events.by_id.values())
        yield from (token for session in world.sessions.values() for token in session.links)
        yield "nothing"

    def teardown(self) -> None:
        try:
            self.check()
        finally:
            self.store.close()
            self.folder.cleanup()

    def check(self) -> None:
        pages = ["", "log", "setup", "requests", "deliveries", "keys", "faults", "clock"]
        pages += [f"sessions/{id_}" for id_ in list(self.world.sessions)[:3]]
        for page in pages:
            assert self.send("GET", f"/_sandbox/{page}") == 200, page
        assert dict(self.on_file()) == dict(self.in_memory())

    def on_file(self) -> Iterator[tuple[Any, bytes]]:
        for record in self.store.load():
            yield (type(record).__name__, record.id), msgspec.json.encode(record)

    def in_memory(self) -> Iterator[tuple[Any, bytes]]:
        world = self.world
        if world.journal.offset:
            clock = Clock(id="clock", offset=world.journal.offset)
            yield ("Clock", "clock"), msgspec.json.encode(clock)
        for shelf in (
            *(world.sessions, world.reports.by_id, world.events.by_id, world.endpoints.by_id),
            *(world.outbox.by_id, world.keys, world.answers.by_id),
        ):
            for record in shelf.values():
                yield (type(record).__name__, record.id), msgspec.json.encode(record)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: bytes = b"",
        body: bytes = b"",
        kind: str = "application/x-www-form-urlencoded",
        headers: dict[str, str] | None = None,
    ) -> int:
        """Return the status of an answer whose headers a server can send."""
        environ = EnvironBuilder(method=method, data=body, content_type=kind).get_environ()
        environ["PATH_INFO"], environ["QUERY_STRING"] = path, query.decode("latin-1")
        given_headers = {"Authorization": "Bearer sk_test_x"} | (headers or {})
        for name, value in given_headers.items():
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        chunks, status, answered = run_wsgi_app(self.app, environ, buffered=True)
        b"".join(chunks)
        for name, value in answered:
            assert HEADER.fullmatch(value), (name, value)
        return int(status.split()[0])


def test_any_bytes() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        AnyBytes,
        settings=settings(
            max_examples=30,
            stateful_step_count=12,
            phases=(Phase.generate,),
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )


FORMS = tuple(
    text.encode()
    for text in (
        f"x{'[b]' * 100_000}=1",
        f"metadata{'[b]' * 900}=1",
        f"expand[{'9' * 5000}]=x&enabled_events[{'9' * 5000}]=*",
        f"limit={'9' * 5000}&delay={'9' * 5000}&advance={'9' * 5000}&retry_after={'9' * 5000}",
        "a=1&a[b]=2&a[]=3&a[0]=4&a[][x]=5",
        "\xff=%ff&%ff=\xff&%00=%00",
    )
)


def test_every_route_with_what_is_known_to_break_readers() -> None:
    machine = AnyBytes()
    for number, (method, _) in enumerate(machine.routes):
        for kind, bodies in (
            ("application/x-www-form-urlencoded", FORMS),
            ("application/json", (*DEEP, *STRANGE, b"", b"[]", b"nonsense")),
        ):
            for body in bodies:
                query = body if method == "GET" else b""
                machine.ask(number, None, number, query, body, kind, {})
    machine.teardown()

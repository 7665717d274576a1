"""Traces and reports of failures: what is in them, and that nothing personal is."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.transport import Transport

from identity_webhooks import Verification, on
from identity_webhooks.event import Event
from service import extras, logs, otel, sentry
from service.inbox import AcceptResult
from service.settings import Settings
from tests.conftest import CANARY

DSN = "https://public@sentry.example/1"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()


@pytest.fixture
def envelopes(monkeypatch) -> Iterator[list[dict[str, Any]]]:
    """Sentry, with a transport that keeps what it is given: each report as it would be sent."""
    kept: list[dict[str, Any]] = []

    class InMemory(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            kept.extend(json.loads(item.payload.get_bytes()) for item in envelope.items)

    sentry.start(Settings(sentry_dsn=DSN), InMemory)
    yield kept
    sentry_sdk.get_client().close(timeout=0)
    sentry_sdk.get_global_scope().set_client(None)
    monkeypatch.setattr(logs._Lines, "listener", None)


def deliver(desk, tracing: extras.Tracing, status: int = 200) -> tuple[Event, str]:
    """Take an event in as the server does; it, and what continues its trace."""
    session = desk.sandbox.session("verified")
    event = Event("evt_traced", "verified", "snapshot", session.id, 1_700_000_000, livemode=False)
    delivery = tracing.delivery(event)
    with desk.inbox.pipeline() as pipe:
        accepted = pipe.accept(event, delivery.parent)
    assert accepted.result() is AcceptResult.NEW
    delivery.answered(status)
    return event, delivery.parent


class TestTraces:
    def test_are_one_from_the_delivery_to_every_attempt_and_a_replay(
        self, desk, spans, provider
    ) -> None:
        @on("verified", retries=1)
        def failing(v: Verification) -> None:
            name = v.session.verified_outputs.first_name
            assert CANARY in name
            with provider.get_tracer("of the author").start_as_current_span("own"):
                pass
            raise RuntimeError(f"no such person: {name}")

        tracing = otel.Tracing(provider)
        event, parent = deliver(desk, tracing)
        assert desk.fields(event)[b"trace"] == parent.encode()
        processor = desk.processor(failing)
        processor.tracing = tracing
        assert desk.settle(processor, event).state == "dead"
        desk.inbox.replay(event.key)
        assert desk.settle(processor, event).state == "dead"

        found = spans.get_finished_spans()
        assert {span.context.trace_id for span in found} == {int(parent.split("-")[1], 16)}
        (delivered,) = named(found, "delivery")
        assert delivered.parent is None
        assert delivered.attributes["http.response.status_code"] == 200
        events, fetches = named(found, "event"), named(found, "fetch")
        assert len(events) == len(fetches) >= 3, "two attempts, and one of the replay"
        assert {span.parent.span_id for span in events} == {delivered.context.span_id}
        ids = {span.context.span_id for span in events}
        runs = named(found, "handler p.failing")
        assert {span.parent.span_id for span in runs} == ids
        assert [span.attributes["handler.attempt"] for span in runs[:2]] == [1, 2]
        assert [span.attributes["handler.status"] for span in runs[:2]] == ["retry", "dead"]
        assert {span.status.status_code for span in runs} == {trace.StatusCode.ERROR}
        own = {span.parent.span_id for span in named(found, "own")}
        assert own == {span.context.span_id for span in runs}, "what handlers trace is below"
        assert CANARY not in "".join(span.to_json() for span in found)

    def test_say_what_is_done_and_which_delivery_was_refused(self, desk, spans, provider) -> None:
        @on("verified")
        def good(v: Verification) -> None:
            """Do nothing."""

        tracing = otel.Tracing(provider)
        event, _ = deliver(desk, tracing, status=503)
        processor = desk.processor(good)
        processor.tracing = tracing
        assert desk.settle(processor, event).state == "done"
        found = spans.get_finished_spans()
        (delivered,), (run,) = named(found, "delivery"), named(found, "handler p.good")
        assert delivered.attributes["http.response.status_code"] == 503
        assert delivered.attributes["stripe.event.id"] == "evt_traced"
        assert run.attributes["handler.status"] == "done"
        assert run.status.status_code is trace.StatusCode.UNSET

    def test_begin_anew_where_no_delivery_was_traced(self, desk, spans, provider) -> None:
        @on("verified")
        def good(v: Verification) -> None:
            """Do nothing."""

        event, parent = deliver(desk, extras.Tracing())
        assert parent == ""
        assert b"trace" not in desk.fields(event)
        processor = desk.processor(good)
        processor.tracing = otel.Tracing(provider)
        desk.settle(processor, event)
        (span,) = named(spans.get_finished_spans(), "event")
        assert span.parent is None

    def test_are_sent_at_the_end(self, provider, monkeypatch) -> None:
        monkeypatch.setattr(otel, "END_SECONDS", 60)
        asked: list[bool] = []
        monkeypatch.setattr(provider, "force_flush", lambda: asked.append(True))
        otel.Tracing(provider).end()
        assert asked == [True]

    def test_end_within_seconds_where_nobody_takes_them(self, provider, monkeypatch) -> None:
        monkeypatch.setattr(otel, "END_SECONDS", 0.1)
        ended = threading.Event()
        monkeypatch.setattr(provider, "force_flush", lambda: ended.wait(120))
        began = time.monotonic()
        otel.Tracing(provider).end()
        assert time.monotonic() - began < 60
        ended.set()


def named(found: tuple[ReadableSpan, ...], name: str) -> list[Any]:
    return sorted((s for s in found if s.name == name), key=lambda s: s.start_time)


class TestReports:
    def test_are_of_a_handler_that_failed_and_of_the_event_that_died_of_it(
        self, desk, envelopes
    ) -> None:
        @on("verified", retries=1)
        def failing(v: Verification) -> None:
            name = v.session.verified_outputs.first_name
            sentry_sdk.set_user({"username": name})
            sentry_sdk.set_tag("name", name)
            sentry_sdk.set_context("person", {"name": name})
            sentry_sdk.add_breadcrumb(message=name)
            sentry_sdk.capture_message(f"hello {name}")
            try:
                int(name)
            except ValueError:
                sentry_sdk.capture_exception()
            raise KeyError(name)

        session = desk.sandbox.session("verified")
        event = desk.accept("verified", session)
        assert desk.settle(desk.processor(failing), event).state == "dead"
        ours = [each for each in envelopes if each["message"] == "handler_failed"]
        assert [each["tags"]["handler"] for each in ours] == ["p.failing"] * 2
        assert [each["tags"]["status"] for each in ours] == ["retry", "dead"]
        assert ours[0]["extra"]["session_id"] == session.id
        (error,) = ours[0]["exception"]["values"]
        assert (error["type"], error["module"]) == ("KeyError", "builtins")
        last = error["stacktrace"]["frames"][-1]
        assert (last["function"], last["filename"]) == ("failing", "test_extras.py")
        assert last["lineno"]
        (dead,) = [each for each in envelopes if each["message"] == "event_settled"]
        assert dead["level"] == "error"
        theirs = [each for each in envelopes if each not in ours and each != dead]
        assert len(theirs) == 4, "the author's message and exception, of each attempt"
        assert "hello [personal]" in {each["message"] for each in theirs}
        for each in theirs:
            assert not {"user", "tags", "contexts", "breadcrumbs", "request"} & each.keys()
        assert CANARY not in json.dumps(envelopes)

    def test_have_nothing_of_what_a_log_leaves_out(self, envelopes) -> None:
        log = logs.get("service.test")
        log.error("odd_thing", subject="user_1", shoe_size=CANARY, hint="a@b.example", count=3)
        (found,) = envelopes
        assert found["message"] == "odd_thing"
        assert found["extra"] == {"hint": "[e-mail]", "count": 3, "dropped": ["shoe_size"]}

    @pytest.mark.parametrize(
        ("method", "error", "count"),
        [
            *(("error", None, 1), ("warning", None, 0), ("warning", KeyError("x"), 1)),
            *(("info", KeyError("x"), 0), ("critical", KeyError("x"), 1)),
        ],
    )
    def test_are_of_errors_and_of_warnings_with_an_exception(
        self, desk, envelopes, method, error, count
    ) -> None:
        getattr(logs.get("service.test"), method)("odd_thing", exc_info=error)
        assert len(envelopes) == count

    def test_cost_no_line_when_they_fail(self, desk, monkeypatch) -> None:
        monkeypatch.setattr(logs._Lines, "listener", lambda *_: 1 / 0)
        logs.get("service.test").error("odd_thing")
        assert len(desk.logged("odd_thing")) == 1

    def test_of_their_own_failures_there_are_none(self, desk, envelopes) -> None:
        logs.get("sentry_sdk.errors").error("not_sent")
        assert envelopes == []

    def test_are_of_other_libraries_too_without_what_they_quote(self, desk, envelopes) -> None:
        logging.getLogger("of.another").error("cannot read %s", CANARY)
        (found,) = envelopes
        assert found["message"] == "cannot read <str>"


@pytest.mark.parametrize(
    ("setting", "module", "extra"),
    [
        ({"sentry_dsn": DSN}, "sentry", "sentry"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "otel", "otel"),
    ],
)
def test_an_extra_that_is_asked_for_and_missing_is_said(
    desk, monkeypatch, setting, module, extra
) -> None:
    monkeypatch.setitem(sys.modules, f"service.{module}", None)
    monkeypatch.delattr(f"service.{module}")
    assert type(extras.start(Settings(**setting))) is extras.Tracing
    (line,) = desk.logged("extra_missing")
    assert f"install the extra {extra} " in line["hint"]

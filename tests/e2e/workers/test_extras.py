"""What real processes send to a collector and to Sentry: one trace, and no personal data."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Takes in whatever is posted, by its path."""

    def __init__(self) -> None:
        bodies: list[tuple[str, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                match self.headers.get("Content-Encoding"):
                    case "gzip":
                        body = gzip.decompress(body)
                    case "deflate":
                        body = zlib.decompress(body)
                bodies.append((self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.bodies = bodies
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def spans(self) -> list[Any]:
        return [
            span
            for path, body in self.bodies
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def reports(self) -> list[dict[str, Any]]:
        envelopes = [body for path, body in self.bodies if path.endswith("/envelope/")]
        return [json.loads(body.splitlines()[2]) for body in envelopes]


@pytest.fixture
def collector(traces) -> Iterator[Collector]:
    collector = Collector()
    traces.watch(lambda: collector.bodies)  # searched for the canary when the test is over
    thread = threading.Thread(target=collector.server.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join(10)
    collector.server.server_close()


def test_one_trace_goes_from_the_delivery_to_the_handlers_and_a_failure_is_reported(
    system, collector, wait_until
) -> None:
    running = system(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
        OTEL_BSP_SCHEDULE_DELAY="200",
        SENTRY_DSN=f"http://public@127.0.0.1:{collector.port}/1",
    )
    session = running.verify(behave="raise")
    running.settled(session)

    def of_the_event() -> list[Any]:
        return [
            span
            for span in collector.spans()
            if any(a.value.string_value == session for a in span.attributes)
            and any(a.value.string_value == "verified" for a in span.attributes)
        ]

    wait_until(lambda: len(of_the_event()) >= 3)
    assert {span.name for span in of_the_event()} == {"delivery", "event"}
    (trace_id,) = {span.trace_id for span in of_the_event()}
    names = [span.name for span in collector.spans() if span.trace_id == trace_id]
    assert names.count("handler effects.second") == 2, "it failed once"
    assert {"fetch", "handler effects.first", "handler effects.third"} <= set(names)

    def failures() -> list[dict[str, Any]]:
        return [r for r in collector.reports() if r["message"] == "handler_failed"]

    wait_until(failures)
    (failure,) = failures()
    assert failure["tags"]["handler"] == "effects.second"
    assert failure["extra"]["session_id"] == session
    (error,) = failure["exception"]["values"]
    assert error["type"] == "ValueError"
    assert error["stacktrace"]["frames"][-1]["function"] == "misbehave"
    assert running.workers[0][0].poll() is None


@pytest.mark.walk
def test_nobody_who_listens_delays_neither_events_nor_the_end(system, free_port) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    running = system(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{nobody}", SENTRY_DSN=f"http://public@{nobody}/1"
    )
    running.settled(running.verify(behave="raise"))
    process, _ = running.workers[0]
    process.terminate()
    assert process.wait(120) == 0

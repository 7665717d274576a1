"""One trace for each event, from its delivery to its handlers, by OpenTelemetry.

Imported only where the extra `otel` is installed and configured (service/extras.py). The SDK reads
its own variables: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

Spans hold ids, kinds, numbers and words of ours: no text of an exception, no header, no body.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from identity_webhooks.event import Event
from service import extras

END_SECONDS = 2.0
"""Seconds for what was not sent yet when a process ends."""

_PARENT = "traceparent"
_propagator = TraceContextTextMapPropagator()


def start() -> Tracing:
    """Begin to make spans, and to send them from a thread."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "identity-webhooks"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)  # for what handlers trace themselves
    return Tracing(provider)


class Tracing(extras.Tracing):
    """Makes the spans of a process. For any thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("identity_webhooks")

    def delivery(self, event: Event) -> Delivery:
        """Begin the trace of a delivery. A `traceparent` of its sender does not count: anybody may
        send one."""
        about = _about(event)
        span = self._tracer.start_span("delivery", Context(), SpanKind.SERVER, attributes=about)
        return Delivery(span)

    def event(self, event: Event, parent: str) -> AbstractContextManager[object]:
        """Trace what this thread does with an event, as a part of the trace of its delivery."""
        context = _propagator.extract({_PARENT: parent}, Context())
        return self._span("event", _about(event), context, SpanKind.CONSUMER)

    def step(self, name: str) -> AbstractContextManager[object]:
        """Trace a step of that."""
        return self._span(name, {})

    @contextmanager
    def handler(self, name: str, attempt: int) -> Iterator[Callable[[str], None]]:
        """Trace the run of a handler; call what it yields with the result of the run."""
        about: dict[str, str | int] = {"handler.name": name, "handler.attempt": attempt}
        with self._span(f"handler {name}", about) as span:

            def ended(status: str) -> None:
                span.set_attribute("handler.status", status)
                if status != "done":
                    span.set_status(StatusCode.ERROR)

            yield ended

    def end(self) -> None:
        """Send what was not sent yet, for two seconds at most."""
        # Left alone the SDK would try for ten seconds and more where nobody answers.
        sending = threading.Thread(target=self._provider.force_flush, name="traces", daemon=True)
        sending.start()
        sending.join(END_SECONDS)

    def _span(
        self,
        name: str,
        about: Mapping[str, str | int],
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> AbstractContextManager[Span]:
        # An exception would be noted with its text.
        return self._tracer.start_as_current_span(
            name,
            context,
            kind,
            attributes=about,
            record_exception=False,
            set_status_on_exception=False,
        )


class Delivery(extras.Delivery):
    """A delivery that is being answered."""

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
        self.parent = carrier.get(_PARENT, "")

    def answered(self, status: int) -> None:
        """End its span: it was answered with this status of HTTP."""
        self._span.set_attribute("http.response.status_code", status)
        self._span.end()


def _about(event: Event) -> dict[str, str | int]:
    about: dict[str, str | int] = {
        "stripe.event.id": event.id,
        "stripe.event.kind": event.kind,
        "stripe.event.form": event.form,
        "stripe.session.id": event.session,
        "stripe.livemode": event.livemode,
    }
    return about | ({"stripe.account": event.account} if event.account else {})

"""Optional exports: traces to OpenTelemetry, failures to Sentry.

Each is off unless its extra is installed and its setting says where to. While it is off, nothing
of it is imported, and nothing is done for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from identity_webhooks.event import Event
from service import logs
from service.settings import Settings

log = logs.get(__name__)


class Delivery:
    """A delivery that is being answered, of which no trace is made.

    Attributes:
        parent: the `traceparent` header (W3C) that continues its trace; stored in the record.
    """

    parent = ""

    def answered(self, status: int) -> None:
        """End its span: it was answered with this status of HTTP."""


_UNTRACED = Delivery()


class Tracing:
    """Makes the spans of a process: here none (service/otel.py makes them). For any thread."""

    def delivery(self, _: Event) -> Delivery:
        """Begin the trace of a delivery."""
        return _UNTRACED

    def event(self, _: Event, parent: str) -> AbstractContextManager[object]:
        """Trace what this thread does with an event, as a part of the trace of its delivery."""
        return nullcontext()

    def step(self, _: str) -> AbstractContextManager[object]:
        """Trace a step of that."""
        return nullcontext()

    def handler(self, _: str, attempt: int) -> AbstractContextManager[Callable[[str], None]]:
        """Trace the run of a handler; call what it yields with the result of the run."""
        return nullcontext(_unheard)

    def end(self) -> None:
        """Send the rest of the spans before the process ends."""


def start(settings: Settings) -> Tracing:
    """Start what the settings ask for. To be called behind every fork, as both start threads."""
    if settings.sentry_dsn:
        try:
            from service import sentry  # noqa: PLC0415
        except ImportError:
            _warn("SENTRY_DSN", "sentry")
        else:
            sentry.start(settings)
    if settings.otel_exporter_otlp_endpoint:
        try:
            from service import otel  # noqa: PLC0415
        except ImportError:
            _warn("OTEL_EXPORTER_OTLP_ENDPOINT", "otel")
        else:
            return otel.start()
    return Tracing()


def _warn(setting: str, extra: str) -> None:
    hint = f"{setting} is set: install the extra {extra} (docs/operations.md), or unset it"
    log.warning("extra_missing", hint=hint)


def _unheard(_: str) -> None:
    pass

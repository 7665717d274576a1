"""Traces and reports cost nothing while nobody asks for them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

from identity_webhooks.event import Event
from service.extras import Tracing

EVENT = Event("evt_1", "verified", "snapshot", "vs_1", 1_700_000_000, livemode=False)
PROGRAM = """
import sys
import service.app, service.server.worker, workers.__main__, workers.jobs, workers.periodic
from service import extras
from service.settings import Settings

assert type(extras.start(Settings())) is extras.Tracing
print(*sys.modules)
"""


def test_no_process_imports_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={}
    )
    imported = set(done.stdout.split())
    assert "redis" in imported
    # For metrics of its own redis-py imports parts of OpenTelemetry that are installed.
    assert not {"opentelemetry.sdk.trace", "opentelemetry.exporter", "sentry_sdk"} & imported


def test_a_span_that_nobody_asked_for_is_nothing() -> None:
    tracing = Tracing()
    delivery = tracing.delivery(EVENT)
    assert delivery is tracing.delivery(EVENT)
    assert delivery.parent == ""
    delivery.answered(200)
    assert isinstance(tracing.event(EVENT, ""), nullcontext)
    assert isinstance(tracing.step("fetch"), nullcontext)
    with tracing.handler("a.b", 1) as ended:
        ended("done")
    tracing.end()

"""Handlers whose effects are lines of the file LEDGER: what a business would have done.

A line: session, kind, handler, idempotency key, version of the plugin, pid, unix time, attempt.
"""

from __future__ import annotations

import os
import time
import zlib

from identity_webhooks import Retry, Verification, on

VERSION = os.environ.get("LEDGER_VERSION", "1")
FLAKY = float(os.environ.get("LEDGER_FLAKY", "0.1"))
"""Share of the changes whose first attempt by `flaky` fails."""
SLOW = float(os.environ.get("LEDGER_SLOW", "0.02"))
"""Seconds that `slow` takes."""

_file = os.open(os.environ["LEDGER"], os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)


def take_effect(v: Verification, handler: str) -> None:
    line = (
        f"{v.event.session} {v.event.kind} {handler} {v.idempotency_key}"
        f" {VERSION} {os.getpid()} {time.time():.3f} {v.attempt}\n"
    )
    # One write to a file opened for appending: whole, or not at all.
    os.write(_file, line.encode())


@on("*", superseded=True)
def steady(v: Verification) -> None:
    take_effect(v, "steady")


@on("*", superseded=True)
def slow(v: Verification) -> None:
    time.sleep(SLOW)
    take_effect(v, "slow")


@on("*", superseded=True)
def flaky(v: Verification) -> None:
    number = zlib.crc32(f"{v.event.session} {v.event.kind}".encode())
    if v.attempt == 1 and number % 1000 < FLAKY * 1000:
        if number % 2:
            raise Retry("not yet", delay=0.1)
        raise ValueError(v.event.session)
    take_effect(v, "flaky")


if VERSION != "1":

    @on("*", superseded=True)
    def added(v: Verification) -> None:
        take_effect(v, "added")

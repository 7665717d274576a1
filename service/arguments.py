"""Argument types of the commands. A malformed id is refused with exit code 2.

Otherwise a mistyped id would be looked up, not found, and reported as nothing to do.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click


class Id(click.ParamType):  # type: ignore[type-arg]  # not to be named in click 8.1
    """The name of one thing, such as `acct_...`."""

    def __init__(self, name: str, pattern: str, example: str) -> None:
        """Take the kind of thing, a pattern for the whole id, and an example."""
        self.name, self.example = name, example
        self._pattern = re.compile(pattern, re.ASCII)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is."""
        if not self._pattern.fullmatch(value):
            self.fail(f"{value!r} is not the name of a {self.name}, such as {self.example}")
        return value


ACCOUNT = Id("connected account", r"acct_\w{1,64}(/acct_\w{1,64}){0,3}", "acct_1NvJ0c")
SESSION = Id("session", r"vs_\w{1,120}", "vs_1Pq2Kd")
REPORT = Id("report", r"vr_\w{1,120}", "vr_1Pq2Kd")
EVENT = Id("event", r"(\w{1,64}-){0,4}evt_\w{1,120}", "evt_1Pq2Kd or acct_1NvJ0c-evt_1Pq2Kd")
EVENT_OR_SESSION = Id(
    "event or session",
    r"(\w{1,64}-){0,4}evt_\w{1,120}|vs_\w{1,120}",
    "evt_1Pq2Kd or vs_1Pq2Kd",
)
REASON = Id("reason", r"\w[\w .'-]{0,60}", "retry")
PERSON = Id("person", r"[\w.-]{1,32}", "ann")
HANDLER = Id("handler", r"[^\s|]+\.[^\s|.]+", "audit.log_event")


class Rate(click.FloatRange):
    """Events a second. `nan` is within every range, and would be no limit."""

    def __init__(self) -> None:
        """Take ten seconds for an event, or less."""
        super().__init__(0.1)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        rate: float = super().convert(value, param, ctx)
        if not math.isfinite(rate):
            self.fail(f"{value!r} is no number of events", param, ctx)
        return rate


class Moment(click.ParamType):  # type: ignore[type-arg]  # as above
    """A moment in UTC: `2026-11-26`, `2026-11-26T04:05`, or so long ago: `90m`, `2h`, `3d`."""

    name = "moment"
    _UNITS = {"m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the moment."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        if found := re.fullmatch(r"(\d{1,4})([mhd])", text, re.ASCII):
            return datetime.now(UTC) - timedelta(**{self._UNITS[found[2]]: int(found[1])})
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no moment, such as 2h, 3d or 2026-11-26T04:05 (UTC)")
        return moment.replace(tzinfo=moment.tzinfo or UTC)


MOMENT, RATE = Moment(), Rate()


def fault_of_span(since: datetime | None, until: datetime | None) -> str:
    """Return why nothing could lie in a span of time; an empty text if something could."""
    if since and since > datetime.now(UTC):
        return "since is still to come (it is UTC): nothing could match"
    if since and until and since >= until:
        return "until is not after since: nothing could match"
    return ""

"""What commands take to name a thing: refused with exit code 2 if it cannot be a name of that kind.

A mistyped id would else be asked for, found nowhere, and look as if there was nothing to do.
"""

from __future__ import annotations

import re

import click


class Id(click.ParamType):  # type: ignore[type-arg]  # not to be named in click 8.1
    """The name of one thing, such as `acct_...`."""

    def __init__(self, name: str, pattern: str, example: str) -> None:
        """Take what it is, the pattern of all of it, and how one looks."""
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
HANDLER = Id("handler", r"[^\s|]+\.[^\s|.]+", "audit.log_event")

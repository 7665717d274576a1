"""An event as people see it: what happened to it, when it runs next, and all of it as data.

For the commands and the console.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from service.inbox import Record


def timeline(record: Record) -> list[tuple[datetime, str, str]]:
    """Return what is known to have happened to an event: moment, key, what."""
    event = record.event
    found = [(record.accepted, f"accepted: {event.kind}, {event.form}")]
    found += [
        (tried.at, f"{tried.handler}: attempt {tried.number} failed: {tried.reason}")
        for tried in record.attempts
    ]
    for name, progress in sorted(record.handlers.items()):
        said = f": {progress.reason}" if progress.reason else ""
        times = f" at attempt {progress.attempts}" if progress.attempts else ""
        found.append((record.moment(progress.ms), f"{name}: {progress.status}{times}{said}"))
    found += [(act.at, f"{act.what} {act.which}".strip() + f", by {act.by}") for act in record.acts]
    if record.settled:
        said = ", ".join(text for text in (record.outcome, record.reason) if text)
        found.append((record.settled, f"{record.state}: {said}" if said else record.state))
    return [(at, record.key, what) for at, what in found]


def next_run(record: Record) -> str:
    """Return when a pending event runs next, in words."""
    if record.state != "pending":
        return ""
    if record.waits_until and not record.is_claimed:
        return in_text(record.waits_until)
    return _word(record)


def _word(record: Record) -> str:
    """Return what a pending event does."""
    if record.is_claimed:
        return "running"
    return "waiting" if record.waits_until else "queued"


def describe(record: Record) -> dict[str, Any]:
    """Return a record as plain data, the form that `--json` promises."""
    event = record.event
    return {
        "key": record.key,
        "id": event.id,
        "kind": event.kind,
        "form": event.form,
        "session": event.session,
        "account": event.account,
        "livemode": event.livemode,
        "created": event.created,
        "state": record.state,
        "outcome": record.outcome,
        "reason": record.reason,
        "accepted_at": record.accepted.isoformat(),
        "settled_ms": record.settled_ms,
        "waits": None if record.state != "pending" else _word(record),
        "next_at": record.waits_until.isoformat() if record.waits_until else None,
        "claims": record.claims,
        "other_form": record.twin or None,
        "handlers": [
            {
                "name": name,
                "status": progress.status,
                "attempts": progress.attempts,
                "ms": progress.ms,
                "reason": progress.reason,
            }
            for name, progress in sorted(record.handlers.items())
        ],
        "failed_attempts": [
            {
                "handler": each.handler,
                "attempt": each.number,
                "at": each.at.isoformat(),
                "reason": each.reason,
            }
            for each in record.attempts
        ],
        "acts": [
            {"at": act.at.isoformat(), "what": act.what, "by": act.by, "handlers": act.which}
            for act in record.acts
        ],
    }


def in_text(moment: datetime, detail: str = "seconds") -> str:
    """Return a moment in UTC as text."""
    return moment.isoformat(sep=" ", timespec=detail).removesuffix("+00:00")

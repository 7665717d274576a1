"""What the inbox holds of an event, as this process sees it: read from what Redis gives. No I/O.

The fields of a record stand in service/inbox/keys.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast, get_args

from identity_webhooks.event import Event, Form, Kind

KEPT = (
    *("kind", "form", "session", "created", "livemode", "account"),
    *("accepted", "token", "took", "outcome", "reason", "twin"),
)
"""What is kept of a done event: a line of these, in this order, and of `<handler>|...` for each
field `h:<handler>`, then `|acts|...` and `|trail|...` if there are any. Each ends with a tab.
`took` is the milliseconds from accepted to settled."""

State = Literal["pending", "done", "dead"]
Status = Literal["done", "skipped", "superseded", "retry", "dead"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Result of one handler for one event.

    Attributes:
        status: `done`, `skipped` (its reason filter did not fit), `superseded`, `retry`, `dead`.
        attempts: runs so far.
        ms: milliseconds from accepted to this result.
        due: for `retry`, when it may run again (milliseconds of Redis TIME).
        reason: a word or a redacted sentence; never a handler's raw text.
        since: for `retry`, when its first attempt failed (milliseconds of Redis TIME); 0 if none
            did, as it only waits.
    """

    status: Status
    attempts: int = 1
    ms: int = 0
    due: int = 0
    reason: str = ""
    since: int = 0

    @property
    def over(self) -> bool:
        """Whether this handler will not run again for this event."""
        return self.status != "retry"

    @classmethod
    def parse(cls, text: str) -> Progress:
        """Read a field `h:<handler>` of a record, from which empty parts at the end may be cut."""
        parts = text.split("|", 5)
        status, attempts, ms, due, reason, since = parts + [""] * (6 - len(parts))
        if status not in get_args(Status):
            raise ValueError(f"unknown status {status!r}")
        times = int(due or 0), reason, int(since or 0)
        return cls(cast("Status", status), int(attempts), int(ms), *times)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of a handler that failed, and that another one followed."""

    handler: str
    number: int
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Act:
    """An action of a person on an event.

    Attributes:
        at: when.
        what: `replay`, `retry`, `discard`, or `as-done`.
        by: who.
        which: of a replay, which handlers: `dead`, `all`, or one by name.
    """

    at: datetime
    what: str
    by: str
    which: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """An event as the inbox holds it, for people to look at.

    Attributes:
        key: its key.
        event: the event.
        state: where it stands.
        accepted: when it was accepted.
        settled_ms: milliseconds from then until it was settled; None while it is pending.
        outcome: the outcome that its handlers got.
        reason: why it waits, why it died, or the code the handlers were told.
        handlers: how each handler fared.
        claims: how often it was claimed.
        claimed_until: until when a worker has it, or had it when it died; None if none has it.
        waits_until: before when it does not run; None where it may run now.
        twin: the id of the same change in its other form.
        attempts: failed attempts before those in `handlers`: the last few.
        acts: actions of people on it: the last few.
    """

    key: str
    event: Event
    state: State
    accepted: datetime
    settled_ms: int | None
    outcome: str
    reason: str
    handlers: Mapping[str, Progress]
    claims: int = 0
    claimed_until: datetime | None = None
    waits_until: datetime | None = None
    twin: str = ""
    attempts: tuple[Attempt, ...] = ()
    acts: tuple[Act, ...] = ()

    @property
    def settled(self) -> datetime | None:
        """When it was settled."""
        return None if self.settled_ms is None else self.moment(self.settled_ms)

    def moment(self, ms: int) -> datetime:
        """Return the moment so many milliseconds after it was accepted."""
        return self.accepted + timedelta(milliseconds=ms)

    @property
    def is_claimed(self) -> bool:
        """Whether a worker has it now, if the clock of this machine is that of Redis."""
        return self.claimed_until is not None and self.claimed_until > datetime.now(UTC)

    @property
    def is_quarantined(self) -> bool:
        """Whether it is dead because its workers died: to run it may kill another one."""
        return self.state == "dead" and self.reason.startswith("quarantined")

    @classmethod
    def read(cls, key: str, fields: Mapping[str, str]) -> Record:
        """Build it from the fields of the hash."""
        accepted = int(fields["accepted"])
        trail = fields.get("trail", "").split(";") if fields.get("trail") else []
        acts = fields.get("acts", "").split(";") if fields.get("acts") else []
        return cls(
            key=key,
            event=event_of(key, fields),
            state=cast("State", fields["state"]),
            accepted=datetime.fromtimestamp(accepted / 1000, UTC),
            settled_ms=int(fields["settled"]) - accepted if "settled" in fields else None,
            outcome=fields.get("outcome", ""),
            reason=fields.get("reason", ""),
            handlers=progress_of(fields),
            claims=int(fields.get("token") or 0),
            claimed_until=_moment(fields.get("lease")),
            waits_until=_moment(fields.get("not_before")),
            twin=fields.get("twin", ""),
            attempts=tuple(_attempt(entry, accepted) for entry in trail),
            acts=tuple(_act(entry) for entry in acts),
        )


def _moment(ms: str | int | None) -> datetime | None:
    return datetime.fromtimestamp(int(ms) / 1000, UTC) if ms else None


def _attempt(entry: str, accepted: int) -> Attempt:
    handler, number, ms, reason = entry.split("|", 3)
    at = datetime.fromtimestamp((accepted + int(ms)) / 1000, UTC)
    return Attempt(handler, int(number), at, reason)


def _act(entry: str) -> Act:
    ms, what, by, which = entry.split(" ", 3)
    return Act(datetime.fromtimestamp(int(ms) / 1000, UTC), what, by, which)


@dataclass(slots=True)
class Claim:
    """An event held by this process until its lease ends.

    Attributes:
        event: the event.
        token: the fencing token; the scripts refuse all but the last one given out.
        progress: how each handler fared so far.
        faults: releases for a fault of ours since anything was done.
        lapses: claims that ended with their holder's death since anything was done.
        suspect: whether any ever did.
        now: Redis TIME at the last answer, milliseconds.
        since: when the event was accepted or last re-opened, milliseconds.
        twin: the key of the same change in its other form, once that is known; empty if it has
            none.
        reason: why it was released the last time; empty if it was not.
        claimed_age: seconds from accepted or re-opened to this claim.
        replayed_after: seconds from accepted to re-opened; 0.0 if it was not.
        lost: set when a renewal was refused: start nothing more.
        unwritten: the last handler's result, written when the claim is finished or released.
        trace: the `traceparent` of its delivery; empty if there is none.
    """

    event: Event
    token: str
    progress: dict[str, Progress]
    faults: int
    lapses: int
    now: int
    since: int
    twin: str | None = None
    reason: str = ""
    claimed_age: float = 0.0
    replayed_after: float = 0.0
    lost: bool = False
    unwritten: tuple[str | int, ...] = ()
    suspect: bool = False
    trace: str = ""

    @property
    def identity(self) -> str:
        """The key of the change, the same whichever form it came in: that of its snapshot event."""
        return self.twin if self.twin and self.event.form == "thin" else self.event.key

    @property
    def age(self) -> float:
        """Seconds since the event was accepted or last re-opened."""
        return (self.now - self.since) / 1000

    def so_far(self, handler: str) -> Progress:
        """Return how this handler fared; without an attempt if it had none."""
        return self.progress.get(handler) or Progress("retry", 0)

    def is_due(self, handler: str) -> bool:
        """Whether this handler has still to run, and may run now."""
        progress = self.progress.get(handler)
        return progress is None or (not progress.over and progress.due <= self.now)


@dataclass(frozen=True, slots=True, eq=False)
class Quarantined:
    """An event that died because its workers died `MAX_LAPSES` times in a row.

    Attributes:
        event: the event.
        progress: how each handler had fared.
        ran: the handler that ran when the last of them died; empty if unknown.
    """

    event: Event
    progress: Mapping[str, Progress]
    ran: str = ""


def event_of(key: str, fields: Mapping[str, str]) -> Event:
    """Read the event itself, whose id ends the key."""
    return Event(
        id=key.rpartition("-")[2],
        kind=cast("Kind", fields["kind"]),
        form=cast("Form", fields["form"]),
        session=fields["session"],
        created=int(fields["created"]),
        livemode=fields["livemode"] == "1",
        account=fields.get("account"),
    )


def progress_of(fields: Mapping[str, str]) -> dict[str, Progress]:
    """Read how each handler fared."""
    return {
        name.removeprefix("h:"): Progress.parse(text)
        for name, text in fields.items()
        if name.startswith("h:")
    }


def fields_of(answer: Any) -> dict[str, str]:
    """Read a hash as the client gives it: flat from a script, a dict from HGETALL."""
    if not isinstance(answer, dict):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    return {text_of(name): text_of(value) for name, value in answer.items()}


def kept_fields(line: str) -> dict[str, str]:
    """Read the line that is kept of a done event (made by `line_of` in lua/lib.lua)."""
    parts = line.split("\t")[:-1]
    fields = {name: part for name, part in zip(KEPT, parts, strict=False) if part}
    for part in parts[len(KEPT) :]:
        handler, _, text = part.partition("|")
        if handler:
            fields[f"h:{handler}"] = text
        else:  # what is no handler's
            name, _, text = text.partition("|")
            fields[name] = text
    settled = int(fields["accepted"]) + int(fields["took"])
    return fields | {"state": "done", "settled": str(settled)}


def text_of(value: Any) -> str:
    """Return an answer of Redis as text."""
    # A byte that is no text costs its character, not the event, nor others of the same reply.
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

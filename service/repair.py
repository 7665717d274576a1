"""Actions of people on events: many at a time, at a rate, each recorded with a name.

Used by the commands; nothing here prints.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal, cast

import redis

from service import logs
from service.inbox import Inbox, Pipeline, Reply, keys
from service.inbox.record import Record, text_of

BATCH = 100
"""Events that are changed in one round trip."""

Action = Literal["replay", "retry-now", "discard", "stop", "pause", "resume", "as-done"]
Answered = tuple[str, str]
"""The key of an event, and the result of the action on it."""

SUCCESS: dict[Action, frozenset[str]] = {
    "replay": frozenset({"replayed"}),
    "retry-now": frozenset({"retried"}),
    "discard": frozenset({"discarded", "done"}),
}
"""The results of an action that mean success."""

_CUT_SHORT = frozenset({"discarded", "ended", "as_done"})
"""Outcomes of events that ended before all their handlers had their turn."""
_NOT_OF_A_NAME = re.compile(r"[^A-Za-z0-9._-]")

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One action of a person, as `iw:audit` keeps it.

    Attributes:
        at: when: UTC, ISO 8601.
        by: who.
        action: what.
        matched: how many events it was asked for; of a stop, how many were left as they are.
        on: which: the filter, the first few keys, or the account; names and values.
    """

    at: str
    by: str
    action: Action
    matched: int
    on: dict[str, Any]


def handlers_to_replay(record: Record, asked: str) -> str:
    """Return which handlers of an event a replay runs again, as `Pipeline.replay` takes it.

    What died with its worker may have no result of the handler that ran.
    """
    by_name = asked not in {"dead", "all"}
    return "dead" if by_name and record.is_quarantined and asked not in record.handlers else asked


def would_replay(record: Record, which: str) -> bool:
    """Return whether anything of an event that no worker has would run again, as in lua/lib.lua."""
    cut_short = record.state == "dead" or record.outcome in _CUT_SHORT
    if (which == "dead" and cut_short) or (which == "all" and record.state != "pending"):
        return True
    return any(
        which in {"all", name} or (which == "dead" and each.status in {"dead", "retry"})
        for name, each in record.handlers.items()
    )


def operator() -> str:
    """Return the name of the user who runs this process, or its number where it has none."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # KeyError: Python 3.12 and older
        name = f"uid-{os.getuid()}"
    return _NOT_OF_A_NAME.sub("_", name)[:32]


class Repair:
    """Acts for one person. Every method may raise `redis.RedisError`."""

    def __init__(self, client: redis.Redis, inbox: Inbox, by: str) -> None:
        self._redis, self._inbox, self._by = client, inbox, by

    def run(
        self,
        action: Literal["replay", "retry-now", "discard"],
        names: Mapping[str, str],
        on: dict[str, Any],
        *,
        rate: float = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Answered]:
        """Do an action on events, at most `rate` a second if that is not 0; return each result.

        Args:
            action: what.
            names: the keys of the events; of a replay with which handlers run again: `dead`,
                `all`, or one by name.
            on: how they were chosen, for the audit.
            rate: events a second; 0 for no limit.
            progress: called with how many are done.
        """
        self.note(action, len(names), on)
        answers: list[Answered] = []
        began = time.monotonic()
        for batch in _batches(names, 1 if rate else BATCH):
            if rate:
                time.sleep(max(0.0, began + len(answers) / rate - time.monotonic()))
            answers += self.act(action, {name: names[name] for name in batch})
            progress(len(answers))
        counts = Counter(answer for _, answer in answers)
        log.info("events_repaired", action=action, by=self._by, counts=dict(counts))
        return answers

    def act(
        self,
        action: Literal["replay", "retry-now", "discard"],
        names: Mapping[str, str],
    ) -> list[Answered]:
        """Do an action that was noted on a few events, in one round trip."""
        with self._inbox.pipeline() as pipe:
            replies = [(key, self._ask(pipe, action, key, which)) for key, which in names.items()]
        return [(name, reply.result()) for name, reply in replies]

    def _ask(self, pipe: Pipeline, action: str, name: str, handlers: str) -> Reply[Any]:
        if action == "replay":
            return pipe.replay(name, handlers, self._by)
        return pipe.retry(name, self._by) if action == "retry-now" else pipe.discard(name, self._by)

    def pause(self, seconds: float, account: str = "") -> None:
        """Have no worker claim an event, or none of this account."""
        self.note("pause", 0, {"seconds": seconds, "account": account or None})
        self._inbox.pause(seconds, f"by {self._by}", account)

    def resume(self, account: str = "") -> bool:
        """End a pause; False where there is none, or where it keeps leases for a moment."""
        self.note("resume", 0, {"account": account or None})
        paused = self._inbox.paused(account)
        # Whoever ends this one has events run twice: see lua/sweep.lua.
        return (paused is None or paused[1] != "clock set") and self._inbox.resume(account)

    def note(self, action: Action, matched: int, on: dict[str, Any]) -> None:
        """Write down what is about to be done, and log it."""
        on = {name: value for name, value in on.items() if value not in {None, ""}}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(at, self._by, action, matched, on)
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.rpush(keys.AUDIT, json.dumps(asdict(entry), separators=(",", ":")))
                pipe.ltrim(keys.AUDIT, -keys.MAX_AUDIT, -1)
                pipe.execute()
        except redis.OutOfMemoryError:  # to discard events makes room
            log.warning("audit_not_kept", hint="Redis is full: this log line is all there is of it")
        log.info(
            "person_acted",
            action=action,
            by=self._by,
            count=matched,
            handler=on.get("handler"),
            reason=on.get("reason"),
            state=on.get("state"),
            session_id=on.get("session"),
            account=on.get("account"),
        )


def audit(client: redis.Redis, limit: int) -> list[Entry]:
    """Return what people had done, the newest first. May raise `redis.RedisError`."""
    lines = cast("list[bytes]", client.lrange(keys.AUDIT, -limit, -1))
    return [Entry(**json.loads(text_of(line))) for line in reversed(lines)]


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, size)):
        yield batch

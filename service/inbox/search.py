"""Finds records by what is known of them: a filter, and pages of what it matches.

Nothing here goes through all keys of Redis, but `complete`, once after an upgrade. What is looked
through is the shortest list that holds all that may match: the events of a session, those that died
of a cause, those that wait, or those that were accepted in the hours in question.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast

import redis

from service.inbox import keys
from service.inbox.record import Record, State, fields_of, kept_fields, text_of

if TYPE_CHECKING:
    from service.inbox.pipeline import Pipeline

CHUNK = 200
"""Records that are read in one round trip."""

KEYS = 5_000
"""Keys of events that are read in one round trip."""

_CAUSE = re.compile(r"(failed|stripe): ([A-Za-z0-9_.]+)")
_AFTER_CAUSE = re.compile(r"[:(|]")
_PLACE_BY_SCORE = re.compile(r"\d{1,16}:[\w-]+", re.ASCII)
_PLACE_IN_HOUR = re.compile(r"\d{1,9}\.\d{1,9}|~\d{1,16}:[\w-]+", re.ASCII)
_RAN = re.compile(r"while (\S+) ran$")


def cause_of(reason: str) -> str:
    """Return the first words of a reason, which many events share: `failed KeyError`, `retry`.

    The same as in lua/lib.lua, which lists the dead by it.
    """
    if found := _CAUSE.match(reason):
        return f"{found[1]} {found[2]}"
    first = _AFTER_CAUSE.split(reason, maxsplit=1)[0].encode()[:40]
    return re.sub(rb"[\x80-\xff]", b"?", first).decode().rstrip(" \t\n\r\f\v")


def deaths_of(record: Record) -> set[tuple[str, str]]:
    """Return what a dead event died of: handler and cause of each that is dead, or its own.

    No handler (an empty name) where none was to blame.
    """
    if record.is_quarantined:
        ran = _RAN.search(record.reason)
        return {(ran[1] if ran else "", "quarantined")}
    dead = {
        (name, cause_of(progress.reason))
        for name, progress in record.handlers.items()
        if progress.status == "dead"
    }
    return dead or {("", cause_of(record.reason))}


def deaths_in(counts: Any) -> dict[tuple[str, str], int]:
    """Read `iw:deaths`: how many events are dead by handler and cause."""
    fields = fields_of(counts)
    pairs = {name: name.partition("|") for name in sorted(fields)}
    return {(handler, cause): int(fields[n]) for n, (handler, _, cause) in pairs.items()}


@dataclass(frozen=True, slots=True)
class Filter:
    """What a record must be like. What is not given, it may be like in any way.

    Attributes:
        state: where it stands.
        session: whose it is: `vs_...`.
        account: of which connected account: `acct_...`.
        handler: a handler that died in it, if it is dead; else one that it has a result of.
        reason: the first words of why it died or waits, or the code that handlers were told.
        since: accepted at this moment or later.
        until: accepted before this moment.
    """

    state: State | Literal["all"] = "all"
    session: str | None = None
    account: str | None = None
    handler: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether it asks for more than a state."""
        return self != Filter(state=self.state)

    def matches(self, record: Record) -> bool:
        """Whether a record is like that."""
        event = record.event
        return (
            self.state in {"all", record.state}
            and self.session in {None, event.session}
            and self.account in {None, event.account}
            and (self.since is None or record.accepted >= self.since)
            and (self.until is None or record.accepted < self.until)
            and self._matches_end(record)
        )

    def _matches_end(self, record: Record) -> bool:
        if self.handler is None and self.reason is None:
            return True
        if record.state == "dead":
            return any(self.matches_death(*death) for death in deaths_of(record))
        if self.handler is None:
            found = [record.reason, *(each.reason for each in record.handlers.values())]
        elif self.handler in record.handlers:
            found = [record.reason, record.handlers[self.handler].reason]
        else:
            return False
        return any(self._matches_cause(cause_of(reason)) for reason in found)

    def matches_death(self, handler: str, cause: str) -> bool:
        """Whether it is one that the filter asks for."""
        return self.handler in {None, handler} and self._matches_cause(cause)

    def _matches_cause(self, cause: str) -> bool:
        return self.reason is None or f"{cause} ".startswith(f"{self.reason} ")


@dataclass(frozen=True, slots=True)
class Page:
    """Some of what a filter matches.

    Attributes:
        records: the records, in order.
        following: where the next page begins; None where there is none.
        looked_at: how many records were read for it.
    """

    records: list[Record]
    following: str | None
    looked_at: int


class Search:
    """Finds records. Every method may raise `redis.RedisError`."""

    def __init__(
        self,
        client: redis.Redis,
        pipeline: Callable[[], AbstractContextManager[Pipeline]],
        keep: int,
    ) -> None:
        """Take, too, how changes of the inbox are sent, and for how long what is done is kept."""
        self._redis, self._pipeline, self._keep = client, pipeline, keep

    def page(
        self, wanted: Filter, limit: int = 100, begin: str | None = None, look: int | None = None
    ) -> Page:
        """Return up to `limit` records: pending by what is due next, dead by time of death, others
        by when they were accepted, and these newest first.

        Args:
            wanted: what they must be like.
            limit: how many at most.
            begin: `following` of the page before.
            look: how many records to read at most, about; by default as many as it takes.
        """
        found: dict[str, Record] = {}
        looked = 0
        places = self._places(wanted, begin)
        if wanted.account:  # it stands in the key
            start = f"{wanted.account.replace('/', '-')}-"
            places = (each for each in places if each[1].startswith(start))
        # In the line of a done event a handler with a result stands like this.
        mark = f"\t{wanted.handler}|".encode() if wanted.handler else b""
        while chunk := list(islice(places, CHUNK)):
            records = self.read([key for _, key in chunk], mark)
            for (place, key), record in zip(chunk, records, strict=True):
                if record and self._stands_at(record, place) and wanted.matches(record):
                    found[key] = record
                    if len(found) == limit:
                        return Page(list(found.values()), place, looked + len(chunk))
            looked += len(chunk)
            if look is not None and looked >= look:
                return Page(list(found.values()), chunk[-1][0], looked)
        return Page(list(found.values()), None, looked)

    def all(self, wanted: Filter) -> Iterator[Record]:
        """Yield every record that is like that, in the order of `page`."""
        begin = None
        while True:
            page = self.page(wanted, CHUNK, begin)
            yield from page.records
            if (begin := page.following) is None:
                return

    def read(self, names: Sequence[str], mark: bytes = b"") -> list[Record | None]:
        """Return the records that have these keys; None for what has none, or is another's twin.

        None, too, for a done event whose line is without `mark`: to read it would take ten times
        as long (measured).
        """
        if not names:
            return []
        lines = cast("list[bytes | None]", self._redis.mget([keys.DONE + name for name in names]))
        others = [name for name, line in zip(names, lines, strict=True) if line is None]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in others:
                pipe.hgetall(keys.RECORD + name)
            hashes = dict(zip(others, pipe.execute(), strict=True))
        return [
            None
            if line and mark not in line
            else _record(name, kept_fields(text_of(line)) if line else fields_of(hashes[name]))
            for name, line in zip(names, lines, strict=True)
        ]

    def deaths(self) -> dict[tuple[str, str], int]:
        """Return how many events are dead by handler and cause.

        An event of which several handlers died counts for each.
        """
        return deaths_in(self._redis.hgetall(keys.DEATHS))

    # --- where to look --------------------------------------------------------------------------

    def _places(self, wanted: Filter, begin: str | None) -> Iterator[tuple[str, str]]:
        """Yield the keys of all that may match, each with its place in the list it is from."""
        if wanted.session:
            yield from _after(begin, self._of_session(wanted.session))
        elif wanted.state == "dead":
            names = [keys.DEAD]
            if wanted.handler or wanted.reason:
                names = [
                    f"{keys.DEAD}:{handler}|{cause}"
                    for handler, cause in self.deaths()
                    if wanted.matches_death(handler, cause)
                ]
            yield from self._sorted(names, begin, newest_first=True)
        elif wanted.state == "pending":
            yield from self._sorted([keys.DUE], begin, newest_first=False)
        else:
            yield from self._logged(wanted, begin)

    def _of_session(self, session: str) -> list[str]:
        """Return the keys of events that may be of this session, newest first."""
        hours = self._hours()
        months = sorted({hour // keys.HOURS_OF for hour in hours}, reverse=True)
        with self._redis.pipeline(transaction=False) as pipe:
            for month in months:
                pipe.lrange(f"{keys.OF}{month}:{session[-2:]}", 0, -1)
            pipe.lrange(keys.DEAD_OF + session[-2:], 0, -1)
            *lists, dead = pipe.execute()
        mark = session[-5:-2] + " "
        found = [
            text.removeprefix(mark)
            for each in lists
            for text in map(text_of, reversed(each))
            if text.startswith(mark)
        ]
        return list(dict.fromkeys([*found, *map(text_of, reversed(dead))]))

    def _sorted(
        self, names: list[str], begin: str | None, *, newest_first: bool
    ) -> Iterator[tuple[str, str]]:
        """Yield what stands in sorted sets behind a place, `<score>:<key>`, in order."""
        sets = [self._sorted_set(name, begin, newest_first=newest_first) for name in names]
        last = None
        for score, key in heapq.merge(*sets, reverse=newest_first):
            if (score, key) != last:
                yield f"{score}:{key}", key
            last = score, key

    def _sorted_set(
        self, name: str, begin: str | None, *, newest_first: bool
    ) -> Iterator[tuple[int, str]]:
        behind: tuple[int, str] | None = None
        if begin:
            score, _, key = begin.partition(":")
            behind = int(score), key
        while True:
            start: str | int = behind[0] if behind else ("+inf" if newest_first else "-inf")
            skipped = 0
            while True:
                chunk = self._redis.zrange(
                    name,
                    cast("int", start),
                    cast("int", "-inf" if newest_first else "+inf"),
                    desc=newest_first,
                    byscore=True,
                    withscores=True,
                    offset=skipped,
                    num=CHUNK,
                )
                found = [(int(s), text_of(k)) for k, s in cast("list[tuple[Any, float]]", chunk)]
                new = [
                    each
                    for each in found
                    if behind is None or (each < behind if newest_first else each > behind)
                ]
                if new or not found:
                    break
                skipped += len(found)
            if not new:
                return
            yield from new
            behind = new[-1]

    def _logged(self, wanted: Filter, begin: str | None) -> Iterator[tuple[str, str]]:
        """Yield events by when they were accepted, newest first, at `<hour>.<place in it>`.

        Those that have been dead for longer than they are listed come last, at `~<score>:<key>`.
        """
        if not begin or not begin.startswith("~"):
            first = int(wanted.since.timestamp()) // keys.HOUR if wanted.since else 0
            last = int(wanted.until.timestamp()) // keys.HOUR if wanted.until else None
            behind: dict[int, int] = {}
            if begin:
                last, place = map(int, begin.split("."))
                behind[last] = place
            for hour in reversed(self._hours()):
                if first <= hour and (last is None or hour <= last):
                    yield from self._of_hour(hour, behind.get(hour))
            begin = None
        if wanted.state == "all":
            seconds, _ = self._redis.time()
            oldest = f"{(int(seconds) - self._keep) * 1000}:"
            dead = self._sorted([keys.DEAD], begin[1:] if begin else oldest, newest_first=True)
            yield from ((f"~{place}", key) for place, key in dead)

    def _of_hour(self, hour: int, behind: int | None) -> Iterator[tuple[str, str]]:
        """Yield the events of an hour from the last, or from behind a place, to the first."""
        name = f"{keys.LOG}{hour}"
        end = int(self._redis.llen(name)) if behind is None else behind
        while end > 0:
            begin = max(0, end - KEYS)
            chunk = cast("list[bytes]", self._redis.lrange(name, begin, end - 1))
            for place in range(begin + len(chunk) - 1, begin - 1, -1):
                yield f"{hour}.{place}", text_of(chunk[place - begin])
            end = begin

    def _hours(self) -> list[int]:
        return [int(text_of(h)) for h in cast("list[bytes]", self._redis.zrange(keys.HOURS, 0, -1))]

    def _stands_at(self, record: Record, place: str) -> bool:
        """Whether this is the place where a record is to be found, and not one that it had."""
        hour = int(record.accepted.timestamp() * 1000) // (keys.HOUR * 1000)
        if place.startswith("~"):
            return self._redis.lpos(f"{keys.LOG}{hour}", record.key) is None
        return ":" in place or place.startswith(f"{hour}.")

    # --- what was taken in before there were lists ------------------------------------------------

    def is_complete(self) -> bool:
        """Whether every event is listed; if not, `complete` has to be called."""
        value = self._redis.get(keys.LISTED)
        return value is not None and text_of(value) == "all"

    def complete(self, progress: Callable[[int], None] = lambda _: None) -> int:
        """List what an older release took in: once, and again an hour after that had found some.

        For so long two releases may run side by side (a rolling deploy). Goes through all keys;
        where every event is listed it asks for one. Returns how many events were in no list.
        """
        value = text_of(self._redis.get(keys.LISTED) or "")
        now = int(self._redis.time()[0])
        if value == "all" or (value and now < int(value) + keys.HOUR):
            return 0
        missing = seen = 0
        for prefix in (keys.RECORD, keys.DONE):
            found = self._redis.scan_iter(match=f"{prefix}*", count=1000)
            while chunk := [text_of(k).removeprefix(prefix) for k in islice(found, CHUNK)]:
                with self._pipeline() as pipe:
                    listed = pipe.list_events(chunk)
                missing += listed.result()
                seen += len(chunk)
                progress(seen)
        self._redis.set(keys.LISTED, now if missing and not value else "all")
        return missing


def is_place(begin: str, wanted: Filter) -> bool:
    """Whether a page of what is `wanted` may begin there: no other may be given to `page`."""
    if wanted.session:
        return begin.startswith(":")
    if wanted.state in {"dead", "pending"}:
        return _PLACE_BY_SCORE.fullmatch(begin) is not None
    return _PLACE_IN_HOUR.fullmatch(begin) is not None


def _after(begin: str | None, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield keys that are all at hand, each with its place `:<key>`, behind one of them."""
    first = names.index(begin[1:]) + 1 if begin and begin[1:] in names else 0
    return ((f":{name}", name) for name in names[first:])


def _record(name: str, fields: Mapping[str, str]) -> Record | None:
    return Record.read(name, fields) if fields and fields["state"] != "twin" else None

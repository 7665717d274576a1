"""Ask Stripe what was missed, and take it in as if it had just been delivered.

What Redis loses (a power cut, a failover) and what was never delivered (an outage longer than
Stripe retries) is still in Stripe's list of events for 30 days. Every event found goes through the
same `Inbox.accept` as a delivery, so asking again changes nothing, and any number of processes may
ask at once.

Beyond 30 days the events are gone but the sessions are not: `old_sessions` looks for those that no
handler has heard the end of.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import redis
import stripe

from identity_webhooks.event import Event
from identity_webhooks.verification import Outcome
from service import logs
from service.event import kind_of
from service.inbox import AcceptResult, Inbox
from service.settings import Settings
from workers.stripe_api import StripeApi, StripeFailure
from workers.verification import event_kind
from workers.watch import Stop

PERIOD = 300.0
"""Seconds between two passes: within so long, what Redis lost is back."""

OVERLAP = 600
"""Seconds a pass reaches back before the last one: Stripe's list lags behind [secondary]."""

WIDE = 3 * 86_400
"""Seconds the daily pass, and the first one on an empty Redis, reaches back: as long as Stripe
itself retries deliveries in live mode (https://docs.stripe.com/webhooks#behaviors)."""

HORIZON = 30 * 86_400
"""Seconds for which Stripe lists events (https://docs.stripe.com/api/events)."""

STUCK = 86_400
"""Seconds in `processing` after which a session is reported; most checks take under a minute
(https://docs.stripe.com/identity/how-sessions-work)."""

log = logs.get(__name__)


class InboxFull(Exception):
    """The inbox takes no more; the pass has to be repeated."""


@dataclass
class Pass:
    """What a pass found.

    Attributes:
        seen: events and sessions looked at.
        counts: by answer: `new` was missed; `pending`, `done`, `dead`, `reopened` were known;
            `other_mode` is none of ours.
        missed: keys of what was missed.
        stuck: sessions that have been in `processing` for more than a day.
    """

    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


class Reconciler:
    """Compares Stripe with the inbox, for one account."""

    def __init__(
        self, api: StripeApi, inbox: Inbox, *, livemode: bool, account: str | None = None
    ) -> None:
        self._api, self._inbox, self._livemode, self._account = api, inbox, livemode, account

    @classmethod
    def from_settings(
        cls, settings: Settings, inbox: Inbox, account: str | None = None
    ) -> Reconciler:
        """Build it for the account of `STRIPE_API_KEY`, or for one connected to it."""
        api = StripeApi.from_settings(settings)
        return cls(api, inbox, livemode=bool(settings.livemode), account=account)

    def run(
        self,
        since: int,
        *,
        dry_run: bool = False,
        progress: Callable[[Pass], None] = lambda _: None,
    ) -> Pass:
        """Take in everything made at or after `since` (unix seconds) that the inbox lacks.

        Raises:
            StripeFailure: Stripe did not answer; what was found so far is in the inbox.
            InboxFull: the same, for lack of room.
            redis.RedisError: the same, for Redis.
        """
        found = Pass()
        for event in self._events(since):
            found.seen += 1
            answer = self._take_in(event, dry_run)
            found.counts[answer] += 1
            if answer == AcceptResult.NEW:
                found.missed.append(event.key)
            progress(found)
        for session in self._sessions(status="processing"):
            if session.created < time.time() - STUCK:
                found.stuck.append(session.id)
        return found

    def _take_in(self, event: Event, dry_run: bool) -> str:
        if event.livemode != self._livemode:
            return "other_mode"
        if dry_run:
            known = self._inbox.find(event.key)
            return known.state if known else AcceptResult.NEW
        answer = self._inbox.accept(event)
        if answer is AcceptResult.FULL:
            raise InboxFull
        return answer

    def _events(self, since: int) -> Iterator[Event]:
        for event in self._api.events_since(since, account=self._account):
            kind = kind_of(event.type)
            if kind is not None:
                yield Event(
                    id=event.id,
                    kind=kind,
                    form="snapshot",
                    session=str(event.data.object["id"]),
                    created=event.created,
                    livemode=event.livemode,
                    account=self._account,
                )
        if since < time.time() - HORIZON:
            yield from self._old_sessions(since)

    def _old_sessions(self, since: int) -> Iterator[Event]:
        """Yield an event of our own for each old session whose end no handler has heard."""
        for session in self._sessions(created_since=since):
            if session.created > time.time() - HORIZON:
                continue
            kind = event_kind(Outcome.of(session).kind)
            made_up = Event(
                # The same each time, so that asking again finds it.
                id=f"evt_reconciled_{session.id}_{kind}",
                kind=kind,
                form="snapshot",
                session=session.id,
                created=session.created,
                livemode=session.livemode,
                account=self._account,
            )
            if kind not in {"created", "processing"} and self._inbox.last_kind(made_up) != kind:
                yield made_up

    def _sessions(
        self, *, status: str | None = None, created_since: int | None = None
    ) -> Iterator[stripe.identity.VerificationSession]:
        return self._api.sessions_since(created_since, status=status, account=self._account)


def reconcile_for_ever(reconciler: Reconciler, inbox: Inbox, stop: Stop) -> None:
    """Make a pass every `PERIOD`, whichever process comes first; return when asked to stop.

    A pass starts at the watermark of the last whole one, less the overlap; once a day, and when
    there is no watermark (an empty Redis), it reaches back three days.
    """
    while not stop.requested:
        time.sleep(1)
        try:
            if inbox.try_acquire("reconcile", PERIOD):
                reconcile_once(reconciler, inbox)
        except StripeFailure as failure:
            log.warning("reconcile_failed", reason=str(failure), request_id=failure.request_id)
        except (redis.RedisError, InboxFull):
            log.exception("reconcile_failed")


def reconcile_once(reconciler: Reconciler, inbox: Inbox) -> Pass:
    """Make the pass that is due now, and move the watermark when it is through."""
    started = inbox.now()
    wide = inbox.try_acquire("reconcile-wide", 86_400)
    watermark = inbox.watermark()
    since = started - WIDE if wide or watermark is None else watermark - OVERLAP
    found = reconciler.run(since)
    inbox.move_watermark(started)
    report = log.warning if found.missed or found.stuck else log.info
    report("reconciled", count=found.seen, counts=dict(found.counts), stuck=len(found.stuck))
    return found


def as_json(found: Pass) -> dict[str, object]:
    """Return a pass as plain data, the form that `--json` promises."""
    return dataclasses.asdict(found) | {"counts": dict(found.counts)}

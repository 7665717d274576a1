"""Reconciliation: compare Stripe's list of events with the inbox, and accept what is missing.

What Redis loses (a power cut, a failover) and what was never delivered (an outage longer than
Stripe retries) is still in Stripe's list of events for 30 days. Every event found goes through the
same `Inbox.accept` as a delivery, so asking again changes nothing, and any number of processes may
ask at once. Connected accounts are asked for, too: those that events came from, and on a platform
(STRIPE_CONNECTED_ACCOUNTS) all that Stripe lists. Each has a watermark of its own.

Beyond 30 days the events are gone but the sessions are not: `_old_sessions` looks for those that no
handler has heard the end of.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import stripe

from identity_webhooks.event import Event, Kind
from identity_webhooks.verification import Outcome, is_redacted
from service import logs
from service.event import kind_of
from service.inbox import AcceptResult, Inbox
from service.inbox.keys import KEEP
from service.metrics import Metrics
from service.settings import Settings
from service.survey import Reconciled
from workers.failures import StripeFailure, alarm, hint_of
from workers.stop import Stop
from workers.stripe_api import PAGE, StripeApi
from workers.verification import event_kind

PERIOD = 300.0
"""Seconds between two rounds, and so the longest time until a lost event is back."""

OVERLAP = 600
"""Seconds a pass reaches back before the last one: Stripe's list lags behind [secondary]."""

DAY = 86_400

WIDE = 3 * DAY
"""Seconds the daily pass, and the first one on an empty Redis, reaches back: as long as Stripe
itself retries deliveries in live mode (https://docs.stripe.com/webhooks#behaviors)."""

HORIZON = 30 * DAY
"""Seconds for which Stripe lists events (https://docs.stripe.com/api/events)."""

STUCK = DAY
"""Seconds in `processing` after which a session is reported; most checks take under a minute
(https://docs.stripe.com/identity/how-sessions-work)."""

_OF_EVERY_ACCOUNT = frozenset({"unreachable", "limited", "key"})
"""Kinds of failures that the next account may meet as well."""

Item = TypeVar("Item")

log = logs.get(__name__)


class InboxFull(Exception):
    """The inbox accepts no more events; repeat the pass. The text names the limit."""


@dataclass
class Pass:
    """What was found, for one account or for several.

    Attributes:
        seen: events and sessions looked at.
        counts: by answer: `new` was missed; `pending`, `done`, `dead`, `reopened` were known;
            `other_mode` is none of ours.
        missed: keys of what was missed.
        stuck: sessions that have been in `processing` for more than a day.
        gone: accounts of which Stripe shows nothing any more.
        failed: why an account could not be asked for, by its id; `own` is one's own.
        failed_in_a_row: accounts that failed as the next one might. After two no other is asked.
    """

    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    failed_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Taking:
    """What to do with events that the inbox lacks.

    Attributes:
        dry_run: accept nothing.
        as_done_by: who has them accepted as done, so that no handler runs; empty to run handlers.
        until: leave out what was made at or after this (unix seconds).
    """

    dry_run: bool = False
    as_done_by: str = ""
    until: float = math.inf


class Reconciler:
    """Compares Stripe with the inbox, account by account. None stands for one's own account.

    An account that cannot be asked for holds up no other.
    """

    def __init__(
        self,
        api: StripeApi,
        inbox: Inbox,
        *,
        livemode: bool,
        list_accounts: bool = False,
        keep: int = KEEP,
    ) -> None:
        """`list_accounts`: whether to ask Stripe which accounts are connected to ours. `keep`:
        seconds for which the inbox keeps done events.
        """
        self._api, self._inbox, self._livemode, self._keep = api, inbox, livemode, keep
        self._list_accounts = list_accounts
        self._gone_until: dict[str, float] = {}
        self._wide_is_owed: set[str | None] = set()

    @classmethod
    def from_settings(
        cls, settings: Settings, inbox: Inbox, metrics: Metrics | None = None
    ) -> Reconciler:
        """Build it for the account of `STRIPE_API_KEY` and those connected to it."""
        return cls(
            StripeApi.from_settings(settings, metrics),
            inbox,
            livemode=bool(settings.livemode),
            list_accounts=settings.stripe_connected_accounts,
            keep=settings.keep,
        )

    def round(self, found: Pass | None = None) -> Pass:
        """Make the pass of every account.

        A pass starts at the watermark of the last whole one, less the overlap; once a day, and
        when there is no watermark (an empty Redis), it reaches back three days at least.

        Args:
            found: what the round adds to, for a caller that asks what a failed one found.

        Raises:
            InboxFull: what was found so far is in the inbox.
            redis.RedisError: the same, for Redis.
        """
        found = Pass() if found is None else found
        for account in self._accounts(found):
            if time.monotonic() < self._gone_until.get(account or "", 0):
                continue
            started = self._inbox.now()
            wide = self._inbox.try_acquire(f"reconcile-wide:{account or ''}", DAY)
            wide = wide or account in self._wide_is_owed
            watermark = self._inbox.watermark(account)
            since = started - WIDE if wide or watermark is None else started
            if watermark is not None:  # nothing made since then was compared, however long that is
                since = min(since, watermark - OVERLAP)
            if wide:  # also if Redis, or a full inbox, ends the round here
                self._wide_is_owed.add(account)
            failure = self._try_pass(since, account, found, look_for_stuck=wide or account is None)
            if failure is None:
                self._wide_is_owed.discard(account)
            if found.failed_in_a_row > 1:
                break
        return found

    def run(
        self,
        since: int,
        accounts: Iterable[str | None] | None = None,
        *,
        how: Taking = Taking(),
        progress: Callable[[Pass], None] = lambda _: None,
        found: Pass | None = None,
    ) -> Pass:
        """Accept everything made at or after `since` (unix seconds) that the inbox lacks.

        Events that are older than what the inbox knows are not looked at: they may be done.

        Args:
            since: unix seconds.
            accounts: whom to ask for; by default every account that is known.
            how: what is done with it.
            progress: called after each event.
            found: as for `round`.

        Raises:
            InboxFull: what was found so far is in the inbox.
            redis.RedisError: the same, for Redis.
        """
        found = Pass() if found is None else found
        for account in self._accounts(found) if accounts is None else accounts:
            self._try_pass(since, account, found, how=how, progress=progress)
            if found.failed_in_a_row > 1:
                break
        return found

    def _accounts(self, found: Pass) -> list[str | None]:
        """Return every account that is known. An organization's key has none of its own."""
        known = dict.fromkeys(self._inbox.accounts())
        if self._list_accounts:
            try:
                known |= dict.fromkeys(self._paced(self._api.connected_accounts()))
            except StripeFailure as failure:
                self._fail(failure, "connected accounts", found)
        # In random order, so that two failing accounts do not always block the same others.
        connected = random.sample(list(known), len(known))
        return [*([] if self._api.is_organization else [None]), *connected]

    def _try_pass(
        self,
        since: int,
        account: str | None,
        found: Pass,
        *,
        look_for_stuck: bool = True,
        how: Taking = Taking(),
        progress: Callable[[Pass], None] = lambda _: None,
    ) -> StripeFailure | None:
        """Reconcile one account; return the failure that ended the pass early, if any.

        The watermark moves after a whole pass that reached back to it, whoever asked for it.
        """
        seen, missed = found.seen, len(found.missed)
        started, watermark = self._inbox.now(), self._inbox.watermark(account)
        failure = self._pass(
            since, account, found, look_for_stuck=look_for_stuck, how=how, progress=progress
        )
        if not how.dry_run:
            begins = started - WIDE if watermark is None else watermark
            if failure is None and since <= begins and how.until == math.inf:
                self._inbox.move_watermark(started, account)
            ended = Reconciled(
                self._inbox.now(),
                seen=found.seen - seen,
                missed=len(found.missed) - missed,
                failed=_reason(failure) if failure else "",
                hint=hint_of(failure) if failure else "",
            )
            self._inbox.note_pass(account, msgspec.json.encode(ended).decode())
        return failure

    def _pass(
        self,
        since: int,
        account: str | None,
        found: Pass,
        *,
        look_for_stuck: bool,
        how: Taking,
        progress: Callable[[Pass], None],
    ) -> StripeFailure | None:
        try:
            for event in self._events(since, account):
                if event.created >= how.until:
                    continue
                found.seen += 1
                answer = self._take_in(event, how)
                found.counts[answer] += 1
                if answer in {AcceptResult.NEW, "adopted"}:
                    found.missed.append(event.key)
                progress(found)
            if look_for_stuck:
                processing = self._api.sessions_since(status="processing", account=account)
                found.stuck += [
                    session.id
                    for session in self._paced(processing)
                    if session.created < time.time() - STUCK
                ]
        except StripeFailure as failure:
            self._report(failure, account, found)
            found.failed_in_a_row += failure.kind in _OF_EVERY_ACCOUNT
            return failure
        found.failed_in_a_row = 0
        return None

    def _report(self, failure: StripeFailure, account: str | None, found: Pass) -> None:
        if failure.kind == "account" and account:
            found.gone.append(account)
            self._gone_until[account] = time.monotonic() + DAY
            hint = failure.rule.then
            log.warning("account_gone", account=account, reason=_reason(failure), hint=hint)
        else:
            self._fail(failure, account, found)

    def _fail(self, failure: StripeFailure, account: str | None, found: Pass) -> None:
        reason = _reason(failure)
        found.failed[account or "own"] = reason
        log.warning("reconcile_failed", account=account, reason=reason, hint=failure.rule.then)
        if failure.rule.alarm:
            alarm(failure, account=account)

    def _take_in(self, event: Event, how: Taking) -> str:
        if event.livemode != self._livemode:
            return "other_mode"
        if how.as_done_by and not how.dry_run:
            return self._inbox.adopt(event, how.as_done_by)
        if how.dry_run:
            known = self._inbox.find(event.key)
            return known.state if known else AcceptResult.NEW
        answer = self._inbox.accept(event)
        if answer in {AcceptResult.FULL, AcceptResult.MEMORY_SHORT}:
            raise InboxFull(answer)
        return answer

    def _events(self, since: int, account: str | None) -> Iterator[Event]:
        known_since = max(since, int(time.time()) - self._keep + OVERLAP)
        for event in self._paced(self._api.events_since(known_since, account=account)):
            kind = kind_of(event.type)
            if kind is not None:
                yield Event(
                    id=event.id,
                    kind=kind,
                    form="snapshot",
                    session=str(event.data.object["id"]),
                    created=event.created,
                    livemode=event.livemode,
                    account=account,
                )
        if since < time.time() - HORIZON:
            yield from self._old_sessions(since, account)

    def _old_sessions(self, since: int, account: str | None) -> Iterator[Event]:
        """Yield events of our own for each old session whose end no handler has heard."""
        for session in self._paced(self._api.sessions_since(since, account=account)):
            if session.created > time.time() - HORIZON:
                continue
            for kind in _ends_of(session):
                made_up = Event(
                    # The same each time, so that asking again finds it.
                    id=f"evt_reconciled_{session.id}_{kind}",
                    kind=kind,
                    form="snapshot",
                    session=session.id,
                    created=session.created,
                    livemode=session.livemode,
                    account=account,
                )
                if self._inbox.last_kind(made_up) not in {kind, "redacted"}:
                    yield made_up

    def _paced(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield what Stripe lists, within the rate of calls: a page is one call."""
        self._inbox.spend_call()
        for number, item in enumerate(items, 1):
            yield item
            if number % PAGE == 0:
                self._inbox.spend_call()


def _reason(failure: StripeFailure) -> str:
    return f"{failure} ({failure.request_id or 'no answer'})"


def _ends_of(session: stripe.identity.VerificationSession) -> Iterator[Kind]:
    """Yield the events that tell how a session ended: its status, and whether it was redacted."""
    kind = event_kind(Outcome.of(session).kind)
    if kind not in {"created", "processing"}:
        yield kind
    if is_redacted(session):
        yield "redacted"


def reconcile_for_ever(reconciler: Reconciler, inbox: Inbox, stop: Stop, metrics: Metrics) -> None:
    """Make a round every `PERIOD`, whichever process comes first; return when asked to stop."""
    while not stop.requested:
        time.sleep(1)
        try:
            if inbox.try_acquire("reconcile", PERIOD):
                found = Pass()
                try:
                    reconciler.round(found)
                finally:  # what a round took in before it failed is known to the next
                    metrics.count("reconcile_missed", by=len(found.missed))
                report = log.warning if found.missed or found.stuck else log.info
                report(
                    "reconciled",
                    count=found.seen,
                    counts=dict(found.counts),
                    stuck=len(found.stuck),
                )
        except Exception:  # whatever it was, the next pass is made
            log.exception("reconcile_failed")


def as_json(found: Pass) -> dict[str, object]:
    """Return what was found as plain data, the form that `--json` promises."""
    return dataclasses.asdict(found) | {"counts": dict(found.counts)}

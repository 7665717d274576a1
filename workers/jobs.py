"""The story of one event: claim, fetch, dispatch, settle.

The worker (workers/runner.py) calls `Processor.claim` and `Processor.process`; the latter is the
story, read top to bottom.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Literal, cast

import redis
from structlog.contextvars import bound_contextvars

from identity_webhooks.handlers import Discard, Retry
from identity_webhooks.verification import Outcome, Sensitive, Verification
from service import connection, logs
from service.inbox import Claim, Inbox, Progress, Refused, Reply, save_progress_at_end
from service.metrics import Metrics
from service.settings import Settings
from workers.apart import Failed, OwnProcess
from workers.router import Handler, Router, backoff, place
from workers.stripe_api import StripeApi, StripeFailure
from workers.verification import SENSITIVE_WINDOW, Facts, standing
from workers.watch import Stop, Watch

FETCH_CAP = 60.0
"""Seconds: the longest wait after a fetch that failed for a reason that may pass."""

KEY_DELAY = 60.0
"""Seconds to wait when Stripe refuses our key: a person has to act."""

_WAITS = {Refused.PAUSED: 0.5, Refused.THROTTLED: 0.05}
"""Seconds between two looks whether a pause is over, or the rate of calls allows another."""

MAX_STALE_READS = 8
MAX_MISSING = 6
"""Reads in a row that find the session as before the event, or not at all, before we believe
them: with the jittered waits about two minutes. Stripe's reads are eventually consistent
[secondary]."""

MAX_FAULTS = 20
"""Times in a row that a fault of ours ends the work on an event before it is dead: with the
jittered waits about ten minutes."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End the event."""

    state: Literal["done", "dead"]
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give the event back, due again after `delay` seconds."""

    delay: float
    reason: str


End = Finish | Release | None
"""How a claim ends; None when it is not ours any more."""

log = logs.get(__name__)


def process_event() -> None:
    """Refuse to run: the name that RQ's jobs carry, for RQ's own tools to show.

    Our worker never calls it. It takes the event from the inbox in the step that pops the job.
    """
    raise RuntimeError("start workers with `python -m workers`; `rq worker` loses events")


class Processor:
    """What takes one event from its wake-up to a settled record."""

    def __init__(
        self,
        inbox: Inbox,
        router: Router,
        api: StripeApi,
        metrics: Metrics,
        stop: Stop,
        restricted_api: StripeApi | None = None,
    ) -> None:
        self._inbox, self._router, self._metrics, self._stop = inbox, router, metrics, stop
        self._api, self._restricted_api = api, restricted_api
        self._watch = Watch(inbox, stop)
        self._own_processes = {
            handler.name: OwnProcess(handler) for handler in router.handlers if handler.own_process
        }

    @classmethod
    def from_settings(cls, settings: Settings, stop: Stop, router: Router) -> Processor:
        """Wire it up."""
        client = connection.connect(settings)
        restricted = settings.stripe_restricted_key
        return cls(
            inbox=Inbox(client, api_rate=settings.api_rate),
            router=router,
            api=StripeApi.from_settings(settings),
            metrics=Metrics(client),
            stop=stop,
            restricted_api=StripeApi(restricted.get_secret_value(), base=settings.stripe_api_base)
            if restricted
            else None,
        )

    def flush(self) -> None:
        """Write the counts of this process to Redis, before it ends."""
        self._metrics.flush()

    def claim(self, count: int = 1) -> list[Claim]:
        """Claim up to `count` events that are to be worked on; none when no wake-up is waiting.

        May raise `redis.RedisError`.
        """
        while answers := self._inbox.claim(count):
            if claims := self._begin(answers):
                return claims
            if wait := _WAITS.get(cast("Refused", answers[-1])):
                time.sleep(wait)
                break
        return []

    def _begin(self, answers: list[Claim | Refused]) -> list[Claim]:
        """Keep what was taken alive; what was refused comes again by itself, if it has to."""
        claims = []
        for answer in answers:
            if isinstance(answer, Claim):
                claims.append(answer)
                self._watch.begin(answer)
                self._metrics.count("claims", "claimed")
            elif answer not in _WAITS:
                # A surplus wake-up, or the session is busy.
                self._metrics.count("claims", answer.value)
        return claims

    def process(self, claim: Claim, *, and_claim: bool = False) -> Claim | None:
        """Take the event one step on: run what is due, settle it or give it back.

        With `and_claim`, the next event is claimed in the same round trip that ends this one, and
        returned if there is one. Nothing is raised, whatever happens.
        """
        event = claim.event
        following: Reply[list[Claim | Refused]] | None = None
        with bound_contextvars(event_id=event.id, session_id=event.session, kind=event.kind):
            try:
                following = self._end(claim, self._work(claim), and_claim=and_claim)
            except redis.RedisError:
                # The lease runs out, if the event cannot be given back.
                log.exception("redis_failed")
                with contextlib.suppress(redis.RedisError):
                    self._end(claim, Release(backoff(claim.waits, FETCH_CAP), "redis failed"))
            except Exception as error:
                # A bug of ours: retried, with a limit.
                log.exception("processing_failed")
                end = (
                    Release(backoff(claim.waits, FETCH_CAP), "processing failed")
                    if claim.waits < MAX_FAULTS
                    else Finish("dead", "", f"processing failed: {place(error)}")
                )
                with contextlib.suppress(redis.RedisError):
                    self._end(claim, end)
            finally:
                self._watch.end(claim)
        return self._first_of(following) if following else None

    def _first_of(self, claims: Reply[list[Claim | Refused]]) -> Claim | None:
        try:
            return next(iter(self._begin(claims.result())), None)
        except redis.RedisError:
            return None  # whoever claims next meets the same failure
        except Exception:
            # A record that cannot be read; its lease runs out, and at last it is quarantined.
            log.exception("record_unreadable")
            return None

    def _end(
        self, claim: Claim, end: End, *, and_claim: bool = False
    ) -> Reply[list[Claim | Refused]] | None:
        """End the claim; with `and_claim`, claim the next event in the same round trip."""
        finished: Reply[float | None] | None = None
        released: Reply[bool] | None = None
        following: Reply[list[Claim | Refused]] | None = None
        with self._inbox.pipeline() as pipe:
            if isinstance(end, Finish):
                finished = pipe.finish(claim, end.state, outcome=end.outcome, reason=end.reason)
            elif end is not None:
                log.info("event_released", reason=end.reason, delay_s=round(end.delay, 3))
                released = pipe.release(claim, end.delay, end.reason)
            if and_claim and not self._stop.requested:
                following = pipe.claim()
        if released:
            released.result()
        if finished and isinstance(end, Finish):
            self._report(end, finished.result())
        return following

    def _report(self, end: Finish, took: float | None) -> None:
        if took is None:
            log.warning("claim_lost")
            return
        self._metrics.count("settled", end.state, end.outcome)
        self._metrics.observe("settle_seconds", took)
        report = log.error if end.state == "dead" else log.info
        report(
            "event_settled",
            state=end.state,
            outcome=end.outcome,
            reason=end.reason,
            took_ms=round(took * 1000),
        )

    def _work(self, claim: Claim) -> End:
        """Run what is due; say how the claim ends."""
        subscribed = self._router.match(claim.event.kind)
        due = [handler for handler in subscribed if claim.is_due(handler.name)]
        if not due or self._stop.requested:
            return self._settle(claim, subscribed)
        try:
            if not self._is_the_one(claim):
                log.info("event_settled", state="done", outcome="twin")
                return None
            facts = self._fetch(claim, due)
        except StripeFailure as failure:
            return self._wait_for_stripe(claim, failure)
        with logs.masking(facts.personal_values()):
            for handler in due:
                own = self._own_processes.get(handler.name)
                with own.turn if own else contextlib.nullcontext():
                    if claim.lost or self._stop.requested:
                        break
                    progress, delay = self._dispatch(handler, claim, facts)
                if handler is due[-1] and progress.over:
                    save_progress_at_end(claim, handler.name, progress)
                elif not self._inbox.save_progress(claim, handler.name, progress, delay):
                    log.warning("claim_lost", handler=handler.name)
                    return None
                self._metrics.count("handler_runs", handler.name, progress.status)
        return self._settle(claim, subscribed, facts)

    def _is_the_one(self, claim: Claim) -> bool:
        """Whether this event, and not the same change in its other form, is to be worked on.

        An account with destinations of both forms gets every change twice, under two ids. A thin
        event, when fetched, names its snapshot event; a snapshot event names nothing.
        """
        event = claim.event
        if event.form == "snapshot" or claim.twin is not None:
            return True
        try:
            twin = self._api.snapshot_of(event)
        except StripeFailure as failure:
            if failure.kind != "missing":
                raise
            # Older than the 30 days that Stripe keeps events.
            twin = None
        if twin is None or self._inbox.link(claim, twin.key):
            return True
        self._metrics.count("settled", "done", "twin")
        return False

    def _fetch(self, claim: Claim, handlers: list[Handler]) -> Facts:
        """Ask Stripe once, for all of these handlers."""
        session, report = self._api.fetch(claim.event)
        outcome = Outcome.of(session)
        relation = standing(claim.event.kind, outcome.kind)
        if relation == "stale" and claim.waits < MAX_STALE_READS:
            raise StripeFailure("stale")
        facts = Facts(session, report, outcome, superseded=relation != "current")
        needs = frozenset[str]().union(
            *(handler.needs for handler in handlers if not _excuse(handler, facts))
        )
        if needs and self._restricted_api is not None:
            facts.sensitive = self._fetch_sensitive(self._restricted_api, claim, needs)
        self._metrics.count("fetches", "ok")
        return facts

    def _fetch_sensitive(
        self, api: StripeApi, claim: Claim, needs: frozenset[str]
    ) -> Sensitive | None:
        """Ask with the other key; None when the session is too old for Stripe to show it these."""
        try:
            return api.fetch_sensitive(claim.event, needs)
        except StripeFailure as failure:
            if failure.status == 401:
                # The key is revoked. That concerns these handlers and must not pause every event.
                raise StripeFailure(
                    "key", status=403, code="restricted_key", request_id=failure.request_id
                ) from None
            age = claim.now / 1000 - claim.event.created
            if failure.kind not in {"key", "invalid"} or age <= SENSITIVE_WINDOW:
                raise
            log.exception("sensitive_expired", age_s=round(age))
            return None

    def _dispatch(self, handler: Handler, claim: Claim, facts: Facts) -> tuple[Progress, float]:
        """Run one handler; what it raises ends here, and only types and places of it go on."""
        if excuse := _excuse(handler, facts):
            return excuse, 0
        previous = claim.progress.get(handler.name)
        attempt = previous.attempts + 1 if previous else 1
        if handler.needs and facts.sensitive is None:
            return Progress("dead", attempt, reason="sensitive_expired"), 0
        verification = Verification(
            event=claim.event,
            session=facts.session,
            report=facts.report,
            outcome=facts.outcome,
            sensitive=(facts.sensitive or Sensitive({})).only(handler.needs),
            idempotency_key=f"{claim.identity}:{handler.name}",
            attempt=attempt,
            superseded=facts.superseded,
            log=logs.get("handler").bind(handler=handler.name, attempt=attempt),
        )
        try:
            self._run(handler, verification, claim, facts)
        except Retry as retry:
            reason = _reason("retry", retry.reason)
            progress, delay = handler.failed(attempt, claim.age, reason, retry.delay)
        except Discard as discard:
            reason = _reason("discarded", discard.reason)
            progress, delay = Progress("dead", attempt, reason=reason), 0.0
        except Failed as failed:
            reason = _reason("failed", failed.reason)
            progress, delay = handler.failed(attempt, claim.age, reason)
        except BaseException as error:  # noqa: BLE001 (sys.exit is the handler's failure, not ours)
            reason = _reason("failed", place(error))
            progress, delay = handler.failed(attempt, claim.age, reason)
        else:
            return Progress("done", attempt), 0
        log.warning(
            "handler_failed",
            handler=handler.name,
            attempt=attempt,
            status=progress.status,
            reason=progress.reason,
            delay_s=round(delay, 3),
        )
        return progress, delay

    def _run(
        self, handler: Handler, verification: Verification, claim: Claim, facts: Facts
    ) -> None:
        if own := self._own_processes.get(handler.name):
            own.run(verification, facts.personal_values())
            return
        with self._watch.deadline(claim, handler, verification.attempt):
            handler.function(verification)

    def _wait_for_stripe(self, claim: Claim, failure: StripeFailure) -> End:
        """Give the event back until the failure may have passed; dead when it will not."""
        self._metrics.count("fetches", failure.kind)
        gone = failure.kind == "missing" and claim.waits >= MAX_MISSING
        if gone or failure.kind == "invalid":
            return Finish("dead", "", f"stripe: {failure}")
        delay = backoff(claim.waits, FETCH_CAP)
        if failure.retry_after is not None:
            delay += failure.retry_after
        if failure.kind == "key":
            # Until a person has acted.
            delay = KEY_DELAY
            if failure.status == 401:
                # Every event would run into it. A 403 is of one account, or of one field.
                self._inbox.pause(KEY_DELAY, "Stripe refuses our key")
            log.error(
                "stripe_refuses_our_key", status=failure.status, request_id=failure.request_id
            )
        elif failure.kind == "busy" and failure.status == 429:
            self._inbox.pause(min(delay, FETCH_CAP), "Stripe limits our rate")
        return Release(delay, f"stripe: {failure}")

    def _settle(self, claim: Claim, subscribed: list[Handler], facts: Facts | None = None) -> End:
        """End the event if every handler is through with it; else say when to come back."""
        names = {handler.name for handler in subscribed}
        waiting = {name: p for name, p in claim.progress.items() if not p.over}
        if names - claim.progress.keys():
            # Stopped, or lost the claim, before every handler had its turn.
            return Release(0, "worker stopped")
        if unknown := waiting.keys() - names:
            # Perhaps a newer release knows it (a rolling deploy); perhaps it was renamed.
            log.warning("handler_unknown", handler=min(unknown))
            return Release(FETCH_CAP, "unknown handler")
        if waiting:
            delay = (min(p.due for p in waiting.values()) - claim.now) / 1000
            return Release(max(0.05, delay), "handlers wait for their retry")
        outcome, reason = _told(facts) if names else ("no_handler", "")
        dead = {name: p.reason for name, p in claim.progress.items() if p.status == "dead"}
        if dead:
            name = min(dead)
            return Finish("dead", outcome, f"{name}: {dead[name]}")
        return Finish("done", outcome, reason)


def _excuse(handler: Handler, facts: Facts) -> Progress | None:
    """Say why this handler need not run for the event, if so."""
    if facts.superseded and not handler.superseded:
        return Progress("superseded", 0)
    if handler.reasons and facts.outcome.reason not in handler.reasons:
        return Progress("skipped", 0)
    return None


def _told(facts: Facts | None) -> tuple[str, str]:
    """Return outcome and reason for the record, in the words the handlers were told."""
    if facts is None:
        return "", ""
    if facts.superseded:
        return "superseded", ""
    return facts.outcome.kind, facts.outcome.reason or ""


def _reason(word: str, text: object) -> str:
    """Return a handler's own reason, redacted; whatever `str` of it does."""
    return f"{word}: {logs.quote(text)}".replace("|", "/")

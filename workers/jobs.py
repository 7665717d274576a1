"""Process one event: claim, fetch, dispatch, end.

The worker (workers/pool.py) calls `Processor.claim` and `Processor.process`; the latter
shows all steps in order. What is asked of Stripe stands in workers/fetching.py, what its failures
mean in workers/failures.py, how handlers are run in workers/dispatch.py, and how it ends in
workers/ending.py.
"""

from __future__ import annotations

import contextlib

import redis
from structlog.contextvars import bound_contextvars

from service import connection, extras, logs
from service.inbox import Claim, ClaimResult, Inbox, Reply
from service.metrics import Metrics, Workload
from service.settings import Settings
from workers.claiming import Claimer
from workers.dispatch import BUSY, Dispatcher, busy_wait
from workers.ending import End, Ender, Finish, Release, end_of
from workers.failures import Judge, StripeFailure, rounds
from workers.fetching import Fetcher
from workers.heartbeat import Heartbeat
from workers.hooks import Hooks
from workers.in_hand import InHand
from workers.router import Handler, Router, backoff, place
from workers.stop import Stop
from workers.stripe_api import StripeApi
from workers.summary import summarizing
from workers.verification import Facts

FAULT_CAP = 60.0
"""Seconds: the longest wait after Redis failed, or a fault of ours."""

MAX_FAULTS = 20
"""Times that a fault of ours ends the work on an event, with nothing done between, before it is
dead: with the jittered waits about ten minutes. Waits for anything else do not count."""

log = logs.get(__name__)


def process_event() -> None:
    """Refuse to run: the name that RQ's jobs carry, for RQ's own tools to show.

    Our worker never calls it. It takes the event from the inbox in the step that pops the job.
    """
    raise RuntimeError("start workers with `python -m workers`; `rq worker` loses events")


class Processor:
    """Processes one event from its claim until it is settled or released."""

    def __init__(
        self,
        inbox: Inbox,
        router: Router,
        api: StripeApi,
        metrics: Metrics,
        stop: Stop,
        restricted_api: StripeApi | None = None,
        in_hand: InHand | None = None,
    ) -> None:
        """Take `in_hand` from a supervisor, who reads it when this process has died."""
        in_hand = in_hand or InHand(1)
        self._inbox, self._router, self._metrics, self._stop = inbox, router, metrics, stop
        self._heartbeat = Heartbeat(inbox, metrics, stop, in_hand)
        self._claimer = Claimer(inbox, self._heartbeat, metrics, in_hand)
        self._judge = Judge(inbox, metrics)
        self._fetcher = Fetcher(inbox, api, restricted_api, self._judge, metrics)
        self._dispatcher = Dispatcher(inbox, router, metrics, stop, self._heartbeat)
        self._ender = Ender(inbox, metrics, stop, Hooks(router))
        self.tracing = extras.Tracing()

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        stop: Stop,
        router: Router,
        in_hand: InHand | None = None,
    ) -> Processor:
        """Wire it up."""
        client = connection.connect(
            settings,
            connection.worker_connections(settings.worker_concurrency),
            wait=connection.WORKER_WAIT,
        )
        metrics = Metrics(client)
        restricted = settings.stripe_restricted_key
        processor = cls(
            inbox=connection.inbox(settings, client),
            router=router,
            api=StripeApi.from_settings(settings, metrics),
            metrics=metrics,
            stop=stop,
            # Asked again by the inbox, not at once: a thread is held meanwhile.
            restricted_api=StripeApi(
                restricted.get_secret_value(),
                base=settings.stripe_api_base,
                retries=0,
                metrics=metrics,
            )
            if restricted
            else None,
            in_hand=in_hand,
        )
        metrics.workload = Workload(
            slots=settings.worker_concurrency,
            handlers=tuple(handler.name for handler in router.handlers),
            busy=processor._heartbeat.count,
        )
        metrics.start()
        metrics.flush()  # before `worker_ready`, the process is among the living
        processor.tracing = extras.start(settings)
        return processor

    def claim(self, count: int = 1) -> list[Claim]:
        """`Claimer.claim`."""
        return self._claimer.claim(count)

    def process(self, claim: Claim, *, and_claim: bool = False) -> Claim | None:
        """Process the event: run the handlers that are due, then settle or release it.

        With `and_claim`, the next event is claimed in the same round trip that ends this one, and
        returned if there is one. Nothing is raised, whatever happens.
        """
        event = claim.event
        following: Reply[list[ClaimResult]] | None = None
        bound = bound_contextvars(event_id=event.id, session_id=event.session, kind=event.kind)
        with bound, summarizing(self.tracing), self.tracing.event(event, claim.trace):
            try:
                following = self._ender.end(claim, self._work(claim), and_claim=and_claim)
            except Exception as error:
                is_ours = not isinstance(error, redis.RedisError)
                log.exception("processing_failed" if is_ours else "redis_failed")
                # If this fails, too, the lease runs out.
                with contextlib.suppress(redis.RedisError):
                    self._ender.end(claim, _after(error, claim, is_ours=is_ours))
            finally:
                self._heartbeat.end(claim)
        return self._first_of(following)

    def _work(self, claim: Claim) -> End | None:
        """Run the handlers that are due; return how the claim ends, None if it was lost."""
        subscribed, facts = self._router.match(claim.event.kind), None
        due = [handler for handler in subscribed if claim.is_due(handler.name)]
        with self._dispatcher.turn(claim, due) as is_its_turn:
            if not is_its_turn:
                return Release(busy_wait(claim), BUSY)
            if due and not self._stop.requested:
                try:
                    with self.tracing.step("fetch"):
                        if self._fetcher.is_canonical(claim):
                            facts = self._fetcher.fetch(claim)
                    if facts is not None:
                        self._run(due, claim, facts)
                except StripeFailure as failure:
                    delay, reason = self._judge.verdict(failure, claim)
                    return Finish("dead", "", reason) if delay is None else Release(delay, reason)
        return None if claim.lost else end_of(claim, subscribed, facts)

    def _run(self, due: list[Handler], claim: Claim, facts: Facts) -> None:
        """Run the handlers that are due: first those that need no sensitive fields."""
        needy = [each for each in due if each.needs and not facts.skips(each)]
        ready = [each for each in due if each not in needy]
        self._dispatcher.run(ready, claim, facts, to_the_end=not needy)
        if needy and not claim.lost and not self._stop.requested:
            self._fetcher.fetch_sensitive(claim, facts, needy)
            self._dispatcher.run(needy, claim, facts, to_the_end=True)

    def end(self) -> None:
        """End the threads; report that this process ends, with all its counts."""
        self._heartbeat.stop()
        self._metrics.end()
        self.tracing.end()

    def note_death(self) -> None:
        """`Claimer.note_death`."""
        self._claimer.note_death()

    def note_handlers(self) -> None:
        """Store the names of the handlers of this release, for `events replay`."""
        try:
            self._inbox.note_handlers(handler.name for handler in self._router.handlers)
        except redis.RedisError:
            log.exception("handlers_not_noted")

    def _first_of(self, claims: Reply[list[ClaimResult]] | None) -> Claim | None:
        """Return the claim that came with the end of the event before, if there is one."""
        try:
            return next(iter(self._claimer.begin(claims.result() if claims else [])), None)
        except redis.RedisError:
            pass  # whoever claims next meets the same failure
        except Exception:
            # A record that cannot be read; its lease runs out, and at last it is quarantined.
            log.exception("record_unreadable")
        return None


def _after(error: Exception, claim: Claim, *, is_ours: bool) -> End:
    """Retry, with a limit where the fault is ours."""
    reason = "processing failed" if is_ours else "redis failed"
    if is_ours and claim.faults >= MAX_FAULTS:
        return Finish("dead", "", f"{reason}: {place(error)}")
    return Release(backoff(rounds(claim.age), FAULT_CAP), reason, is_fault=is_ours)

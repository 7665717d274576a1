"""Fetch what handlers need from Stripe: which objects, with which key.

What each failure means stands in workers/failures.py. A request that only some handlers need
(`needs=`) does not delay the others.
"""

from __future__ import annotations

from identity_webhooks.verification import SENSITIVE, Outcome, Sensitive, is_redacted
from service import logs
from service.inbox import Claim, Inbox
from service.metrics import Metrics
from workers.failures import Judge, StripeFailure, is_settled
from workers.router import Handler
from workers.stripe_api import StripeApi
from workers.summary import settled
from workers.verification import Facts, freshness

log = logs.get(__name__)


class Fetcher:
    """Asks Stripe for all handlers of an event at once."""

    def __init__(
        self,
        inbox: Inbox,
        api: StripeApi,
        restricted_api: StripeApi | None,
        judge: Judge,
        metrics: Metrics,
    ) -> None:
        self._inbox, self._judge, self._metrics = inbox, judge, metrics
        self._api, self._restricted_api = api, restricted_api

    def is_canonical(self, claim: Claim) -> bool:
        """Whether this event, and not the same change in its other form, is to be worked on.

        An account with destinations of both forms gets every change twice, under two ids. A thin
        event, when fetched, names its snapshot event; a snapshot event names nothing. Stripe is
        asked once: its answer, or the one assumed, is stored.

        Raises:
            StripeFailure: one that may pass, so that both forms may still be found to be one.
        """
        if claim.event.form == "snapshot" or claim.twin is not None:
            return True
        linked = self._inbox.link(claim, self._other_form(claim))
        if linked == "second":
            settled(claim, claim.event, state="done", outcome="twin", progress=claim.progress)
            self._metrics.count("settled", "done", "twin")
        elif linked == "lost":
            log.warning("claim_lost")
        return linked == "first"

    def _other_form(self, claim: Claim) -> str:
        """Return the key of the snapshot event; empty if Stripe names none."""
        try:
            twin = self._api.snapshot_of(claim.event)
        except StripeFailure as failure:
            if failure.rule.who != "nobody" and not is_settled(failure, claim):
                raise
            self._judge.verdict(failure, claim)
            return ""
        return twin.key if twin else ""

    def fetch(self, claim: Claim) -> Facts:
        """Ask for the session, once for all handlers.

        Raises:
            StripeFailure: without the session no handler can run.
        """
        kind = claim.event.kind
        session, report = self._api.fetch(claim.event)
        relation = freshness(kind, Outcome.of(session).kind, redacted=is_redacted(session))
        if relation == "stale" and not is_settled(stale := StripeFailure("stale"), claim):
            raise stale
        outcome = Outcome.of(session, kind)
        self._metrics.count("fetches", "ok")
        return Facts(session, report, outcome, superseded=relation != "current")

    def fetch_sensitive(self, claim: Claim, facts: Facts, needy: list[Handler]) -> None:
        """Ask for what these handlers need: for all at once and, where that is refused, for each
        alone. What each does not get is noted in the facts.
        """
        names, needs = [h.name for h in needy], {need for h in needy for need in h.needs}
        if is_redacted(facts.session) or self._restricted_api is None:
            # Without the key the loader refuses handlers with `needs=`.
            facts.sensitive = Sensitive(dict.fromkeys(SENSITIVE[need] for need in needs))
            return
        try:
            facts.sensitive |= self._restricted_api.fetch_sensitive(claim.event, needs)
        except StripeFailure as failure:
            if failure.kind in {"forbidden", "invalid"} and len(needy) > 1:
                for handler in needy:
                    self.fetch_sensitive(claim, facts, [handler])
            else:
                result_at = facts.report.created if facts.report else claim.event.created
                verdict = self._judge.verdict(failure, claim, names, result_at)
                facts.withheld |= dict.fromkeys(names, verdict)

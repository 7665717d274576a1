"""Claim events, renew the claims, and count wake-ups that gave none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import cast

import redis

from service import logs
from service.inbox import Claim, ClaimResult, Inbox, Quarantined, Refused
from service.metrics import Metrics
from workers.heartbeat import Heartbeat
from workers.in_hand import InHand
from workers.summary import settled

_WAITS = {Refused.PAUSED: 0.5, Refused.THROTTLED: 0.05}
"""Seconds between two looks whether a pause is over, or the rate of calls allows another."""

log = logs.get(__name__)


class Claimer:
    """Claims events from the inbox."""

    def __init__(
        self,
        inbox: Inbox,
        heartbeat: Heartbeat,
        metrics: Metrics,
        in_hand: InHand,
    ) -> None:
        """`in_hand` holds the events that the process before this one had when it died."""
        self._inbox, self._heartbeat, self._metrics = inbox, heartbeat, metrics
        self._in_hand = in_hand

    def note_death(self) -> None:
        """Write down which handlers ran when the process before this one died.

        So an event that is quarantined for it names the handler, whoever claims it.
        """
        with self._inbox.pipeline() as pipe:
            noted = [pipe.note_death(*held) for held in self._in_hand.died if held.handler]
        try:
            for each in noted:
                each.result()
        except redis.RedisError:
            log.exception("death_not_noted")

    def claim(self, count: int) -> list[Claim]:
        """Claim up to `count` events that are to be worked on; none when no wake-up is waiting.

        May raise `redis.RedisError`.
        """
        while answers := self._inbox.claim(count):
            if claims := self.begin(answers):
                return claims
            if wait := _WAITS.get(cast("Refused", answers[-1])):
                time.sleep(wait)
                break
        return []

    def begin(self, answers: Iterable[ClaimResult]) -> list[Claim]:
        """Start to renew a claim. A refused event is woken again by the sweep if it needs to be."""
        claims = []
        for answer in answers:
            if isinstance(answer, Claim):
                claims.append(answer)
                self._heartbeat.begin(answer)
                self._metrics.count("claims", "claimed")
                if not (answer.progress or answer.reason or answer.lapses):
                    self._metrics.observe("wait_seconds", answer.claimed_age)
            elif isinstance(answer, Quarantined):
                self._report_quarantined(answer)
            elif answer not in _WAITS:
                # A surplus wake-up, or the session is busy.
                self._metrics.count("claims", answer.value)
        return claims

    def _report_quarantined(self, quarantined: Quarantined) -> None:
        event = quarantined.event
        self._metrics.count("claims", "quarantined")
        self._metrics.count("settled", "dead", "quarantined")
        log.error(
            "event_quarantined",
            event_id=event.id,
            event_key=event.key,
            session_id=event.session,
            kind=event.kind,
            account=event.account,
            handler=quarantined.ran or None,
            hint="its workers died three times in a row: see worker_died for what ran",
        )
        settled(
            None,
            event,
            state="dead",
            outcome="",
            reason="quarantined",
            progress=quarantined.progress,
        )

"""Claiming events: what was claimed is kept alive from then on, the rest is counted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import cast

import redis

from service import logs
from service.inbox import Claim, Inbox, Refused
from service.metrics import Metrics
from workers.heartbeat import Heartbeat
from workers.in_hand import InHand

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
        """Take, too, what processes before this one had in hand when they died."""
        self._inbox, self._heartbeat, self._metrics = inbox, heartbeat, metrics
        self._in_hand = in_hand

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

    def begin(self, answers: Iterable[Claim | Refused]) -> list[Claim]:
        """Keep what was claimed alive; what was refused comes again by itself, if it has to."""
        claims, quarantined = [], 0
        for answer in answers:
            if isinstance(answer, Claim):
                claims.append(answer)
                self._heartbeat.begin(answer)
                self._metrics.count("claims", "claimed")
            elif answer not in _WAITS:
                # A surplus wake-up, the session is busy, or it was set aside.
                self._metrics.count("claims", answer.value)
                quarantined += answer is Refused.QUARANTINED
        if quarantined:
            # What was claimed is in hand already, and must be worked on.
            with suppress(redis.RedisError):
                self._report_quarantined(quarantined)
        return claims

    def _report_quarantined(self, count: int) -> None:
        """Say which events were set aside just now: the last ones that died of it."""
        died = (r for r in self._inbox.records("dead", 100) if r.reason == "quarantined")
        for record in islice(died, count):
            self._metrics.count("settled", "dead", "quarantined")
            log.error(
                "event_quarantined",
                event_id=record.event.id,
                event_key=record.key,
                session_id=record.event.session,
                kind=record.event.kind,
                account=record.event.account,
                handler=self._in_hand.ran.get(record.key),
                hint="its workers died three times in a row: see worker_died for what ran",
            )

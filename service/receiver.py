"""The decision about a delivery, and the response to its sender.

The response decides whether the sender repeats the delivery, so each is part of the contract
(docs/reliability.md):

======================================== ====== ==============================================
case                                     answer why
======================================== ====== ==============================================
accepted, or known already               200    it is in the inbox
another event type, or the other mode    200    counted; sending it again would change nothing
not proven to come from Stripe           400    nothing is stored
signed, but no event                     400    nothing is stored
too large                                413    nothing is stored
full, short of memory, Redis in trouble  503    Stripe delivers it again later
======================================== ====== ==============================================

Independent of Flask, of the server and of Redis: both the server's loop and the Flask route call
it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import redis

from identity_webhooks.event import Event
from service import logs, signature
from service.event import MalformedEvent, parse
from service.findings import INBOX_IS_FULL, MEMORY_IS_SHORT
from service.inbox import AcceptResult
from service.limits import MAX_BODY
from service.metrics import Metrics
from service.redis_errors import explain
from service.settings import Settings

RETRY_AFTER = 30
"""`Retry-After` of a 503, in seconds. Stripe follows its own schedule; other senders may use it."""

HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'"),
)
"""Headers of every response."""

_HINTS = {
    "malformed_header": "no usable Stripe-Signature header: was this sent by Stripe?",
    "signature_mismatch": "check that STRIPE_WEBHOOK_SECRET is this endpoint's, and that no proxy"
    " changes the body",
    "signature_expired": "check this machine's clock, and for a proxy that delays requests",
    "body_too_large": f"the limit is {MAX_BODY} bytes",
    "body_unreadable": "the body is not as its headers say",
    "other_mode": "not processed: change the endpoint to the other mode, or STRIPE_LIVEMODE",
    AcceptResult.FULL: INBOX_IS_FULL,
    AcceptResult.MEMORY_SHORT: MEMORY_IS_SHORT,
    "body_not_handed_on": "this web server does not hand on bodies sent in chunks: run the"
    " command of the Procfile, or have the proxy send a Content-Length",
}

REFUSED_FOR_NOW = frozenset({AcceptResult.FULL, AcceptResult.MEMORY_SHORT, "redis_failed"})
"""Answers with 503: Stripe keeps the event and sends it again."""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class JsonResponse:
    """What the sender is answered. `content` is sent as JSON."""

    status: int
    content: dict[str, Any]

    @property
    def body(self) -> bytes:
        """The content as it is sent."""
        return msgspec.json.encode(self.content)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers, without those of HTTP's framing."""
        retry = (("Retry-After", str(RETRY_AFTER)),) if self.status == 503 else ()
        return ("Content-Type", "application/json"), *HEADERS, *retry


class Receiver:
    """Verifies deliveries, and answers them."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._secrets = settings.stripe_webhook_secret
        self._tolerance = settings.stripe_webhook_tolerance
        self._livemode = settings.livemode
        self._metrics = metrics

    def decide(self, body: bytes, header: str) -> Event | JsonResponse:
        """Return the event that is to be accepted, or the answer where there is none.

        Args:
            body: the body, byte for byte as it was sent.
            header: the `Stripe-Signature` header, empty when there was none.
        """
        now = int(time.time())
        try:
            secret = signature.verify(
                body, header, self._secrets, now=now, tolerance=self._tolerance
            )
            self._metrics.count("verified_with", secret.name)
            event = parse(body)
        except signature.SignatureError as error:
            return self.refuse(400, error.code)
        except MalformedEvent as error:
            return self.refuse(400, "malformed_event", str(error))
        if event is None:
            return self._answered("ignored", None)
        if event.livemode != self._livemode:
            return self._answered("other_mode", event, hint=_HINTS["other_mode"])
        return event

    def accepted(self, event: Event, result: AcceptResult) -> JsonResponse:
        """Return the answer to an event that the inbox was asked to accept."""
        return self._answered(result, event, hint=_HINTS.get(result))

    def failed(self, event: Event, error: Exception) -> JsonResponse:
        """Return the answer when Redis refused, or did not answer, or may not be used."""
        is_full = isinstance(error, redis.OutOfMemoryError)
        answer = AcceptResult.MEMORY_SHORT if is_full else "redis_failed"
        return self._answered(answer, event, **explain(error).fields())

    def refuse(self, status: int, reason: str, hint: str | None = None) -> JsonResponse:
        """Return the response to an invalid delivery."""
        self._metrics.count("refusals", reason)
        log.warning("delivery_refused", status=status, reason=reason)
        hint = _HINTS[reason] if hint is None else hint
        return JsonResponse(status, {"received": False, "error": reason, "hint": hint})

    def _answered(self, answer: str, event: Event | None, **more: str | None) -> JsonResponse:
        status = 503 if answer in REFUSED_FOR_NOW else 200
        self._metrics.count("deliveries", answer)
        if event is not None:
            # An endpoint of the other mode may be one that somebody waits for.
            say = log.warning if answer == "other_mode" else log.info
            if status != 200:
                say = log.error
            say(
                "delivery_answered",
                reason=answer,
                status=status,
                event_id=event.id,
                kind=event.kind,
                form=event.form,
                session_id=event.session,
                account=event.account,
                **more,
            )
        return JsonResponse(status, {"received": status == 200, "answer": answer})


ALIVE = JsonResponse(200, {"alive": True})
"""The answer to a health check: the process is alive. Nothing else is asked."""


def readiness(faults: list[str]) -> JsonResponse:
    """Return the answer to a readiness check: whether deliveries would be accepted now."""
    state: Literal[200, 503] = 503 if faults else 200
    return JsonResponse(state, {"ready": not faults, "faults": faults})

"""The receiver: verify, accept, answer.

What the sender is told decides what it does next, so each answer is a decision (the delivery
contract, docs/design.md):

======================================== ====== ==============================================
case                                     answer why
======================================== ====== ==============================================
accepted, or known already               200    it is in the inbox
another event type, or the other mode    200    counted; sending it again would change nothing
not proven to come from Stripe           400    nothing is stored
signed, but no event                     400    nothing is stored
too large                                413    nothing is stored
inbox full, or Redis in trouble          503    "not now": Stripe keeps it and sends it again
======================================== ====== ==============================================
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import redis
from flask import Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException

from identity_webhooks.event import Event
from service import connection, logs, metrics, signature
from service.connection import UnsafeRedis
from service.event import MalformedEvent, parse
from service.inbox import AcceptResult, Inbox, keys
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOOK = "/webhooks/stripe"

MAX_BODY = 262_144
"""Bytes. A session has at most 50 metadata keys of 500 characters and no images; Stripe's own
sample handlers limit the body to 65,536 (https://docs.stripe.com/webhooks)."""

RETRY_AFTER = 30
"""Seconds, sent with 503. Stripe keeps its own schedule; other senders may heed it."""

_HEADERS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'"),
]
_HINTS = {
    "malformed_header": "no usable Stripe-Signature header: was this sent by Stripe?",
    "signature_mismatch": "check that STRIPE_WEBHOOK_SECRET is this endpoint's, and that no proxy"
    " changes the body",
    "signature_expired": "check this machine's clock, and for a proxy that delays requests",
}

_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

Answer = tuple[dict[str, Any], int]
"""The content of an answer, and its status."""

log = logs.get(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application; what gunicorn is pointed at.

    Exits with a message on standard error and code 3, on which gunicorn stops, when the settings
    are incomplete or Redis would lose events. gunicorn calls it once, before it forks: nothing in
    here starts a thread or keeps a connection.
    """
    try:
        settings = settings or Settings.load("web")
        logs.configure(settings)
        receiver = Receiver(settings)
        with receiver.redis:  # gunicorn forks from here: no process inherits a connection
            receiver.check_redis()
    except (SettingsError, UnsafeRedis) as error:
        sys.stderr.write(f"refusing to start: {error}\n")
        raise SystemExit(3) from None
    except redis.RedisError as error:
        # Not a reason to stay down: deliveries are answered 503 until it is there and safe.
        log.warning("redis_unreachable", error=type(error).__name__)
    app = Flask("service", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.add_url_rule("/healthz", view_func=healthz)
    app.add_url_rule("/readyz", view_func=receiver.readyz)
    app.add_url_rule("/metrics", view_func=receiver.metrics_page)
    app.register_error_handler(HTTPException, _http_error)
    app.after_request(_harden)
    app.wsgi_app = _hook_before(app.wsgi_app, receiver)  # type: ignore[assignment, method-assign]
    return app


def _hook_before(flask: WSGIApplication, receiver: Receiver) -> WSGIApplication:
    """Serve the hook without Flask, and everything else with it.

    Flask's request, routing and response would be a quarter of what a delivery costs (measured).
    What is given up: nothing registered with Flask (an error handler, an extension) sees the hook.
    """

    def entry(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != HOOK:
            return flask(environ, start_response)
        if environ["REQUEST_METHOD"] == "POST":
            return _respond(receiver.receive(environ), start_response)
        return _respond(lambda: ({"error": "only POST"}, 405), start_response)

    return entry


def _respond(answer: Callable[[], Answer], start_response: StartResponse) -> Iterator[bytes]:
    """Answer, once the server asks for the body: it may begin with other requests before."""
    content, status = answer()
    body = msgspec.json.encode(content)
    headers = [("Content-Type", "application/json"), *_HEADERS]
    if status == 503:
        headers.append(("Retry-After", str(RETRY_AFTER)))
    if status == 405:
        headers.append(("Allow", "POST"))
    headers.append(("Content-Length", str(len(body))))
    start_response(_STATUS_LINES[status], headers)
    yield body


class Receiver:
    """The routes of the web process and what they share."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secrets = settings.stripe_webhook_secret
        self._tolerance = settings.stripe_webhook_tolerance
        self._livemode = settings.livemode
        self.redis = connection.connect(settings, connection.WEB)
        self._inbox = Inbox(
            self.redis,
            limit=settings.inbox_limit,
            reopen_dead=settings.reopen_dead_on_redelivery,
        )
        self._metrics = metrics.Metrics(self.redis)
        self._redis_is_safe = False

    def check_redis(self) -> None:
        """Refuse a Redis that may lose events (UnsafeRedis); asked once per process."""
        if not self._redis_is_safe:
            connection.require_safe(self.redis, self._settings)
            self._redis_is_safe = True

    def receive(self, environ: WSGIEnvironment) -> Callable[[], Answer]:
        """Take one delivery: the whole way of an event into the inbox.

        The function returned waits for the inbox and gives the answer. A server may begin with
        several requests before it calls the first: their events share a round trip to Redis.
        """
        try:
            event = self._proven_event(environ)
        except Refusal as refusal:
            answer = self._refuse(refusal)
            return lambda: answer
        if event is None:
            return partial(self._answer, "ignored", None)
        if event.livemode != self._livemode:
            return partial(self._answer, "other_mode", event)
        return self._accept(event)

    def _proven_event(self, environ: WSGIEnvironment) -> Event | None:
        """Read the request; None when it is Stripe's but of no concern to us."""
        body = _read_body(environ)
        header = environ.get("HTTP_STRIPE_SIGNATURE", "")
        now = int(time.time())
        try:
            secret = signature.verify(
                body, header, self._secrets, now=now, tolerance=self._tolerance
            )
            self._metrics.count("verified_with", secret.name)
            return parse(body)
        except signature.SignatureError as error:
            raise Refusal(400, error.code, _HINTS[error.code]) from None
        except MalformedEvent as error:
            raise Refusal(400, "malformed_event", str(error)) from None

    def _accept(self, event: Event) -> Callable[[], Answer]:
        try:
            self.check_redis()
            answer: str = self._inbox.accept(event)
        except (redis.RedisError, UnsafeRedis):
            log.exception("redis_failed", event_id=event.id)
            answer = "redis_failed"
        return partial(self._answer, answer, event)

    def readyz(self) -> tuple[dict[str, Any], int]:
        """Whether deliveries would be accepted now, and if not, why."""
        faults = []
        try:
            if not self._settings.accept_redis_loss:
                faults += connection.loss_faults(self.redis)
            self.redis.set(keys.PROBE, 1, ex=60)
            if self._inbox.room() <= 0:
                faults.append("the inbox is at its limit (INBOX_LIMIT): are the workers running?")
        except redis.RedisError as error:
            faults.append(f"Redis cannot be reached or written ({type(error).__name__})")
        return {"ready": not faults, "faults": faults}, 503 if faults else 200

    def metrics_page(self) -> Response:
        """Answer with all metrics in the Prometheus text format."""
        try:
            self._metrics.flush()
            text = metrics.render(self.redis, self._inbox)
        except redis.RedisError:
            return Response("the counters are in Redis, which cannot be reached\n", status=503)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    def _answer(self, answer: str, event: Event | None) -> Answer:
        status = 503 if answer in {AcceptResult.FULL, "redis_failed"} else 200
        self._metrics.count("deliveries", answer)
        if event is not None:
            log.info(
                "delivery_answered",
                reason=answer,
                status=status,
                event_id=event.id,
                kind=event.kind,
                form=event.form,
                session_id=event.session,
                **({"account": event.account} if event.account else {}),
            )
        return {"received": status == 200, "answer": answer}, status

    def _refuse(self, refusal: Refusal) -> Answer:
        self._metrics.count("refusals", refusal.reason)
        log.warning("delivery_refused", status=refusal.status, reason=refusal.reason)
        body = {"received": False, "error": refusal.reason, "hint": refusal.hint}
        return body, refusal.status


class Refusal(Exception):
    """A delivery that is not taken: the status, a static reason, and what to check."""

    def __init__(self, status: int, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.hint = status, reason, hint


def healthz() -> dict[str, Any]:
    """Answer that the process is alive; asks nothing else."""
    return {"alive": True}


def _read_body(environ: WSGIEnvironment) -> bytes:
    # In chunks it has no length, and gunicorn ends it. gunicorn takes only digits for a length.
    length = int(environ["CONTENT_LENGTH"]) if environ.get("CONTENT_LENGTH") else None
    if length is not None and length > MAX_BODY:
        raise _too_large()
    try:
        body: bytes = environ["wsgi.input"].read(MAX_BODY + 1 if length is None else length)
    except Exception as error:
        # gunicorn's parser raises classes of its own for bad chunks.
        raise _unreadable() from error
    if len(body) > MAX_BODY:
        raise _too_large()
    if length is not None and len(body) != length:
        raise _unreadable()  # cut off on the way
    return body


def _too_large() -> Refusal:
    return Refusal(413, "body_too_large", f"the limit is {MAX_BODY} bytes")


def _unreadable() -> Refusal:
    return Refusal(400, "body_unreadable", "the body is not as its headers say")


def _http_error(error: HTTPException) -> tuple[dict[str, Any], int]:
    return {"error": error.name}, error.code or 500


def _harden(response: Response) -> Response:
    response.headers.extend(_HEADERS)
    if response.status_code == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response

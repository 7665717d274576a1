"""The Flask application of the web process: every route, the webhook among them.

It runs whole on any WSGI server. Under our own (service/server) deliveries and the two health
checks are answered in its loop, by the same `Receiver`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import redis
from flask import Flask, Response, request
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge

from service import connection, findings, logs
from service.console import pages
from service.findings import Finding
from service.inbox import asking
from service.ledger import Ledger
from service.limits import MAX_BODY
from service.metrics import Metrics
from service.metrics_page import Page
from service.receiver import ALIVE, HEADERS, RETRY_AFTER, JsonResponse, Receiver, readiness
from service.redis_errors import UnsafeRedis, explain
from service.settings import Settings, SettingsError

WEBHOOK_PATH = "/webhooks/stripe"
HEALTH_PATH, READY_PATH, METRICS_PATH = "/healthz", "/readyz", "/metrics"

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

_PATH_WORDS = {
    *("", "api", "v1", "v2", "webhook", "webhooks", "hook", "hooks", "callback", "callbacks"),
    *("stripe", "identity", "event", "events", "healthz", "readyz", "metrics", "health"),
}

log = logs.get(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application: gunicorn's entry point.

    Exits with a message on standard error and code 3, on which gunicorn stops, when the settings
    are incomplete or Redis would lose events. gunicorn calls it once, before it forks: nothing in
    here starts a thread or keeps a connection.
    """
    try:
        settings = settings or Settings.load("web")
        logs.configure(settings)
        web = Web(settings)
        with web.redis:  # gunicorn forks from here: no process inherits a connection
            found = web.look_at_redis()
            findings.require(found)
            web.page.follow()  # what is counted from here on is this instance's
        if said := findings.warnings(found, settings):
            log.warning("redis_vouched_for", faults=said)
    except (SettingsError, UnsafeRedis) as error:
        sys.stderr.write(f"refusing to start: {error}\n")
        raise SystemExit(3) from None
    except redis.RedisError as error:
        # The process starts anyway: deliveries get 503 until Redis answers and is safe.
        log.warning("redis_unreachable", **explain(error).fields())
    app = Flask("service", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # Werkzeug silently truncates a chunked body at this limit. One byte more makes that visible.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY + 1
    app.url_map.merge_slashes = False  # Stripe follows no redirects
    app.before_request(_refuse_repeated_slash)
    app.add_url_rule(WEBHOOK_PATH, view_func=web.webhook, methods=["POST"])
    app.add_url_rule(HEALTH_PATH, view_func=healthz)
    app.add_url_rule(READY_PATH, view_func=web.readyz)
    app.add_url_rule(METRICS_PATH, view_func=web.metrics_page)
    app.register_error_handler(HTTPException, web.http_error)
    if web.settings.console_password_hash or web.settings.console_user_header:
        app.register_blueprint(pages.blueprint(web.settings, web.redis))
    app.after_request(_harden)
    app.extensions["identity_webhooks"] = web
    return app


class Web:
    """The routes and what they share. A server of ours takes `settings` and `receiver` from it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis = connection.connect(settings, connection.WEB)
        own = Ledger()
        self.metrics = Metrics(self.redis, "web", own)
        self.page = Page(
            self.redis,
            self.metrics,
            own,
            settings=settings,
            look=self.look_at_redis,
        )
        self.receiver = Receiver(settings, self.metrics)
        self._inbox = connection.inbox(
            settings, self.redis, reopen_dead=settings.reopen_dead_on_redelivery
        )
        self._look_again = 0.0

    def look_at_redis(self) -> list[Finding]:
        """Check this Redis. If it is unfit, the next delivery checks again."""
        self._look_again = 0.0
        found = findings.look(asking(self.redis), self.settings).found
        if all(each.passes for each in found if each.is_fault):
            self._look_again = time.monotonic() + findings.PERIOD
        return found

    def webhook(self) -> Response:
        """Handle one delivery: verify it and accept its event into the inbox."""
        return _response(self._take())

    def _take(self) -> JsonResponse:
        body = self._read_body()
        if isinstance(body, JsonResponse):
            return body
        decision = self.receiver.decide(body, request.headers.get("Stripe-Signature", ""))
        if isinstance(decision, JsonResponse):
            return decision
        try:
            if time.monotonic() >= self._look_again:
                findings.require(self.look_at_redis())
            asked = time.monotonic()
            result = self._inbox.accept(decision)
            self.metrics.observe("accept_seconds", time.monotonic() - asked)
            return self.receiver.accepted(decision, result)
        except redis.RedisError as error:
            self._look_again = 0.0
            return self.receiver.failed(decision, error)

    def _read_body(self) -> bytes | JsonResponse:
        chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
        if chunked and not request.environ.get("wsgi.input_terminated"):
            return self.receiver.refuse(411, "body_not_handed_on")
        try:
            body = request.get_data(cache=False)
        except RequestEntityTooLarge:
            return self.receiver.refuse(413, "body_too_large")
        except Exception:  # noqa: BLE001 (each server raises classes of its own)
            return self.receiver.refuse(400, "body_unreadable")
        if len(body) > MAX_BODY:
            return self.receiver.refuse(413, "body_too_large")
        return body

    def readyz(self) -> Response:
        """Respond whether deliveries would be accepted now and, if not, why."""
        try:
            faults = findings.faults(self.look_at_redis())
            if not faults and self._inbox.room() <= 0:
                faults.append(findings.INBOX_IS_FULL)
        except redis.RedisError as error:
            faults = [f"Redis cannot be reached: {explain(error)}"]
        return _response(readiness(faults))

    def metrics_page(self) -> Response:
        """Answer with all metrics in the Prometheus text format, also while Redis is away."""
        return Response(self.page.render(), content_type=CONTENT_TYPE_LATEST)

    def http_error(self, error: HTTPException) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Answer an error of HTTP in JSON. Unknown paths are logged and counted."""
        if isinstance(error, NotFound):
            # A webhook endpoint with a wrong path gets only 404s until Stripe disables it.
            method = request.method if request.method in _METHODS else "other"
            self.metrics.count("unknown_paths", method)
            # As it was sent: `request.path` has no repeated slash at its beginning.
            path = known_words(request.environ["PATH_INFO"])
            log.warning("unknown_path", path=path, method=method, status=404)
        allowed = getattr(error, "valid_methods", None)
        headers = {"Allow": ", ".join(allowed)} if allowed else {}
        return {"error": error.name}, error.code or 500, headers


def known_words(path: str) -> str:
    """Return a path with every segment masked that is not a word of webhook paths.

    The result shows how a wrong path differs from ours, but no text that the sender chose.
    """
    words = [word if word.lower() in _PATH_WORDS else "*" for word in path.split("/")[:10]]
    return "/".join(words)


def healthz() -> Response:
    """Answer that the process is alive; asks nothing else."""
    return _response(ALIVE)


def _refuse_repeated_slash() -> None:
    """Treat `//webhooks/stripe` as an unknown path, although Werkzeug drops the first slash."""
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


def _response(answer: JsonResponse) -> Response:
    return Response(answer.body, answer.status, content_type="application/json")


def _harden(response: Response) -> Response:
    for name, value in HEADERS:
        response.headers.setdefault(name, value)
    if response.status_code == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response

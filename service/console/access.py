"""Who a request of the console comes from, and whether it may do what it asks for.

A browser has one cookie, a random token. Redis knows it by its hash, once somebody has logged in
with it; so a session can be ended, by logging out or by another password, and whoever reads Redis
has no session. Every form carries a proof made of the token, which another site cannot read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

import redis
from flask import abort, g, redirect, request, url_for
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response

from service import logs
from service.console.people import Person, name_of
from service.inbox import keys
from service.inbox.record import text_of
from service.settings import Settings

COOKIE = "iw_console"

SESSION = 12 * 3600
"""Seconds after which one has to log in again."""

ATTEMPTS, WINDOW = 10, 600
"""Log-ins tried with one name, and in how many seconds. All names that nobody has count as one."""

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OPEN = frozenset({"console.log_in", "console.try_log_in", "console.static"})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})

log = logs.get(__name__)


class Access:
    """Who may see the console, and who may act. Every method may raise `redis.RedisError`."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self._redis = client
        self._people = {each.name: each for each in settings.console_password_hash}
        self._header = settings.console_user_header
        self._proxies = [ipaddress.ip_network(each) for each in settings.console_proxies]
        self._operators = frozenset(settings.console_operators)
        # Compared for unknown names, so that the answer takes as long as for known ones.
        self._nobody = generate_password_hash(secrets.token_hex())

    @property
    def has_passwords(self) -> bool:
        """Whether one can log in here, and not only at a proxy."""
        return bool(self._people)

    def check(self) -> Response | None:
        """Find out who asks, and refuse what they may not do. Runs before each request."""
        if request.endpoint == "console.static":
            return None
        token = request.cookies.get(COOKIE, "")
        g.new_cookie = len(token) != 43
        g.token = secrets.token_urlsafe(32) if g.new_cookie else token
        g.person = self._by_proxy() or (None if g.new_cookie else self._by_session(token))
        if request.method == "POST":
            self._check_form()
        if request.endpoint in _OPEN:
            return None
        if g.person is None:
            here = request.full_path.removesuffix("?") if request.method == "GET" else None
            return redirect(url_for("console.log_in", next=here), 303)
        acts = request.method == "POST" and request.endpoint != "console.log_out"
        if acts and not g.person.may_act:
            abort(403, "You may look at everything here, and do nothing.")
        return None

    def _by_proxy(self) -> Person | None:
        """Return the person that a trusted proxy names; None if there is none."""
        named = request.headers.get(self._header, "") if self._header else ""
        if not named or "," in named:  # a comma: there was another header, which the proxy let by
            return None
        try:
            peer = ipaddress.ip_address(request.remote_addr or "")
        except ValueError:  # a Unix socket
            return None
        if not any(peer in each for each in self._proxies):
            return None
        return Person(name_of(named), named in self._operators)

    def _by_session(self, token: str) -> Person | None:
        name, _, mark = text_of(self._redis.get(_session_key(token)) or "").partition(" ")
        person = self._people.get(name)
        return person if person and hmac.compare_digest(mark, _mark(person)) else None

    def _check_form(self) -> None:
        """Refuse a form that is not of this console, or of another session."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            abort(403, "This form was sent by another site.")
        if g.new_cookie:
            abort(
                403,
                "Your browser sent no cookie. The console needs cookies, and HTTPS or localhost.",
            )
        given = request.form.get("proof", "")
        if not hmac.compare_digest(given.encode(), proof().encode()):
            abort(403, "This form is out of date. Go back, load the page again, and repeat it.")

    def log_in(self, name: str, password: str) -> bool | None:
        """Begin a session; False where name and password do not fit, None after too many tries."""
        person = self._people.get(name)
        failed = f"{keys.CONSOLE}:failed:{name if person else ''}"
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(failed, 0, ex=WINDOW, nx=True)
            pipe.incr(failed)
            _, tries = pipe.execute()
        who = person.name if person else None
        if int(tries) > ATTEMPTS:
            log.warning("console_login_limited", by=who)
            return None
        fits = check_password_hash(person.password_hash if person else self._nobody, password)
        if not (person and fits):
            log.warning("console_login_refused", by=who, count=int(tries))
            return False
        # A token that was known before, to another person at the same machine, is not kept.
        g.token, g.new_cookie, g.person = secrets.token_urlsafe(32), True, person
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(_session_key(g.token), f"{person.name} {_mark(person)}", ex=SESSION)
            pipe.delete(failed)
            pipe.execute()
        log.info("console_login", by=person.name)
        return True

    def log_out(self) -> None:
        """End the session."""
        self._redis.delete(_session_key(g.token))
        log.info("console_logout", by=g.person.name)


def harden(response: Response) -> Response:
    """Add the cookie and the headers. Runs after each request."""
    if g.get("new_cookie"):
        # Plain HTTP is for this machine only: elsewhere a browser does not send this cookie by it.
        secure = urlsplit(f"//{request.host}").hostname not in _LOCAL
        response.set_cookie(
            COOKIE,
            g.token,
            path=url_for("console.overview"),
            max_age=SESSION,
            secure=secure,
            httponly=True,
            samesite="Lax",
        )
    response.headers.update(SECURITY)
    if request.endpoint == "console.static" and response.status_code == 200:
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def proof() -> str:
    """Return what a form carries to show that it is of this browser's session."""
    return hmac.new(g.token.encode(), b"form", hashlib.sha256).hexdigest()


def _session_key(token: str) -> str:
    return f"{keys.CONSOLE}:session:{hashlib.sha256(token.encode()).hexdigest()}"


def _mark(person: Person) -> str:
    """Return a digest of the password's hash: it changes with the password."""
    return hashlib.sha256(person.password_hash.encode()).hexdigest()[:16]

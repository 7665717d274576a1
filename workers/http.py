"""The HTTP client that Stripe's SDK is given: urllib3, with connections kept and shared by threads.

The limit of a socket holds for each read. Whoever sends a byte at a time would hold a thread for as
long as that takes, so an answer has a limit as a whole (`TimedResponse`).

The SDK's own default (requests) costs 1.2 ms of CPU a call, urllib3 0.13 ms (measured); it also
follows redirects, which Stripe does not send. Of proxies in the environment, `HTTPS_PROXY` is used,
through which a key goes encrypted; one for plain HTTP would see it.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import stripe
import urllib3
from urllib3.util import make_headers, parse_url

from service.metrics import Metrics
from service.redis_errors import code_of
from service.settings import Settings
from workers import summary
from workers.summary import StripeCall

CONNECT_TIMEOUT, READ_TIMEOUT = 3.0, 10.0
"""Seconds: for a connection to one address, and from the end of the request to the last byte of the
answer. The SDK's default of 80 would outlast many leases; these only cost a retry."""

_ID = re.compile(r"^[a-z]+_.*[A-Z0-9]")

CONNECTIONS = 50
"""Connections to Stripe that a process keeps open; more are closed after use."""


class TimedResponse(http.client.HTTPResponse):
    """An answer whose last byte has to come before a moment; also that of a proxy to CONNECT."""

    def __init__(
        self, sock: socket.socket, *args: Any, until: float | None = None, **options: Any
    ) -> None:
        """Take the moment, by `time.monotonic`; without it, `READ_TIMEOUT` from now on."""
        super().__init__(sock, *args, **options)
        until = time.monotonic() + READ_TIMEOUT if until is None else until
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, until))


class _Timed(io.RawIOBase):
    """What comes out of a socket until a moment."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until
        # It keeps the socket open after `close`, as a reader of http.client's does.
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        before = self._sock.gettimeout()
        self._sock.settimeout(remaining(self._until))
        try:
            return self._raw.readinto(buffer)
        finally:
            self._sock.settimeout(before)  # of the next request, on a connection that is kept

    def close(self) -> None:
        self._raw.close()
        super().close()


def remaining(until: float) -> float:
    """Return the seconds until a moment.

    Raises:
        TimeoutError: there are none.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _TimedConnection(urllib3.connection.HTTPConnection):
    response_class = TimedResponse


class _TimedTlsConnection(urllib3.connection.HTTPSConnection):
    response_class = TimedResponse


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _TimedConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TimedTlsConnection


class PooledClient(stripe.HTTPClient):
    """What the SDK needs of an HTTP client."""

    name = "urllib3"

    def __init__(self, base: str, metrics: Metrics | None = None) -> None:
        """Take where the API is, and what counts the calls; proxy and certificates are those of the
        environment.
        """
        super().__init__()
        self._metrics = metrics
        settings = Settings.load("tool")
        options: dict[str, Any] = {
            "maxsize": CONNECTIONS,
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            "retries": False,  # the SDK's own, under one idempotency key
            "cert_reqs": "CERT_REQUIRED",
            "ca_certs": str(settings.stripe_ca_bundle or stripe.ca_bundle_path),
        }
        self._pool = urllib3.PoolManager(**options)
        proxy, there = settings.https_proxy, urlsplit(base)
        if proxy and there.scheme == "https" and not _is_direct(there.hostname, settings.no_proxy):
            url = proxy.get_secret_value()
            user = parse_url(url).auth
            # make_headers encodes in Latin-1, so each byte is sent as it is escaped here.
            headers = make_headers(proxy_basic_auth=unquote(user, "latin-1")) if user else None
            self._pool = urllib3.ProxyManager(url, proxy_headers=headers, **options)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def request(  # type: ignore[override]  # the SDK's own clients give bytes, and take no usage
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Make one request; the body, the status and the headers of the answer.

        Raises:
            stripe.APIConnectionError: there was no whole answer; `should_retry` says whether to
                ask again at once.
        """
        began, operation = time.monotonic(), _operation(method, url)
        try:
            answer = self._pool.request(
                method, url, headers=headers, body=post_data, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            self._note(StripeCall(operation, "none", time.monotonic() - began, None))
            self._give_up(error)
        took, request_id = time.monotonic() - began, answer.headers.get("request-id")
        self._note(StripeCall(operation, str(answer.status), took, request_id))
        return answer.data, answer.status, answer.headers

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _note(self, call: StripeCall) -> None:
        summary.current().calls.append(call)
        if self._metrics is not None:
            self._metrics.observe("stripe_seconds", call.seconds, call.operation, call.status)

    def _give_up(self, error: urllib3.exceptions.HTTPError) -> NoReturn:
        raise stripe.APIConnectionError(  # type: ignore[no-untyped-call]
            f"no answer from Stripe ({type(error).__name__})",
            code=_code_of(error),
            should_retry=not isinstance(error, urllib3.exceptions.SSLError),
        ) from None


def _operation(method: str, url: str) -> str:
    """Return what is asked, without whom it is asked about: ids have an underscore and a digit or a
    capital in them, words of the API do not.
    """
    words = urlsplit(url).path.split("/")
    return f"{method.upper()} {'/'.join('*' if _ID.search(word) else word for word in words)}"


def _code_of(error: urllib3.exceptions.HTTPError) -> str | None:
    """Return what kept us from Stripe, such as ECONNREFUSED, or PROXY_407 where a proxy did."""
    code = code_of(error)
    if isinstance(error, urllib3.exceptions.ProxyError):
        status = re.search(r"Tunnel connection failed: (\d{3})", str(error.original_error))
        return f"PROXY_{status[1] if status else code}"
    return code


def _is_direct(host: str | None, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host: itself, a domain it is in, or all (`*`)."""
    names = [each.strip().lower() for each in no_proxy.split(",") if each.strip()]
    names = [each.removeprefix("*").removeprefix(".") for each in names]
    return any(not name or host == name or str(host).endswith(f".{name}") for name in names)

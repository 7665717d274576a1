"""Tells a service of yours, in any language, of each event: on when FORWARD_TO is set.

A small JSON message without personal data is posted, signed by the rules of standardwebhooks.com.
Anything but a 2xx is tried again, as with every handler; each URL is a handler of its own. The
header `webhook-id` is the same each time: the receiver keeps it to have its effect once.
"""

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from identity_webhooks import Retry, Verification, on
from service import logs
from workers.http import TimedResponse, remaining

WITHIN = 15.0
"""Seconds from the look-up of the host to the status of the answer, the receiver's own work
included; whatever it does and however many addresses it has. A handler has 60."""

CONNECT = 5.0
"""Seconds of these for one address."""

TRIED = 3
"""Addresses of one host, at most."""

# What `is_global` of every Python that we run on, or one of them, takes for one receiver's.
_SPECIAL = [
    ipaddress.ip_network(each)
    for each in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an address of IPv4 in it, a private one perhaps
        "3fff::/20",  # documentation
    )
]
# All that is given to networks so far; NAT64, mapped and compatible addresses of IPv4 are outside.
_UNICAST = ipaddress.ip_network("2000::/3")


class Forward:
    """Posts to one URL.

    Args:
        url: where to.
        secret: what to sign with, whsec_ and base64.
        private: whether private addresses may be connected to.
    """

    def __init__(self, url: str, secret: str, *, private: bool) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._tls = ssl.create_default_context() if secure else None
        self._host = (parts.hostname or "").rstrip(".")  # certificates name it without
        self._port = parts.port or (443 if secure else 80)
        self._netloc = parts.netloc
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._webhook = Webhook(secret)
        self._private = private
        self._turn = threading.Lock()
        self._lookup: Future[list[str]] | None = None

    @on("*")
    def send(self, v: Verification) -> None:
        """Post the message, to the first of the host's addresses that takes connections."""
        failure: Exception = OSError()
        until = time.monotonic() + WITHIN
        for address in self._addresses(until)[:TRIED]:
            with ExitStack() as stack:
                try:
                    sock = stack.enter_context(self._connected(address, until))
                except OSError as error:
                    failure = error
                    continue
                try:
                    status = self._post(sock, v, until)
                except (OSError, http.client.HTTPException) as error:
                    failure = error
                    break
            if 200 <= status < 300:
                return
            raise Retry(f"the receiver answered {status}")
        raise Retry(f"the receiver cannot be reached: {type(failure).__name__}")

    def _addresses(self, until: float) -> list[str]:
        """Return the addresses that may be connected to.

        What was checked is what is connected to: the name is not looked up again.
        """
        try:
            addresses = self._look_up().result(remaining(until))
        except TimeoutError:
            raise Retry("the receiver's host is not found in time") from None
        except (OSError, UnicodeError):
            raise Retry("the receiver's host is not found") from None
        if not self._private and not all(map(is_public, addresses)):
            raise Retry("the receiver has a private address: FORWARD_PRIVATE=1 allows it")
        return addresses

    def _look_up(self) -> Future[list[str]]:
        """Look the host up on a thread, or join in with who does: nothing ends `getaddrinfo` but
        its answer, and a resolver that hangs is to hold one thread, however many events wait.
        """
        with self._turn:
            if self._lookup is None or self._lookup.done():
                answer: Future[list[str]] = Future()
                threading.Thread(target=self._resolve, args=[answer], daemon=True).start()
                self._lookup = answer  # not before: a thread that cannot start answers nobody
            return self._lookup

    def _resolve(self, answer: Future[list[str]]) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            answer.set_result(list(dict.fromkeys(str(each[4][0]) for each in found)))
        except BaseException as error:  # noqa: BLE001 (who waits for it raises it)
            answer.set_exception(error)

    @contextmanager
    def _connected(self, address: str, until: float) -> Iterator[socket.socket]:
        """Connect to an address, by TLS if the URL says so.

        Raises:
            OSError: it cannot be connected to in time, or is not whom its certificate names.
        """
        limit = min(CONNECT, remaining(until))
        with socket.create_connection((address, self._port), limit) as sock:
            if self._tls is None:
                yield sock
            else:
                # The handshake has the socket's limit as a whole.
                with self._tls.wrap_socket(sock, server_hostname=self._host) as secured:
                    yield secured

    def _post(self, sock: socket.socket, v: Verification, until: float) -> int:
        """Post the message; the status of the answer. What else it says is of no interest."""
        now = datetime.now(UTC)
        body, name = message(v), v.idempotency_key.partition(":")[0]
        connection = http.client.HTTPConnection(self._host)
        connection.sock, connection.auto_open = sock, 0
        connection.response_class = partial(TimedResponse, until=until)  # type: ignore[assignment]
        sock.settimeout(remaining(until))
        connection.request(
            "POST",
            self._target,
            body=body.encode(),
            headers={
                "Host": self._netloc,
                "Connection": "close",
                "Content-Type": "application/json",
                "User-Agent": "identity-webhooks",
                "webhook-id": name,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": self._webhook.sign(name, now, body),
            },
        )
        with connection.getresponse() as answer:
            return answer.status


def message(v: Verification) -> str:
    """Return the body: ids, times and codes, and the subject unless it looks personal."""
    subject = v.subject
    if subject and logs.redact(subject) != subject:  # an e-mail address, a name
        subject = None
    data = {
        "session": v.event.session,
        "account": v.event.account,
        "livemode": v.event.livemode,
        "subject": subject,
        "outcome": v.outcome.kind,
        "reason": v.outcome.reason,
        "user_can_retry": v.outcome.user_can_retry,
        "redacted": v.redacted,
    }
    created = datetime.fromtimestamp(v.event.created, UTC).isoformat()
    return json.dumps({"type": v.event.type, "timestamp": created, "data": data})


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's, for one receiver."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    unicast = ip.version == 4 or ip in _UNICAST
    special = any(ip.version == each.version and ip in each for each in _SPECIAL)
    return ip.is_global and unicast and not ip.is_multicast and not special

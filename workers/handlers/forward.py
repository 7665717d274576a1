"""Tells a service of yours, in any language, of each event: on when FORWARD_TO is set.

A small JSON message without personal data is posted, signed by the rules of standardwebhooks.com.
Anything but a 2xx is tried again, as with every handler; each URL is a handler of its own. The
header `webhook-id` is the same each time: the receiver keeps it to have its effect once.
"""

import ipaddress
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from urllib.parse import urlsplit

import urllib3
from standardwebhooks import Webhook
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from identity_webhooks import Retry, Verification, on
from service import logs

TIMEOUT = urllib3.Timeout(connect=5, read=10)
"""Seconds; the read may have to wait for the receiver's own work."""

TRIED = 3
"""Addresses of one host, at most: together they take less time than a handler has."""

# Addresses of IPv6 that stand for one of IPv4, a private one perhaps: NAT64, Teredo, 6to4.
_TRANSLATED = [ipaddress.ip_network(n) for n in ("64:ff9b::/32", "2001::/32", "2002::/16")]


class Forward:
    """Posts to one URL.

    Args:
        url: where to.
        secret: what to sign with, whsec_ and base64.
        private: whether private addresses may be connected to.
    """

    def __init__(self, url: str, secret: str, *, private: bool) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._netloc = parts.netloc
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._webhook = Webhook(secret)
        self._private = private

    @on("*")
    def send(self, v: Verification) -> None:
        """Post the message, to the first of the host's addresses that takes connections."""
        failure: Exception = OSError()
        for address in islice(self._addresses(), TRIED):
            try:
                status = self._post(address, v)
            except (NewConnectionError, ConnectTimeoutError) as error:
                failure = error
            except HTTPError as error:
                failure = error
                break
            else:
                if 200 <= status < 300:
                    return
                raise Retry(f"the receiver answered {status}")
        raise Retry(f"the receiver cannot be reached: {type(failure).__name__}")

    def _addresses(self) -> Iterator[str]:
        """Yield the addresses that may be connected to.

        What was checked is what is connected to: the name is not looked up again.
        """
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError:
            raise Retry("the receiver's host is not found") from None
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if not self._private and not all(map(is_public, addresses)):
            raise Retry("the receiver has a private address: FORWARD_PRIVATE=1 allows it")
        yield from addresses

    def _post(self, address: str, v: Verification) -> int:
        now = datetime.now(UTC)
        body, name = message(v), v.idempotency_key.partition(":")[0]
        with self._connections(address) as pool:
            answer = pool.urlopen(
                "POST",
                self._target,
                body=body.encode(),
                headers={
                    "Host": self._netloc,
                    "Content-Type": "application/json",
                    "User-Agent": "identity-webhooks",
                    "webhook-id": name,
                    "webhook-timestamp": str(int(now.timestamp())),
                    "webhook-signature": self._webhook.sign(name, now, body),
                },
                retries=False,
                redirect=False,
                preload_content=False,  # what it answers is of no interest
            )
            answer.close()
            return answer.status

    def _connections(self, address: str) -> urllib3.HTTPConnectionPool:
        if not self._secure:
            return urllib3.HTTPConnectionPool(address, self._port, timeout=TIMEOUT)
        return urllib3.HTTPSConnectionPool(
            address,
            self._port,
            timeout=TIMEOUT,
            server_hostname=self._host,
            assert_hostname=self._host,
        )


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
    translated = any(ip in network for network in _TRANSLATED)
    return ip.is_global and not ip.is_multicast and not translated

"""The HTTP client that Stripe's SDK is given: urllib3, with connections kept and shared by threads.

The SDK's own default (requests) costs 1.2 ms of CPU a call, urllib3 0.13 ms (measured); it also
follows redirects, and takes proxies from the environment. Stripe sends no redirects, and keys go to
Stripe and nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import stripe
import urllib3

CONNECT_TIMEOUT, READ_TIMEOUT = 3.0, 10.0
"""Seconds. The SDK's default of 80 would outlast many leases; these only cost a retry."""

CONNECTIONS = 50
"""Connections to Stripe that a process keeps open; more are closed after use."""


class PooledClient(stripe.HTTPClient):
    """What the SDK needs of an HTTP client."""

    name = "urllib3"

    def __init__(self) -> None:
        super().__init__()
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            retries=False,  # the SDK's own, under one idempotency key
            cert_reqs="CERT_REQUIRED",
            ca_certs=stripe.ca_bundle_path,
        )

    def request(  # type: ignore[override]  # the SDK's own clients give bytes, and take no usage
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Make one request; the body, the status and the headers of the answer.

        Raises:
            stripe.APIConnectionError: there was no whole answer; `should_retry` says whether to
                ask again at once.
        """
        try:
            answer = self._pool.request(
                method, url, headers=headers, body=post_data, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            self._give_up(error)
        return answer.data, answer.status, answer.headers

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _give_up(self, error: urllib3.exceptions.HTTPError) -> NoReturn:
        raise stripe.APIConnectionError(  # type: ignore[no-untyped-call]
            f"no answer from Stripe ({type(error).__name__})",
            should_retry=not isinstance(error, urllib3.exceptions.SSLError),
        ) from None

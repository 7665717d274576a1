"""Where events are delivered: webhook endpoints, their secrets, and what each is subscribed to."""

import secrets
from typing import Any

from stripe_identity_sandbox import lifetimes
from stripe_identity_sandbox.journal import Journal, new_id
from stripe_identity_sandbox.objects import EVENT_TYPES, Endpoint, Event, Illegal

#: "Up to 16 per account" (docs.stripe.com/webhooks).
MAX_ENDPOINTS = 16


class Endpoints:
    """The endpoints of every account, oldest first."""

    def __init__(self, journal: Journal) -> None:
        self.by_id: dict[str, Endpoint] = {}
        self._journal = journal

    def add(
        self,
        url: str,
        *,
        enabled_events: list[str],
        account: str | None = None,
        secret: str | None = None,
        prefix: str = "we_1",
        **fields: Any,
    ) -> Endpoint:
        """Make an endpoint; without a secret one is made up.

        Raises:
            Illegal: the account has 16 already.
        """
        if len(self.of(account)) >= MAX_ENDPOINTS:
            # The limit is documented, the sentence is not.
            raise Illegal(f"You have reached the maximum of {MAX_ENDPOINTS} webhook endpoints.")
        endpoint = Endpoint(
            id=new_id(prefix),
            created=int(self._journal.now()),
            url=url,
            enabled_events=enabled_events,
            account=account,
            secrets=[(secret or _new_secret(), None)],
            **fields,
        )
        self._journal.keep(self.by_id, endpoint)
        return endpoint

    def of(self, account: str | None) -> list[Endpoint]:
        """Return the endpoints of one account, oldest first."""
        return [endpoint for endpoint in self.by_id.values() if endpoint.account == account]

    def roll_secret(self, endpoint: Endpoint, *, overlap: float) -> str:
        """Give an endpoint a new secret; the old one signs too for ``overlap`` seconds."""
        expiry = self._journal.now() + min(overlap, lifetimes.ROLL_OVERLAP)
        old = [(secret, ends or expiry) for secret, ends in endpoint.secrets]
        endpoint.secrets = [(_new_secret(), None), *old]
        self._journal.touch(endpoint)
        return endpoint.secrets[0][0]

    def signing_secrets(self, endpoint: Endpoint) -> list[str]:
        """Return the secrets that sign now, newest first."""
        now = self._journal.now()
        return [secret for secret, ends in endpoint.secrets if ends is None or ends > now]

    def subscribed(self, event: Event) -> list[Endpoint]:
        """Return the endpoints that take an event."""
        return [endpoint for endpoint in self.by_id.values() if _takes(endpoint, event)]


def _takes(endpoint: Endpoint, event: Event) -> bool:
    if endpoint.status != "enabled":
        return False
    if endpoint.account is not None:
        if endpoint.account != event.account:
            return False
    elif endpoint.connect is not None and endpoint.connect != bool(event.account):
        return False
    name = f"v1.{event.type}" if endpoint.form == "thin" else event.type
    # docs.stripe.com/identity/verification-sessions#events: redacted has to be named.
    wildcard = "*" in endpoint.enabled_events and not name.endswith(".redacted")
    return wildcard or name in endpoint.enabled_events


def all_events(form: str) -> list[str]:
    """Return every event type by name, so that ``redacted`` is among them."""
    return [f"v1.{name}" if form == "thin" else name for name in EVENT_TYPES]


def _new_secret() -> str:
    return f"whsec_{secrets.token_hex(16)}"

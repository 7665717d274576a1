"""The API client: the eight operations of Stripe Identity, and events, on Stripe's own SDK.

What the SDK leaves to its user is settled here: timeouts (its default is 80 s), retries (a
`StripeClient` makes none by itself, measured), telemetry off, and every failure
raised as `StripeFailure`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar, cast

import stripe
from stripe.identity import VerificationSession

from identity_webhooks.event import Event, Form
from identity_webhooks.verification import SENSITIVE, Sensitive
from service.metrics import Metrics
from service.settings import ORGANIZATION_KEY, Settings
from workers.failures import Call, StripeFailure, kind_of
from workers.http import PooledClient
from workers.verification import without_placeholders

if TYPE_CHECKING:
    from stripe import ListObject, RequestOptions
    from stripe.identity import VerificationReport
    from stripe.params.identity import (
        VerificationReportListParams,
        VerificationSessionCreateParams,
        VerificationSessionListParams,
        VerificationSessionUpdateParams,
    )
    from stripe.v2.core import Event as CoreEvent

NETWORK_RETRIES = 1
"""Immediate retries by the SDK on connection errors, 409 and 5xx, under one idempotency key."""

PAGE = 100
"""Objects in a page of a list, at most."""

LONGEST_RETRY_AFTER = 3600.0
"""Longest `Retry-After` that is honoured, in seconds."""

_EXPAND = ["last_verification_report", "verified_outputs"]
EVENT_TYPES = [
    f"identity.verification_session.{kind}"
    for kind in ("created", "processing", "requires_input", "verified", "canceled", "redacted")
]

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """Where Stripe sends events.

    Attributes:
        id: `we_...`, or `ed_...` of an event destination.
        form: of the events.
        url: where they go; None where Stripe does not show it.
        events: the types of events, `*` for all; those of thin ones begin with `v1.`.
        livemode: of which mode it is.
        status: enabled or disabled.
        api_version: in which snapshots are sent; None for the account's own.
        secret: the signing secret, shown once it is made; else empty.
    """

    id: str
    form: Form
    url: str | None
    events: frozenset[str]
    livemode: bool
    status: str
    api_version: str | None = None
    secret: str = ""

    @property
    def is_of_identity(self) -> bool:
        """Whether it is sent anything of Identity."""
        return any(each == "*" or "identity." in each for each in self.events)


class StripeApi:
    """Stripe Identity. Every method raises `StripeFailure`, and nothing else of the SDK's."""

    def __init__(
        self,
        api_key: str,
        *,
        base: str = "https://api.stripe.com",
        retries: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Take a key, where the API is, how often to ask again at once if not as usual, and what
        counts the calls.

        With the key of an organization, every call has to name an account, one's own too
        (https://docs.stripe.com/keys/organization-api-keys).
        """
        stripe.enable_telemetry = False
        self.is_organization = api_key.startswith(ORGANIZATION_KEY)
        client = stripe.StripeClient(
            api_key,
            base_addresses={"api": base},
            max_network_retries=NETWORK_RETRIES if retries is None else retries,
            http_client=PooledClient(base, metrics),
        )
        self._sessions = client.v1.identity.verification_sessions
        self._reports = client.v1.identity.verification_reports
        self._events = client.v1.events
        self._core_events = client.v2.core.events
        self._accounts = client.v1.accounts
        self._endpoints = client.v1.webhook_endpoints
        self._destinations = client.v2.core.event_destinations

    @classmethod
    def from_settings(cls, settings: Settings, metrics: Metrics | None = None) -> StripeApi:
        """Build the client for `STRIPE_API_KEY`."""
        key = settings.stripe_api_key
        secret = key.get_secret_value() if key else ""
        return cls(secret, base=settings.stripe_api_base, metrics=metrics)

    def create_session(
        self, params: VerificationSessionCreateParams, *, account: str | None = None
    ) -> VerificationSession:
        """POST /v1/identity/verification_sessions."""
        return _call(lambda: self._sessions.create(params, self._for(account)))

    def retrieve_session(
        self, session: str, *, expand: Iterable[str] = (), account: str | None = None
    ) -> VerificationSession:
        """GET /v1/identity/verification_sessions/{session}."""
        return _call(
            lambda: self._sessions.retrieve(session, {"expand": list(expand)}, self._for(account))
        )

    def update_session(
        self, session: str, params: VerificationSessionUpdateParams, *, account: str | None = None
    ) -> VerificationSession:
        """POST /v1/identity/verification_sessions/{session}."""
        return _call(lambda: self._sessions.update(session, params, self._for(account)))

    def list_sessions(
        self, params: VerificationSessionListParams | None = None, *, account: str | None = None
    ) -> ListObject[VerificationSession]:
        """GET /v1/identity/verification_sessions: one page, newest first."""
        return _call(lambda: self._sessions.list(params or {}, self._for(account)))

    def cancel_session(
        self, session: str, *, expand: Iterable[str] = (), account: str | None = None
    ) -> VerificationSession:
        """POST /v1/identity/verification_sessions/{session}/cancel."""
        return _call(
            lambda: self._sessions.cancel(session, {"expand": list(expand)}, self._for(account))
        )

    def redact_session(
        self, session: str, *, expand: Iterable[str] = (), account: str | None = None
    ) -> VerificationSession:
        """POST /v1/identity/verification_sessions/{session}/redact."""
        return _call(
            lambda: self._sessions.redact(session, {"expand": list(expand)}, self._for(account))
        )

    def retrieve_report(
        self, report: str, *, expand: Iterable[str] = (), account: str | None = None
    ) -> VerificationReport:
        """GET /v1/identity/verification_reports/{report}."""
        return _call(
            lambda: self._reports.retrieve(report, {"expand": list(expand)}, self._for(account))
        )

    def list_reports(
        self, params: VerificationReportListParams | None = None, *, account: str | None = None
    ) -> ListObject[VerificationReport]:
        """GET /v1/identity/verification_reports: one page, newest first."""
        return _call(lambda: self._reports.list(params or {}, self._for(account)))

    def retrieve_event(self, event: str, *, account: str | None = None) -> stripe.Event:
        """GET /v1/events/{event}: a snapshot event, up to 30 days old."""
        return _call(lambda: self._events.retrieve(event, {}, self._for(account)))

    def retrieve_thin_event(self, event: str, *, account: str | None = None) -> CoreEvent:
        """GET /v2/core/events/{event}: a thin event with its data and `snapshot_event`."""
        with _failing("thin event"):
            return self._core_events.retrieve(event, {}, self._for(account))

    def events_since(self, created: int, *, account: str | None = None) -> Iterator[stripe.Event]:
        """Yield the six types of events made at or after `created` (unix seconds), newest first.

        Pages through GET /v1/events, which reaches back 30 days.
        """
        with _failing("list"):
            page = self._events.list(
                {"types": EVENT_TYPES, "created": {"gte": created}, "limit": PAGE},
                self._for(account),
            )
            yield from page.auto_paging_iter()

    def sessions_since(
        self, created: int | None = None, *, status: str | None = None, account: str | None = None
    ) -> Iterator[VerificationSession]:
        """Yield all sessions made at or after `created` (unix seconds), or in `status`."""
        params: VerificationSessionListParams = {"limit": PAGE}
        if created is not None:
            params["created"] = {"gte": created}
        if status is not None:
            params["status"] = status
        with _failing("list"):
            yield from self._sessions.list(params, self._for(account)).auto_paging_iter()

    def connected_accounts(self) -> Iterator[str]:
        """Yield the ids of the accounts that are connected to ours, newest first."""
        with _failing("list"):
            for account in self._accounts.list({"limit": PAGE}).auto_paging_iter():
                yield account.id

    def endpoints(self) -> Iterator[WebhookEndpoint]:
        """Yield where events are sent: webhook endpoints, and destinations of thin events."""
        with _failing("list"):
            for each in self._endpoints.list({"limit": PAGE}).auto_paging_iter():
                yield _endpoint(each.to_dict(), "snapshot")
            there = self._destinations.list({"include": ["webhook_endpoint.url"]})
            for other in there.auto_paging_iter():
                if other.event_payload == "thin":
                    yield _endpoint(other.to_dict(), "thin")

    def create_endpoint(self, url: str, *, form: Form, connect: bool = False) -> WebhookEndpoint:
        """Have the six types of events sent to `url`; with `connect`, of connected accounts."""
        with _failing("list"):
            if form == "snapshot":
                made = self._endpoints.create(
                    {"url": url, "enabled_events": cast("Any", EVENT_TYPES), "connect": connect}
                )
                return _endpoint(made.to_dict(), form)
            destination = self._destinations.create(
                {
                    "name": "identity-webhooks",
                    "type": "webhook_endpoint",
                    "event_payload": "thin",
                    "enabled_events": [f"v1.{each}" for each in EVENT_TYPES],
                    "events_from": ["@accounts" if connect else "@self"],
                    "webhook_endpoint": {"url": url},
                    "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
                }
            )
            return _endpoint(destination.to_dict(), form)

    def fetch(self, event: Event) -> tuple[VerificationSession, VerificationReport | None]:
        """Fetch the session of an event as it is now, and its last report, in one call.

        Of a redacted one, None stands in place of Stripe's placeholders.
        """
        session = self.retrieve_session(event.session, expand=_EXPAND, account=event.account)
        _require_object(session, "session")
        if getattr(session, "redaction", None) is not None:
            session = VerificationSession.construct_from(
                without_placeholders(session.to_dict()), key=None
            )
        report = getattr(session, "last_verification_report", None)
        return session, None if isinstance(report, str) else report

    def snapshot_of(self, event: Event) -> Event | None:
        """Ask which snapshot event tells the same change as this thin one; None if none does.

        `snapshot_event` is in the fetched event, not in the pushed one
        (https://docs.stripe.com/webhooks/migrate-snapshot-to-thin-events).
        """
        fetched = self.retrieve_thin_event(event.id, account=event.account)
        _require_object(fetched, "thin event")
        twin = fetched.to_dict().get("snapshot_event")
        return dataclasses.replace(event, id=twin, form="snapshot") if twin else None

    def fetch_sensitive(self, event: Event, needs: Iterable[str]) -> Sensitive:
        """Fetch these sensitive fields; this client must hold a restricted key."""
        wanted = sorted(needs)
        with _failing("sensitive"):
            session = self._sessions.retrieve(
                event.session, {"expand": wanted}, self._for(event.account)
            )
            _require_object(session, "sensitive")
            shown = without_placeholders(session.to_dict())
            return Sensitive({SENSITIVE[need]: _pick(shown, need) for need in wanted})

    def _for(self, account: str | None) -> RequestOptions:
        if account is None:
            return {}
        if self.is_organization or "/" in account:
            return {"stripe_context": account}
        return {"stripe_account": account}


def _endpoint(given: dict[str, Any], form: Form) -> WebhookEndpoint:
    hook = given.get("webhook_endpoint") or {}
    return WebhookEndpoint(
        id=given["id"],
        form=form,
        url=given.get("url") or hook.get("url"),
        events=frozenset(given["enabled_events"]),
        livemode=bool(given["livemode"]),
        status=given["status"],
        api_version=given.get("api_version"),
        secret=given.get("secret") or hook.get("signing_secret") or "",
    )


@contextmanager
def _failing(call: Call) -> Iterator[None]:
    """Turn the SDK's exceptions into `StripeFailure`."""
    try:
        yield
    except stripe.StripeError as error:
        # Without the cause: the SDK's exceptions carry the whole body.
        raise failure_of(error, call) from None
    except (AttributeError, TypeError, LookupError, ValueError):
        # A 200 of another form: a proxy's, perhaps.
        raise StripeFailure("broken", call=call) from None


def _require_object(found: object, call: Call) -> None:
    """Refuse a 200 with JSON that is no object of Stripe's, which would read as one without data.

    Raises:
        StripeFailure: it has no id.
    """
    if not isinstance(getattr(found, "id", None), str):
        raise StripeFailure("broken", call=call)


def _call(call: Callable[[], Result]) -> Result:
    with _failing("session"):
        return call()


def failure_of(error: stripe.StripeError, call: Call) -> StripeFailure:
    """Read one of the SDK's exceptions, which fills `code` for some classes only."""
    status = error.http_status
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    body = error.json_body if isinstance(error.json_body, dict) else {}
    envelope = body.get("error") if isinstance(body.get("error"), dict) else {}
    given = (envelope or {}).get("code")
    code = given if isinstance(given, str) else None
    if status is None:
        code = error.code  # workers/http.py
    return StripeFailure(
        "unreachable" if status is None else kind_of(status, code, envelope=bool(envelope)),
        status=status,
        code=code,
        request_id=headers.get("request-id"),
        retry_after=_seconds(headers.get("retry-after")),
        call=call,
    )


def _pick(value: object, path: str) -> object:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, dict) and {"year", "month", "day"} <= value.keys():
        parts = cast("dict[str, Any]", value)
        return date(parts["year"], parts["month"], parts["day"]) if all(parts.values()) else None
    return value


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "nan")
    except ValueError:  # a date: Stripe sends none
        return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_RETRY_AFTER)

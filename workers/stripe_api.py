"""The API client: the eight operations of Stripe Identity, and events, on Stripe's own SDK.

What the SDK leaves to its user is settled here: timeouts (its default is 80 s), retries (a
`StripeClient` makes none by itself, measured), telemetry off, and for every failure an answer to
"may it pass?".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import stripe

from identity_webhooks.event import Event
from identity_webhooks.verification import SENSITIVE, Sensitive
from service.settings import Settings
from workers.http import PooledClient

if TYPE_CHECKING:
    from stripe import ListObject, RequestOptions
    from stripe.identity import VerificationReport, VerificationSession
    from stripe.params.identity import (
        VerificationReportListParams,
        VerificationSessionCreateParams,
        VerificationSessionListParams,
        VerificationSessionUpdateParams,
    )
    from stripe.v2.core import Event as CoreEvent

NETWORK_RETRIES = 1
"""Immediate retries by the SDK on connection errors, 409 and 5xx, under one idempotency key."""

LONGEST_RETRY_AFTER = 3600.0
"""Seconds: after that we ask again whatever we were told."""

_EXPAND = ["last_verification_report", "verified_outputs"]
_EVENT_TYPES = [
    f"identity.verification_session.{kind}"
    for kind in ("created", "processing", "requires_input", "verified", "canceled", "redacted")
]

FailureKind = Literal["unreachable", "broken", "busy", "key", "missing", "invalid", "stale"]
Answer = TypeVar("Answer")


class StripeFailure(Exception):
    """A call that failed. Its text holds a kind, a status and a code; never Stripe's sentence.

    Attributes:
        kind: `unreachable` (no answer), `broken` (5xx, or not JSON), `busy` (429, or locked),
            `key` (401 or 403), `missing` (404), `invalid` (any other 4xx), `stale` (an answer,
            but from before the event).
        status: the HTTP status, if there was an answer.
        code: Stripe's error code, such as `resource_missing`.
        request_id: `req_...`, to look the call up in the Dashboard.
        retry_after: seconds Stripe asked to wait, an hour at most.
    """

    def __init__(
        self,
        kind: FailureKind,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(" ".join(str(part) for part in (kind, status, code) if part))
        self.kind = kind
        self.status, self.code, self.request_id = status, code, request_id
        self.retry_after = retry_after

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed later: by itself, or for `key` once a person acted."""
        return self.kind not in {"missing", "invalid"}

    @classmethod
    def of(cls, error: stripe.StripeError) -> StripeFailure:
        """Read one of the SDK's exceptions, which fills `code` for some classes only."""
        status = error.http_status
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        body = error.json_body if isinstance(error.json_body, dict) else {}
        envelope = body.get("error") if isinstance(body.get("error"), dict) else {}
        code = (envelope or {}).get("code")
        kind: FailureKind
        if status is None:
            kind = "unreachable"
        elif status == 429 or code in {"rate_limit", "lock_timeout"} or status == 409:
            kind = "busy"
        elif status in {401, 403}:
            kind = "key"
        elif not envelope or not 400 <= status < 500:
            # Not Stripe's words: a proxy's page says nothing of the session.
            kind = "broken"
        else:
            kind = "missing" if status == 404 else "invalid"
        return cls(
            kind,
            status=status,
            code=code if isinstance(code, str) else None,
            request_id=headers.get("request-id"),
            retry_after=_seconds(headers.get("retry-after")),
        )


class StripeApi:
    """Stripe Identity. Every method raises `StripeFailure`, and nothing else of the SDK's."""

    def __init__(self, api_key: str, *, base: str = "https://api.stripe.com") -> None:
        stripe.enable_telemetry = False
        client = stripe.StripeClient(
            api_key,
            base_addresses={"api": base},
            max_network_retries=NETWORK_RETRIES,
            http_client=PooledClient(),
        )
        self._sessions = client.v1.identity.verification_sessions
        self._reports = client.v1.identity.verification_reports
        self._events = client.v1.events
        self._core_events = client.v2.core.events

    @classmethod
    def from_settings(cls, settings: Settings) -> StripeApi:
        """Build the client for `STRIPE_API_KEY`."""
        key = settings.stripe_api_key
        return cls(key.get_secret_value() if key else "", base=settings.stripe_api_base)

    def create_session(
        self, params: VerificationSessionCreateParams, *, account: str | None = None
    ) -> VerificationSession:
        """POST /v1/identity/verification_sessions."""
        return _call(lambda: self._sessions.create(params, _for(account)))

    def retrieve_session(
        self, session: str, *, expand: Iterable[str] = (), account: str | None = None
    ) -> VerificationSession:
        """GET /v1/identity/verification_sessions/{session}."""
        return _call(
            lambda: self._sessions.retrieve(session, {"expand": list(expand)}, _for(account))
        )

    def update_session(
        self, session: str, params: VerificationSessionUpdateParams, *, account: str | None = None
    ) -> VerificationSession:
        """POST /v1/identity/verification_sessions/{session}."""
        return _call(lambda: self._sessions.update(session, params, _for(account)))

    def list_sessions(
        self, params: VerificationSessionListParams | None = None, *, account: str | None = None
    ) -> ListObject[VerificationSession]:
        """GET /v1/identity/verification_sessions: one page, newest first."""
        return _call(lambda: self._sessions.list(params or {}, _for(account)))

    def cancel_session(self, session: str, *, account: str | None = None) -> VerificationSession:
        """POST /v1/identity/verification_sessions/{session}/cancel."""
        return _call(lambda: self._sessions.cancel(session, {}, _for(account)))

    def redact_session(self, session: str, *, account: str | None = None) -> VerificationSession:
        """POST /v1/identity/verification_sessions/{session}/redact."""
        return _call(lambda: self._sessions.redact(session, {}, _for(account)))

    def retrieve_report(
        self, report: str, *, expand: Iterable[str] = (), account: str | None = None
    ) -> VerificationReport:
        """GET /v1/identity/verification_reports/{report}."""
        return _call(
            lambda: self._reports.retrieve(report, {"expand": list(expand)}, _for(account))
        )

    def list_reports(
        self, params: VerificationReportListParams | None = None, *, account: str | None = None
    ) -> ListObject[VerificationReport]:
        """GET /v1/identity/verification_reports: one page, newest first."""
        return _call(lambda: self._reports.list(params or {}, _for(account)))

    def retrieve_event(self, event: str, *, account: str | None = None) -> stripe.Event:
        """GET /v1/events/{event}: a snapshot event, up to 30 days old."""
        return _call(lambda: self._events.retrieve(event, {}, _for(account)))

    def retrieve_thin_event(self, event: str, *, account: str | None = None) -> CoreEvent:
        """GET /v2/core/events/{event}: a thin event with its data and `snapshot_event`."""
        return _call(lambda: self._core_events.retrieve(event, {}, _for(account)))

    def events_since(self, created: int, *, account: str | None = None) -> Iterator[stripe.Event]:
        """Yield the six types of events made at or after `created` (unix seconds), newest first.

        Pages through GET /v1/events, which reaches back 30 days.
        """
        try:
            page = self._events.list(
                {"types": _EVENT_TYPES, "created": {"gte": created}, "limit": 100}, _for(account)
            )
            yield from page.auto_paging_iter()
        except stripe.StripeError as error:
            raise StripeFailure.of(error) from None

    def sessions_since(
        self, created: int | None = None, *, status: str | None = None, account: str | None = None
    ) -> Iterator[VerificationSession]:
        """Yield all sessions made at or after `created` (unix seconds), or in `status`."""
        params: VerificationSessionListParams = {"limit": 100}
        if created is not None:
            params["created"] = {"gte": created}
        if status is not None:
            params["status"] = status
        try:
            yield from self._sessions.list(params, _for(account)).auto_paging_iter()
        except stripe.StripeError as error:
            raise StripeFailure.of(error) from None

    def fetch(self, event: Event) -> tuple[VerificationSession, VerificationReport | None]:
        """Fetch the session of an event as it is now, and its last report, in one call."""
        session = self.retrieve_session(event.session, expand=_EXPAND, account=event.account)
        report = getattr(session, "last_verification_report", None)
        return session, None if isinstance(report, str) else report

    def snapshot_of(self, event: Event) -> Event | None:
        """Ask which snapshot event tells the same change as this thin one; None if none does.

        `snapshot_event` is in the fetched event, not in the pushed one
        (https://docs.stripe.com/webhooks/migrate-snapshot-to-thin-events).
        """
        fetched = self.retrieve_thin_event(event.id, account=event.account).to_dict()
        twin = fetched.get("snapshot_event")
        return dataclasses.replace(event, id=twin, form="snapshot") if twin else None

    def fetch_sensitive(self, event: Event, needs: Iterable[str]) -> Sensitive:
        """Fetch these sensitive fields; this client must hold a restricted key."""
        wanted = sorted(needs)
        session = self.retrieve_session(
            event.session, expand=wanted, account=event.account
        ).to_dict()
        return Sensitive({SENSITIVE[need]: _pick(session, need) for need in wanted})


def _call(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except stripe.StripeError as error:
        # Without the cause: the SDK's exceptions carry the whole body.
        raise StripeFailure.of(error) from None


def _for(account: str | None) -> RequestOptions:
    if account is None:
        return {}
    return {"stripe_context": account} if "/" in account else {"stripe_account": account}


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

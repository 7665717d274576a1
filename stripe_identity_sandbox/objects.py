"""The records the sandbox keeps, and what each looks like on the wire.

A record is what is stored; a ``..._view`` is Stripe's JSON of it. The shapes are those of the API
of 2026-10-28.endive: keys Stripe marks as required are present even when null, optional ones are
absent until they are set or expanded.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

Json = dict[str, Any]
#: What a request asked to expand: ``{"last_verification_report": {"document": {"number": {}}}}``.
Expand = dict[str, Any]

SESSION = "identity.verification_session"
REPORT = "identity.verification_report"
EVENT_TYPES = tuple(
    f"{SESSION}.{change}"
    for change in ("created", "processing", "verified", "requires_input", "canceled", "redacted")
)
STATUSES = ("canceled", "processing", "requires_input", "verified")

#: Left out of a report, and out of verified_outputs, unless expanded by name with a key that may.
SENSITIVE = {
    "document": (
        "dob",
        "expiration_date",
        "number",
        "sex",
        "unparsed_place_of_birth",
        "unparsed_sex",
    ),
    "id_number": ("dob", "id_number"),
}
SENSITIVE_OUTPUTS = ("dob", "id_number", "sex", "unparsed_place_of_birth", "unparsed_sex")

REPORT_EXPANDS: Expand = {part: {name: {} for name in names} for part, names in SENSITIVE.items()}
SESSION_EXPANDS: Expand = {
    "last_verification_report": REPORT_EXPANDS,
    "verified_outputs": {name: {} for name in SENSITIVE_OUTPUTS},
}


class Illegal(Exception):
    """The object's status, or a limit of the account, does not allow this operation."""


class Session(msgspec.Struct):
    """One verification session. ``account`` is None on the platform's own account."""

    id: str
    account: str | None
    created: int
    type: str | None
    options: Json
    metadata: dict[str, str]
    status: str = "requires_input"
    client_reference_id: str | None = None
    related_customer: str | None = None
    related_customer_account: str | None = None
    related_person: Json | None = None
    provided_details: Json | None = None
    verification_flow: str | None = None
    return_url: str | None = None
    #: When each link was made. Its token ends both the url and the client_secret; the newest one
    #: is shown. There are none while the session cannot be worked on.
    links: dict[str, float] = msgspec.field(default_factory=dict)
    last_error: Json | None = None
    last_report: str | None = None
    redaction: str | None = None
    #: When the last submission was judged, by the sandbox's clock.
    processed: float | None = None
    #: What processing will find, and when it (or redaction) ends by itself; None: when told to.
    outcome: str | None = None
    due: float | None = None

    def token(self, now: float, lifetime: float) -> str | None:
        """Return the newest token, unless it is older than this."""
        token = next(reversed(self.links), None)
        return token if token and now < self.links[token] + lifetime else None


class Report(msgspec.Struct):
    """What one attempt found. A part is None when it was not asked for."""

    id: str
    account: str | None
    created: int
    session: str
    type: str
    options: Json
    parts: dict[str, Json]
    client_reference_id: str | None = None
    verification_flow: str | None = None


class Event(msgspec.Struct):
    """One change of one session, with the session as it was then. It has an id in each form."""

    id: str
    thin_id: str
    type: str
    created: float
    account: str | None
    session: str
    snapshot: Json
    request: str | None = None
    idempotency_key: str | None = None
    deliveries: list[str] = msgspec.field(default_factory=list)


class Endpoint(msgspec.Struct):
    """Where events are delivered. ``connect`` None takes both own and connected accounts' events.

    ``secrets`` are (secret, expiry) pairs, newest first; expiry None is for good.
    """

    id: str
    created: int
    url: str
    enabled_events: list[str]
    secrets: list[tuple[str, float | None]]
    #: The connected account whose own endpoint it is; None: the platform's.
    account: str | None = None
    form: str = "snapshot"
    #: Destinations of /v2 have one.
    name: str | None = None
    status: str = "enabled"
    connect: bool | None = None
    api_version: str | None = None
    description: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class Attempt(msgspec.Struct):
    """One try to deliver: when, and the status answered or why there was none."""

    time: float
    status: int | None = None
    error: str | None = None
    fault: str | None = None


class Delivery(msgspec.Struct):
    """One event on its way to one endpoint.

    ``state``: pending (waits until ``due``), sending, delivered, failed (no more tries), dropped
    (by a fault), canceled (the endpoint was deleted).
    """

    id: str
    event: str
    endpoint: str
    form: str
    state: str = "pending"
    due: float | None = None
    tries: int = 0
    #: Sent by hand: one try, whatever comes of it.
    manual: bool = False
    #: Faults that change when a delivery is sent strike once, before its first try.
    struck: bool = False
    attempts: list[Attempt] = msgspec.field(default_factory=list)


class Key(msgspec.Struct):
    """An API key made or revoked by hand; ``permissions`` None: all that its kind can have."""

    id: str
    permissions: list[str] | None = None
    revoked: bool = False


class Answer(msgspec.Struct):
    """What was answered under an idempotency key. ``status`` is 0 while it is being made."""

    id: str
    path: str
    fingerprint: str
    request: str
    created: float
    status: int = 0
    body: str = ""
    #: The session the body shows, so that redaction can reach it.
    session: str | None = None


class Clock(msgspec.Struct):
    """How far the sandbox's time is ahead of the machine's, in seconds."""

    id: str
    offset: float


Record = Session | Report | Event | Endpoint | Delivery | Key | Answer | Clock


def session_view(session: Session, base_url: str, *, secret: str | None, link: str | None) -> Json:
    """Return the session's JSON with nothing expanded; both tokens are None when they expired."""
    view: Json = {
        "id": session.id,
        "object": SESSION,
        "client_reference_id": session.client_reference_id,
        "client_secret": secret and f"{session.id}_secret_test_{secret}",
        "created": session.created,
        "last_error": session.last_error,
        "last_verification_report": session.last_report,
        "livemode": False,
        "metadata": session.metadata,
        "options": session.options,
        "redaction": session.redaction and {"status": session.redaction},
        "related_customer": session.related_customer,
        "related_customer_account": session.related_customer_account,
        "status": session.status,
        "type": session.type,
        "url": link and f"{base_url}/start/test_{link}",
    }
    for name in ("provided_details", "related_person", "verification_flow"):
        if (value := getattr(session, name)) is not None:
            view[name] = value
    return view


def verified_outputs(report: Report, expand: Expand) -> Json:
    """Return what a verified session's report proves; sensitive fields only where expanded."""
    document = report.parts.get("document") or {}
    number = report.parts.get("id_number") or {}
    found = number | {name: value for name, value in document.items() if value is not None}
    outputs = {
        "address": found.get("address"),
        "email": (report.parts.get("email") or {}).get("email"),
        "first_name": found.get("first_name"),
        "id_number_type": number.get("id_number_type"),
        "last_name": found.get("last_name"),
        "phone": (report.parts.get("phone") or {}).get("phone"),
    }
    return outputs | {name: found.get(name) for name in SENSITIVE_OUTPUTS if name in expand}


def report_view(report: Report, expand: Expand) -> Json:
    """Return the report's JSON; sensitive fields only where expanded."""
    view: Json = {
        "id": report.id,
        "object": REPORT,
        "client_reference_id": report.client_reference_id,
        "created": report.created,
        "livemode": False,
        "options": report.options,
        "type": report.type,
        "verification_session": report.session,
    }
    if report.verification_flow is not None:
        view["verification_flow"] = report.verification_flow
    for part, found in report.parts.items():
        shown = expand.get(part, {})
        hidden = [name for name in SENSITIVE.get(part, ()) if name not in shown]
        view[part] = {name: value for name, value in found.items() if name not in hidden}
    return view


def event_view(event: Event, *, api_version: str, pending_webhooks: int) -> Json:
    """Return the snapshot form of an event."""
    view: Json = {
        "id": event.id,
        "object": "event",
        "api_version": api_version,
        "created": int(event.created),
        "data": {"object": event.snapshot},
        "livemode": False,
        "pending_webhooks": pending_webhooks,
        "request": {"id": event.request, "idempotency_key": event.idempotency_key},
        "type": event.type,
    }
    return view | ({"account": event.account} if event.account else {})


def notification_view(event: Event) -> Json:
    """Return the thin form of an event, as it is pushed."""
    view: Json = {
        "id": event.thin_id,
        "object": "v2.core.event",
        "type": f"v1.{event.type}",
        "livemode": False,
        "created": _iso(event.created),
        "context": event.account,
        "related_object": {
            "id": event.session,
            "type": SESSION,
            "url": f"/v1/identity/verification_sessions/{event.session}",
        },
    }
    if event.request:
        request = {"id": event.request, "idempotency_key": event.idempotency_key}
        view["reason"] = {"type": "request", "request": request}
    return view


def endpoint_view(endpoint: Endpoint, *, secret: bool = False) -> Json:
    """Return a webhook endpoint's JSON; its signing secret only when it was just made."""
    view: Json = {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "api_version": endpoint.api_version,
        "application": None,
        "created": endpoint.created,
        "description": endpoint.description,
        "enabled_events": endpoint.enabled_events,
        "livemode": False,
        "metadata": endpoint.metadata,
        "status": endpoint.status,
        "url": endpoint.url,
    }
    return view | ({"secret": endpoint.secrets[0][0]} if secret else {})


def destination_view(destination: Endpoint, *, include: set[str]) -> Json:
    """Return the same as an event destination of /v2; url and secret only where included."""
    created = _iso(destination.created)
    hook = {"url": destination.url, "signing_secret": destination.secrets[0][0]}
    sources = {None: ["@self", "@accounts"], False: ["@self"], True: ["@accounts"]}
    snapshot = destination.form == "snapshot"
    return {
        "id": destination.id,
        "object": "v2.core.event_destination",
        "created": created,
        "description": destination.description or "",
        "enabled_events": destination.enabled_events,
        "event_payload": destination.form,
        "events_from": sources[destination.connect],
        "livemode": False,
        "metadata": destination.metadata,
        "name": destination.name or destination.url,
        "snapshot_api_version": destination.api_version if snapshot else None,
        "status": destination.status,
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": created,
        "webhook_endpoint": {name: hook[name] if name in include else None for name in hook},
    }


def _iso(moment: float) -> str:
    when = datetime.fromtimestamp(moment, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The operations of Stripe's API that the sandbox has, each as one short function.

An operation gets a ``Call`` with checked parameters and returns JSON. What happens around every
one of them (keys, versions, idempotency, errors, faults) is in ``api``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from stripe_identity_sandbox import lifetimes, wire
from stripe_identity_sandbox.objects import (
    REPORT_EXPANDS,
    SESSION_EXPANDS,
    STATUSES,
    Endpoint,
    Event,
    Expand,
    Json,
    Report,
    Session,
    endpoint_view,
    notification_view,
    report_view,
)
from stripe_identity_sandbox.state import Origin, World
from stripe_identity_sandbox.wire import ApiError, array, boolean, enum, or_empty, record, string

#: The account whose keys are used; the id is ours.
PLATFORM = "acct_1SandboxPlatform"

#: What a restricted key can be allowed to do. The names are ours: Stripe publishes none.
SESSIONS_READ = "verification_session_read"
SESSIONS_WRITE = "verification_session_write"
SENSITIVE_RECENT = "sensitive_verification_results_recent"
SENSITIVE_ALL = "sensitive_verification_results_all"
EVENTS_READ = "event_read"
ENDPOINTS_READ = "webhook_read"
ENDPOINTS_WRITE = "webhook_write"
PERMISSIONS = (
    SESSIONS_READ,
    SESSIONS_WRITE,
    SENSITIVE_RECENT,
    SENSITIVE_ALL,
    EVENTS_READ,
    ENDPOINTS_READ,
    ENDPOINTS_WRITE,
)
#: A restricted key nobody made by hand may all but read old sensitive results.
DEFAULT_PERMISSIONS = frozenset(PERMISSIONS) - {SENSITIVE_ALL}


@dataclass
class Call:
    """One request to one operation."""

    world: World
    params: Json
    account: str | None
    key: str
    permissions: frozenset[str]
    request_id: str
    idempotency_key: str | None = None
    #: The session the answer shows, so that its redaction can reach saved answers.
    session: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        """What an event says about the request that caused it."""
        return Origin(self.request_id, self.idempotency_key)


@dataclass(frozen=True)
class Operation:
    """A method and a path, the right it takes, the parameters it knows."""

    method: str
    path: str
    right: str
    run: Callable[[Call], Json]
    params: dict[str, wire.Check]
    required: tuple[str, ...] = ()


OPERATIONS: list[Operation] = []


def operation(
    method: str,
    path: str,
    right: str,
    params: dict[str, wire.Check],
    required: tuple[str, ...] = (),
) -> Callable[[Callable[[Call], Json]], Callable[[Call], Json]]:
    """Serve a function under a method and a path."""

    def mark(run: Callable[[Call], Json]) -> Callable[[Call], Json]:
        OPERATIONS.append(Operation(method, path, right, run, params, required))
        return run

    return mark


# -- verification sessions -------------------------------------------------------------------

SESSIONS = "/v1/identity/verification_sessions"
REPORTS = "/v1/identity/verification_reports"
TYPE = enum("document", "id_number")
EXPAND = {"expand": array(string)}
OPTIONS = record(
    document=or_empty(
        record(
            allowed_types=array(enum("driving_license", "id_card", "passport")),
            require_id_number=boolean,
            require_live_capture=boolean,
            require_matching_selfie=boolean,
        )
    )
)
DETAILS = {"provided_details": or_empty(record(email=or_empty(string), phone=or_empty(string)))}


@operation(
    "POST",
    SESSIONS,
    SESSIONS_WRITE,
    EXPAND
    | DETAILS
    | {
        "client_reference_id": string,
        "metadata": wire.metadata,
        "options": OPTIONS,
        "related_customer": string,
        "related_customer_account": string,
        "related_person": record(required=("account", "person"), account=string, person=string),
        "return_url": string,
        "type": TYPE,
        "verification_flow": string,
    },
)
def create_session(call: Call) -> Json:
    """Create a session."""
    if "verification_flow" not in call.params and "type" not in call.params:
        raise wire.missing("type")
    expand = session_expansion(call)
    params = {k: v for k, v in call.params.items() if k != "expand"}
    # An empty value unsets, and there is nothing to unset yet.
    params["metadata"] = {k: v for k, v in params.get("metadata", {}).items() if v}
    details = params.get("provided_details") or {}
    params["provided_details"] = {k: v for k, v in details.items() if v}
    session = call.world.create(params, account=call.account, origin=call.origin)
    return show(call, session, expand)


@operation(
    "GET",
    SESSIONS,
    SESSIONS_READ,
    wire.PAGE
    | {
        "client_reference_id": string,
        "created": wire.time_range,
        "related_customer": string,
        "related_customer_account": string,
        "status": enum(*STATUSES),
    },
)
def list_sessions(call: Call) -> Json:
    """List sessions, newest first."""
    tree = session_expansion(call, on_list=True)
    wanted = filters(
        call, "client_reference_id", "related_customer", "related_customer_account", "status"
    )
    return wire.page(
        [session for session in call.world.sessions.values() if session.account == call.account],
        call.params,
        url=SESSIONS,
        find=lambda cursor, param: session_by_id(call, cursor, status=400, param=param),
        keep=lambda session: (
            wire.within(session.created, call.params.get("created"))
            and all(getattr(session, name) == value for name, value in wanted.items())
        ),
        view=lambda session: show_listed(call, session, tree),
    )


@operation("GET", f"{SESSIONS}/<session>", SESSIONS_READ, EXPAND)
def retrieve_session(call: Call) -> Json:
    """Retrieve a session, with a usable url while it waits for input."""
    session = session_by_id(call)
    expand = session_expansion(call, session)
    call.world.refresh(session)
    return show(call, session, expand)


@operation(
    "POST",
    f"{SESSIONS}/<session>",
    SESSIONS_WRITE,
    EXPAND
    | DETAILS
    | {
        "metadata": wire.metadata,
        "options": OPTIONS,
        "type": TYPE,
    },
)
def update_session(call: Call) -> Json:
    """Change a session that waits for input."""
    session = session_by_id(call)
    expand = session_expansion(call, session)
    call.world.update(session, {k: v for k, v in call.params.items() if k != "expand"})
    return show(call, session, expand)


@operation("POST", f"{SESSIONS}/<session>/cancel", SESSIONS_WRITE, EXPAND)
def cancel_session(call: Call) -> Json:
    """Cancel a session that waits for input."""
    session = session_by_id(call)
    expand = session_expansion(call, session)
    call.world.cancel(session, call.origin)
    return show(call, session, expand)


@operation("POST", f"{SESSIONS}/<session>/redact", SESSIONS_WRITE, EXPAND)
def redact_session(call: Call) -> Json:
    """Start the redaction of a session."""
    session = session_by_id(call)
    expand = session_expansion(call, session)
    call.world.redact(session, call.origin)
    return show(call, session, expand)


# -- verification reports --------------------------------------------------------------------


@operation(
    "GET",
    REPORTS,
    SESSIONS_READ,
    wire.PAGE
    | {
        "client_reference_id": string,
        "created": wire.time_range,
        "type": enum("document", "id_number"),
        "verification_session": string,
    },
)
def list_reports(call: Call) -> Json:
    """List reports, newest first."""
    tree = wire.expansion(call.params.get("expand", ()), REPORT_EXPANDS, on_list=True)
    wanted = filters(call, "client_reference_id", "type")
    session = call.params.get("verification_session")
    return wire.page(
        [report for report in call.world.reports.values() if report.account == call.account],
        call.params,
        url=REPORTS,
        find=lambda cursor, param: report_by_id(call, cursor, status=400, param=param),
        keep=lambda report: (
            session in {None, report.session}
            and wire.within(report.created, call.params.get("created"))
            and all(getattr(report, name) == value for name, value in wanted.items())
        ),
        view=lambda report: show_report(call, report, tree),
    )


@operation("GET", f"{REPORTS}/<report>", SESSIONS_READ, EXPAND)
def retrieve_report(call: Call) -> Json:
    """Retrieve a report."""
    report = report_by_id(call)
    return show_report(call, report, wire.expansion(call.params.get("expand", ()), REPORT_EXPANDS))


# -- events ----------------------------------------------------------------------------------


@operation(
    "GET",
    "/v1/events",
    EVENTS_READ,
    wire.PAGE
    | {
        "created": wire.time_range,
        "delivery_success": boolean,
        "type": string,
        "types": array(string),
    },
)
def list_events(call: Call) -> Json:
    """List the events of the last 30 days, newest first."""
    names = call.params.get("types")
    if names is not None and "type" in call.params:
        # The rule and the limit are documented, the sentences are not.
        raise ApiError(400, "You may pass either type or types, but not both.", param="types")
    if names is not None and len(names) > 20:
        raise ApiError(400, "You may pass at most 20 types.", param="types")
    names = names or [call.params.get("type", "*")]
    success = call.params.get("delivery_success")
    wire.expansion(call.params.get("expand", ()), {}, on_list=True)

    def keep(event: Event) -> bool:
        # A wildcard stands for the rest of a name: identity.*
        return (
            any(
                event.type == name or (name.endswith("*") and event.type.startswith(name[:-1]))
                for name in names
            )
            and wire.within(event.created, call.params.get("created"))
            and (success is None or success == (call.world.outbox.pending(event) == 0))
        )

    return wire.page(
        [
            event
            for event in call.world.events.by_id.values()
            if event.account == call.account and call.world.events.find(event.id)
        ],
        call.params,
        url="/v1/events",
        find=lambda cursor, param: event_by_id(call, cursor, status=400, param=param),
        keep=keep,
        view=call.world.outbox.event_view,
    )


@operation("GET", "/v1/events/<id>", EVENTS_READ, EXPAND)
def retrieve_event(call: Call) -> Json:
    """Retrieve an event in its snapshot form."""
    wire.expansion(call.params.get("expand", ()), {})
    return call.world.outbox.event_view(event_by_id(call))


@operation("GET", "/v2/core/events/<id>", EVENTS_READ, {})
def retrieve_thin_event(call: Call) -> Json:
    """Retrieve an event in its thin form, which tells the id of the other form too."""
    event = call.world.events.find(call.arguments["id"])
    if event is None or event.thin_id != call.arguments["id"] or event.account != call.account:
        # The envelope of /v2 has no type; the words are ours.
        raise ApiError(404, "The requested event does not exist.", code="not_found", kind="")
    return notification_view(event) | {"snapshot_event": event.id, "changes": None, "data": None}


# -- webhook endpoints -----------------------------------------------------------------------

ENDPOINTS = "/v1/webhook_endpoints"


@operation(
    "POST",
    ENDPOINTS,
    ENDPOINTS_WRITE,
    EXPAND
    | {
        "api_version": string,
        "connect": boolean,
        "description": or_empty(string),
        "enabled_events": array(string),
        "event_payload": enum("snapshot", "thin"),
        "metadata": wire.metadata,
        "url": string,
    },
    required=("enabled_events", "url"),
)
def create_endpoint(call: Call) -> Json:
    """Register an endpoint; this answer alone shows its signing secret.

    ``event_payload`` is the sandbox's own parameter: at Stripe, thin events are sent to
    destinations made through /v2/core/event_destinations.
    """
    params = call.params
    endpoint = call.world.endpoints.add(
        params["url"],
        enabled_events=params["enabled_events"],
        form=params.get("event_payload", "snapshot"),
        connect=params.get("connect", False),
        api_version=params.get("api_version"),
        description=params.get("description") or None,
        metadata=params.get("metadata", {}),
    )
    return endpoint_view(endpoint, secret=True)


@operation("GET", ENDPOINTS, ENDPOINTS_READ, wire.PAGE)
def list_endpoints(call: Call) -> Json:
    """List webhook endpoints, newest first."""
    return wire.page(
        list(call.world.endpoints.by_id.values()),
        call.params,
        url=ENDPOINTS,
        find=lambda cursor, param: endpoint_by_id(call, cursor, status=400, param=param),
        keep=lambda _: True,
        view=endpoint_view,
    )


@operation("GET", f"{ENDPOINTS}/<id>", ENDPOINTS_READ, EXPAND)
def retrieve_endpoint(call: Call) -> Json:
    """Retrieve a webhook endpoint."""
    return endpoint_view(endpoint_by_id(call))


@operation(
    "POST",
    f"{ENDPOINTS}/<id>",
    ENDPOINTS_WRITE,
    EXPAND
    | {
        "description": or_empty(string),
        "disabled": boolean,
        "enabled_events": array(string),
        "metadata": wire.metadata,
        "url": string,
    },
)
def update_endpoint(call: Call) -> Json:
    """Change, disable or enable a webhook endpoint."""
    endpoint = endpoint_by_id(call)
    changes = {k: v for k, v in call.params.items() if k in {"enabled_events", "url"}}
    if "disabled" in call.params:
        changes["status"] = "disabled" if call.params["disabled"] else "enabled"
    if "description" in call.params:
        changes["description"] = call.params["description"] or None
    if (given := call.params.get("metadata")) is not None:
        laid = {k: v for k, v in (endpoint.metadata | given).items() if v}
        changes["metadata"] = laid if given else {}
    call.world.outbox.change_endpoint(endpoint, **changes)
    return endpoint_view(endpoint)


@operation("DELETE", f"{ENDPOINTS}/<id>", ENDPOINTS_WRITE, {})
def delete_endpoint(call: Call) -> Json:
    """Delete a webhook endpoint."""
    endpoint = endpoint_by_id(call)
    call.world.outbox.drop_endpoint(endpoint)
    return {"id": endpoint.id, "object": "webhook_endpoint", "deleted": True}


# -- what the operations share ---------------------------------------------------------------


def filters(call: Call, *names: str) -> Json:
    """Return the plain filters that were given."""
    return {name: call.params[name] for name in names if name in call.params}


def session_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "session"
) -> Session:
    """Return a session of the account, or raise Stripe's error for an unknown one."""
    id_ = id_ or call.arguments["session"]
    session = call.world.sessions.get(id_)
    if session is None or session.account != call.account:
        raise not_found("VerificationSession", id_, status, param)
    return session


def report_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "report"
) -> Report:
    """Return a report of the account."""
    id_ = id_ or call.arguments["report"]
    report = call.world.reports.get(id_)
    if report is None or report.account != call.account:
        raise not_found("VerificationReport", id_, status, param)
    return report


def event_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "id"
) -> Event:
    """Return an event of the account by the id of its snapshot form."""
    id_ = id_ or call.arguments["id"]
    event = call.world.events.find(id_)
    if event is None or event.id != id_ or event.account != call.account:
        raise not_found("event", id_, status, param)
    return event


def endpoint_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "id"
) -> Endpoint:
    """Return a webhook endpoint."""
    id_ = id_ or call.arguments["id"]
    if (endpoint := call.world.endpoints.by_id.get(id_)) is None:
        raise not_found("webhook endpoint", id_, status, param)
    return endpoint


def not_found(what: str, id_: str, status: int, param: str) -> ApiError:
    """Return the error for an unknown id: 404 in the path, 400 as a cursor."""
    return ApiError(status, f"No such {what}: '{id_}'", code="resource_missing", param=param)


def session_expansion(
    call: Call, session: Session | None = None, *, on_list: bool = False
) -> Expand:
    """Return what a request asks to expand, before it changes anything."""
    tree = wire.expansion(call.params.get("expand", ()), SESSION_EXPANDS, on_list=on_list)
    if wire.sensitive(tree, SESSION_EXPANDS):
        may_see_sensitive(call, session)
    return tree


def show(call: Call, session: Session, expand: Expand) -> Json:
    """Return the session with what was checked to be expandable."""
    call.session = session.id
    return call.world.view(session, expand)


def show_listed(call: Call, session: Session, expand: Expand) -> Json:
    """Return one session of a list: how old its results are shows only now."""
    if wire.sensitive(expand, SESSION_EXPANDS):
        may_see_sensitive(call, session)
    return call.world.view(session, expand)


def show_report(call: Call, report: Report, expand: Expand) -> Json:
    """Return the report as this key may see it."""
    if wire.sensitive(expand, REPORT_EXPANDS):
        may_see_sensitive(call, call.world.sessions[report.session])
    return report_view(report, expand)


def may_see_sensitive(call: Call, session: Session | None) -> None:
    """Refuse a key that may not see sensitive results, or not ones that old.

    Only a fragment of Stripe's text is on record; the status is inferred. A redacted session is
    no secret any more: the docs show its placeholders, days after it was processed.
    """
    recent = (
        session is None
        or session.processed is None
        or session.redaction == "redacted"
        or session.processed > call.world.now() - lifetimes.SENSITIVE
    )
    if SENSITIVE_ALL in call.permissions or (SENSITIVE_RECENT in call.permissions and recent):
        return
    raise ApiError(
        403,
        f"The provided key '{masked(call.key)}' does not have the required permissions to access"
        " sensitive verification results. Please configure a restricted API key with appropriate"
        " permissions. See https://stripe.com/docs/identity/access-verification-results.",
    )


def masked(key: str) -> str:
    """Return a key as Stripe prints it: its kind, stars, its last four characters."""
    known = re.match(r"(sk|rk|pk)_(test|live)_", key)
    kind = known.group() if known else ""
    shown = key[-4:] if len(key) - len(kind) > 8 else ""
    return f"{kind}{'*' * max(len(key) - len(kind) - len(shown), 3)}{shown}"

"""The routes of Stripe's API that the sandbox serves, each as one short function.

An operation gets a ``Call`` with checked parameters and returns JSON. What all of them share
(keys, versions, idempotency, errors, faults) happens once, in ``Api``.
"""

import base64
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from flask import Flask, Response, request

from sandbox import wire
from sandbox.faults import Fault, Faults
from sandbox.objects import (
    REPORT_EXPANDS,
    SESSION_EXPANDS,
    STATUSES,
    Answer,
    Endpoint,
    Event,
    Expand,
    Json,
    Key,
    Report,
    Session,
    endpoint_view,
    notification_view,
    report_view,
)
from sandbox.state import DAY, SENSITIVE_LIFETIME, Illegal, Origin, World
from sandbox.wire import ApiError, array, boolean, enum, or_empty, record, string

#: The account whose keys are used; the id is ours.
PLATFORM = "acct_1SandboxPlatform"
#: docs.stripe.com/api/idempotent_requests: at least 24 hours, up to 255 characters.
IDEMPOTENCY_LIFETIME, IDEMPOTENCY_KEY_LENGTH = DAY, 255

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
            and (success is None or success == (call.world.pending_webhooks(event) == 0))
        )

    return wire.page(
        [
            event
            for event in call.world.events.values()
            if event.account == call.account and call.world.event_of(event.id)
        ],
        call.params,
        url="/v1/events",
        find=lambda cursor, param: event_by_id(call, cursor, status=400, param=param),
        keep=keep,
        view=call.world.event_view,
    )


@operation("GET", "/v1/events/<id>", EVENTS_READ, EXPAND)
def retrieve_event(call: Call) -> Json:
    """Retrieve an event in its snapshot form."""
    wire.expansion(call.params.get("expand", ()), {})
    return call.world.event_view(event_by_id(call))


@operation("GET", "/v2/core/events/<id>", EVENTS_READ, {})
def retrieve_thin_event(call: Call) -> Json:
    """Retrieve an event in its thin form, which tells the id of the other form too."""
    event = call.world.event_of(call.arguments["id"])
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
    endpoint = call.world.add_endpoint(
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
        list(call.world.endpoints.values()),
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
    call.world.change_endpoint(endpoint, **changes)
    return endpoint_view(endpoint)


@operation("DELETE", f"{ENDPOINTS}/<id>", ENDPOINTS_WRITE, {})
def delete_endpoint(call: Call) -> Json:
    """Delete a webhook endpoint."""
    endpoint = endpoint_by_id(call)
    call.world.drop_endpoint(endpoint)
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
    event = call.world.event_of(id_)
    if event is None or event.id != id_ or event.account != call.account:
        raise not_found("event", id_, status, param)
    return event


def endpoint_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "id"
) -> Endpoint:
    """Return a webhook endpoint."""
    id_ = id_ or call.arguments["id"]
    if (endpoint := call.world.endpoints.get(id_)) is None:
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
        or session.processed > call.world.now() - SENSITIVE_LIFETIME
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


# -- around every operation ------------------------------------------------------------------


class Api:
    """Serves the operations: from a request's bytes to an answer's."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults

    def install(self, app: Flask) -> None:
        """Add the routes."""
        # A redirect would be followed by one SDK and not by the other; Stripe makes none.
        app.url_map.merge_slashes = False
        for op in OPERATIONS:
            app.add_url_rule(
                op.path,
                endpoint=f"{op.method} {op.path}",
                view_func=self._view(op),
                methods=[op.method],
                provide_automatic_options=False,
            )

    def _view(self, op: Operation) -> Callable[..., Response]:
        def view(**arguments: str) -> Response:
            request_id = f"req_{secrets.token_hex(7)}"
            with self.world.step():
                fault = self.faults.for_call(request.method, request.path)
            try:
                status, body, headers = self._answer(op, arguments, request_id, fault)
            except ApiError as error:
                status, body, headers = _failed(error, request_id)
            return self._send(status, body, headers | {"Request-Id": request_id}, fault)

        return view

    def unknown_route(self) -> Response:
        """Answer a path that is none of Stripe's."""
        request_id = f"req_{secrets.token_hex(7)}"
        error = ApiError(
            404,
            f"Unrecognized request URL ({request.method}: {request.path}). If you are trying to"
            " list objects, remove the trailing slash. If you are trying to retrieve an object,"
            " make sure you passed a valid (non-empty) identifier in your code. Please see"
            " https://stripe.com/docs or we can help at https://support.stripe.com/.",
        )
        status, body, headers = _failed(error, request_id)
        return self._send(status, body, headers | {"Request-Id": request_id}, None)

    def _answer(
        self, op: Operation, arguments: dict[str, str], request_id: str, fault: Fault | None
    ) -> tuple[int, str, dict[str, str]]:
        if fault and not fault.after and not fault.saved:
            _strike(fault)
        with self.world.step():
            key, permissions = self._authenticate()
            account = self._account(key)
            if op.right not in permissions:
                raise ApiError(
                    403,
                    f"The provided key '{masked(key)}' does not have the required permissions for"
                    f" this endpoint on account '{account or PLATFORM}'. Having the"
                    f" 'rak_{op.right}' permission would allow this request to continue.",
                )
        given = _parameters()
        call = Call(
            world=self.world,
            params=wire.checked(given, op.params, required=op.required),
            account=account,
            key=key,
            permissions=permissions,
            request_id=request_id,
            arguments=arguments,
        )
        if op.method == "POST" and (name := request.headers.get("Idempotency-Key")):
            return self._once(op, call, name, given, fault)
        return self._run(op, call, fault)

    def _run(
        self, op: Operation, call: Call, fault: Fault | None
    ) -> tuple[int, str, dict[str, str]]:
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds or 2.0)
        if fault and fault.saved:
            _strike(fault)
        with self.world.step():
            try:
                result = op.run(call)
            except Illegal as refusal:
                raise ApiError(400, str(refusal), executed=True) from refusal
            return 200, json.dumps(result, indent=2), {}

    def _once(
        self, op: Operation, call: Call, name: str, given: Json, fault: Fault | None
    ) -> tuple[int, str, dict[str, str]]:
        """Run an operation once per idempotency key; the first answer is given again."""
        if len(name) > IDEMPOTENCY_KEY_LENGTH:
            # The limit is documented, the sentence is not.
            raise ApiError(400, "Idempotency keys can be up to 255 characters.")
        call.idempotency_key = name
        asked = json.dumps([request.path, given], sort_keys=True)
        mine = Answer(
            id=f"{call.account or PLATFORM}/{name}",
            fingerprint=hashlib.sha256(asked.encode()).hexdigest(),
            request=call.request_id,
            created=self.world.now(),
        )
        with self.world.step() as world:
            known = world.answers.get(mine.id)
            if known and known.created > world.now() - IDEMPOTENCY_LIFETIME:
                return self._again(known, mine, name)
            world.begin_answer(mine)
        # Not saved: an answer that only says what is wrong with the request.
        saved = 0, ""
        try:
            status, body, headers = self._run(op, call, fault)
            saved = status, body
        except ApiError as error:
            status, body, headers = _failed(error, call.request_id)
            if error.executed:
                saved = status, body
        finally:
            with self.world.step() as world:
                world.end_answer(mine, *saved, call.session)
        return (
            status,
            body,
            headers
            | {
                "Idempotency-Key": name,
                "Original-Request": call.request_id,
            },
        )

    def _again(self, known: Answer, mine: Answer, name: str) -> tuple[int, str, dict[str, str]]:
        if known.fingerprint != mine.fingerprint:
            raise ApiError(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were"
                f" first used with. Try using a key other than '{name}' if you meant to execute a"
                " different request.",
                kind="idempotency_error",
            )
        if known.status == 0:
            raise ApiError(
                409,
                "There is currently another in-progress request using this Idempotent Key (that"
                " probably means you submitted twice, and the other request is still going"
                f" through): {name}. Please try again later.",
                code="idempotency_key_in_use",
                kind="idempotency_error",
            )
        # Redaction took the saved body away; what the session shows now has nothing to hide.
        session = self.world.sessions.get(known.session or "")
        body = known.body
        if not body and session:
            body = json.dumps(self.world.view(session), indent=2)
        return (
            known.status,
            body,
            {
                "Idempotency-Key": name,
                "Idempotent-Replayed": "true",
                "Original-Request": known.request,
            },
        )

    def _authenticate(self) -> tuple[str, frozenset[str]]:
        """Return the key of the request and what it may do."""
        key = _key()
        if key is None:
            raise unauthorized(
                "You did not provide an API key. You need to provide your API key in the"
                " Authorization header, using Bearer auth (e.g. 'Authorization: Bearer"
                " YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for details,"
                " or we can help at https://support.stripe.com/."
            )
        if key.startswith(("sk_live_", "rk_live_")):
            raise unauthorized(
                f"Invalid API Key provided: {masked(key)}. This is a sandbox on your machine, not"
                " Stripe: it takes no live keys. Use any key that begins with sk_test_."
            )
        made = self.world.keys.get(key)
        if not key.startswith(("sk_test_", "rk_test_")) or (made and made.revoked):
            raise unauthorized(f"Invalid API Key provided: {masked(key)}")
        if made and made.permissions is not None:
            return key, frozenset(made.permissions)
        if key.startswith("rk_"):
            return key, DEFAULT_PERMISSIONS
        return key, DEFAULT_PERMISSIONS - {SENSITIVE_RECENT}

    def _account(self, key: str) -> str | None:
        """Return the connected account the request is about, None for the platform's own."""
        name = request.headers.get("Stripe-Account") or request.headers.get("Stripe-Context")
        if not name or name == PLATFORM:
            return None
        if not name.startswith("acct_"):
            raise ApiError(
                403,
                f"The provided key '{masked(key)}' does not have access to account '{name}' (or"
                " that account does not exist). Application access may have been revoked.",
                code="account_invalid",
            )
        return name

    def _send(
        self, status: int, body: str, headers: dict[str, str], fault: Fault | None
    ) -> Response:
        if fault and fault.after:
            status, body, headers = _failed_after(fault, headers, status, body)
        response = Response(body, status, headers, mimetype="application/json")
        response.headers["Stripe-Version"] = request.headers.get(
            "Stripe-Version", self.world.settings.api_version
        )
        if fault and fault.kind == "cut":
            response.headers["Content-Length"] = str(len(body.encode()))
            response.response = _half(body.encode(), request.environ)
        return response


def _parameters() -> Json:
    pairs = parse_qsl(request.query_string.decode("latin-1"), keep_blank_values=True)
    if request.method == "POST":
        pairs += parse_qsl(request.get_data(as_text=True), keep_blank_values=True)
    return wire.nest(pairs)


def _key() -> str | None:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(credentials, validate=True).decode().partition(":")[0] or None
        return None
    return credentials.strip() or None if scheme.lower() == "bearer" else None


def unauthorized(message: str) -> ApiError:
    """Return Stripe's 401."""
    return ApiError(401, message, headers={"WWW-Authenticate": 'Basic realm="Stripe"'})


def _failed(error: ApiError, request_id: str) -> tuple[int, str, dict[str, str]]:
    headers = dict(error.headers)
    if error.status == 409 or error.status >= 500:
        headers.setdefault("Stripe-Should-Retry", "true")
    return error.status, json.dumps(error.envelope(request_id), indent=2), headers


def _strike(fault: Fault) -> None:
    """Do what a fault of the API does instead of answering."""
    match fault.kind:
        case "rate_limit":
            headers = {
                "Stripe-Should-Retry": "false",
                "Stripe-Rate-Limited-Reason": "global-rate",
            }
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            raise ApiError(
                429,
                "Testmode request rate limit exceeded, the rate limits in testmode are lower than"
                " livemode. You can learn more about rate limits here"
                " https://stripe.com/docs/rate-limits.",
                code="rate_limit",
                headers=headers,
            )
        case "lock_timeout":
            raise ApiError(
                429,
                "This object cannot be accessed right now because another API request or Stripe"
                " process is currently accessing it. If you see this error intermittently, retry"
                " the request. If you see this error frequently and are making multiple"
                " concurrent requests to a single object, make your requests serially or at a"
                " lower rate. For more details, see"
                " https://stripe.com/docs/rate-limits#object-lock-timeouts.",
                code="lock_timeout",
                headers={"Stripe-Should-Retry": "true"},
            )
        case "error":
            raise ApiError(
                fault.status, "An error occurred on our side.", kind="api_error", executed=True
            )
        case "timeout":
            time.sleep(fault.seconds or 30.0)
            _hang_up(request.environ)
            raise ApiError(500, "The connection was ended.", kind="api_error")


def _failed_after(
    fault: Fault, headers: dict[str, str], status: int, body: str
) -> tuple[int, str, dict[str, str]]:
    """Return what is answered when the operation happened and its answer is lost."""
    try:
        _strike(fault)
    except ApiError as error:
        lost, text, more = _failed(error, headers["Request-Id"])
        return lost, text, {"Request-Id": headers["Request-Id"]} | more
    return status, body, headers


def _half(body: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> None:
    """End the client's connection without a word; only a real server has one to end."""
    if (connection := environ.get("gunicorn.socket")) is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(2)


def new_key(kind: str, permissions: list[str] | None) -> Key:
    """Make a test key with these rights."""
    prefix = "rk_test_" if kind == "restricted" else "sk_test_"
    return Key(id=f"{prefix}{secrets.token_hex(16)}", permissions=permissions)

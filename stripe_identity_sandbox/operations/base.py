"""What every operation of Stripe's API is made of: a call, its rights, and how objects are found.

An operation is one short function that gets a ``Call`` with checked parameters and returns JSON.
What happens around every one of them (keys, versions, idempotency, errors, faults) is in ``api``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from stripe_identity_sandbox import lifetimes, wire
from stripe_identity_sandbox.objects import (
    SESSION_EXPANDS,
    Endpoint,
    Event,
    Expand,
    Json,
    Report,
    Session,
)
from stripe_identity_sandbox.parameters import Kind, Record
from stripe_identity_sandbox.settings import Origin
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError

Owned = TypeVar("Owned", Session, Report, Event, Endpoint)

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
    params: Record


OPERATIONS: list[Operation] = []


def operation(
    method: str,
    path: str,
    right: str,
    params: dict[str, Kind],
    required: tuple[str, ...] = (),
) -> Callable[[Callable[[Call], Json]], Callable[[Call], Json]]:
    """Serve a function under a method and a path."""

    def mark(run: Callable[[Call], Json]) -> Callable[[Call], Json]:
        OPERATIONS.append(Operation(method, path, right, run, Record(params, required)))
        return run

    return mark


def filters(call: Call, *names: str) -> Json:
    """Return the plain filters that were given."""
    return {name: call.params[name] for name in names if name in call.params}


def session_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "session"
) -> Session:
    """Return a session of the account, or raise Stripe's error for an unknown one."""
    id_ = id_ or call.arguments["session"]
    found = call.world.sessions.get(id_)
    return _owned(call, found, not_found("VerificationSession", id_, status, param))


def report_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "report"
) -> Report:
    """Return a report of the account."""
    id_ = id_ or call.arguments["report"]
    found = call.world.reports.by_id.get(id_)
    return _owned(call, found, not_found("VerificationReport", id_, status, param))


def event_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "id"
) -> Event:
    """Return an event of the account by the id of its snapshot form."""
    id_ = id_ or call.arguments["id"]
    found = call.world.events.find(id_)
    snapshot = found if found and found.id == id_ else None
    return _owned(call, snapshot, not_found("event", id_, status, param))


def endpoint_by_id(
    call: Call, id_: str | None = None, *, status: int = 404, param: str = "id"
) -> Endpoint:
    """Return a webhook endpoint of the account. Thin destinations are found under /v2 only."""
    id_ = id_ or call.arguments["id"]
    found = call.world.endpoints.by_id.get(id_)
    shown = found if found and found.form == "snapshot" else None
    return _owned(call, shown, not_found("webhook endpoint", id_, status, param))


def _owned(call: Call, found: Owned | None, unknown: ApiError) -> Owned:
    """Return what was found, if it is the account's: another's is as unknown as none."""
    if found is None or found.account != call.account:
        raise unknown
    return found


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

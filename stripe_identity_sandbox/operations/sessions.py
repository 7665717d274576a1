"""Verification sessions, and the helpers of test mode that end them."""

from stripe_identity_sandbox import checks, wire
from stripe_identity_sandbox.objects import STATUSES, Json
from stripe_identity_sandbox.operations.base import (
    SESSIONS_READ,
    SESSIONS_WRITE,
    Call,
    filters,
    operation,
    session_by_id,
    session_expansion,
    show,
    show_listed,
)
from stripe_identity_sandbox.parameters import (
    EXPAND,
    PAGE,
    Array,
    Boolean,
    Enum,
    Kind,
    Metadata,
    Record,
    Text,
    TimeRange,
    Url,
    merged,
    missing,
)

SESSIONS = "/v1/identity/verification_sessions"
TYPE = Enum(("document", "id_number"))
DOCUMENT = Record(
    {
        "allowed_types": Array(Enum(("driving_license", "id_card", "passport"))),
        "require_id_number": Boolean(),
        "require_live_capture": Boolean(),
        "require_matching_selfie": Boolean(),
    },
    unset=True,
)
OPTIONS = Record({"document": DOCUMENT}, unset=True)
DETAILS: dict[str, Kind] = {
    "provided_details": Record({"email": Text(unset=True), "phone": Text(unset=True)}, unset=True)
}
PERSON = Record({"account": Text(), "person": Text()}, required=("account", "person"))


@operation(
    "POST",
    SESSIONS,
    SESSIONS_WRITE,
    EXPAND
    | DETAILS
    | {
        "client_reference_id": Text(),
        "metadata": Metadata(),
        "options": OPTIONS,
        "related_customer": Text(),
        "related_customer_account": Text(),
        "related_person": PERSON,
        "return_url": Url(),
        "type": TYPE,
        "verification_flow": Text(),
    },
)
def create_session(call: Call) -> Json:
    """Create a session."""
    if "verification_flow" not in call.params and "type" not in call.params:
        raise missing("type")
    expand = session_expansion(call)
    params = {k: v for k, v in call.params.items() if k != "expand"}
    params["metadata"] = merged({}, params.get("metadata"))
    details = params.get("provided_details") or {}
    params["provided_details"] = {k: v for k, v in details.items() if v}
    session = call.world.create(params, account=call.account, origin=call.origin)
    return show(call, session, expand)


@operation(
    "GET",
    SESSIONS,
    SESSIONS_READ,
    PAGE
    | {
        "client_reference_id": Text(),
        "created": TimeRange(),
        "related_customer": Text(),
        "related_customer_account": Text(),
        "status": Enum(STATUSES),
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
        "metadata": Metadata(),
        "options": OPTIONS,
        "type": TYPE,
    },
)
def update_session(call: Call) -> Json:
    """Change a session that waits for input."""
    session = session_by_id(call)
    expand = session_expansion(call, session)
    params = {k: v for k, v in call.params.items() if k != "expand"}
    if "metadata" in params:
        params["metadata"] = merged(session.metadata, params["metadata"])
    call.world.update(session, params)
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


# -- test helpers ----------------------------------------------------------------------------
# Announced for the Stripe CLI's triggers; that ``error_code`` names the error is our guess.

HELPERS = "/v1/test_helpers/identity/verification_sessions/<session>"


@operation("POST", f"{HELPERS}/verify", SESSIONS_WRITE, EXPAND)
def verify_session(call: Call) -> Json:
    """Submit what will be verified, and end processing."""
    return _end(call, checks.VERIFIED)


@operation(
    "POST",
    f"{HELPERS}/require_input",
    SESSIONS_WRITE,
    EXPAND | {"error_code": Enum(tuple(checks.LAST_ERRORS))},
)
def require_input(call: Call) -> Json:
    """Submit what will be refused, and end processing."""
    return _end(call, call.params.get("error_code", "document_unverified_other"))


def _end(call: Call, outcome: str) -> Json:
    session = session_by_id(call)
    expand = session_expansion(call, session)
    if session.status != "processing":
        call.world.submit(session, outcome, hold=True)
    call.world.complete(session, outcome=outcome)
    return show(call, session, expand)

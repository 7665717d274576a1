"""What a session asks for: from checked parameters to its fields."""

from stripe_identity_sandbox.journal import new_id
from stripe_identity_sandbox.objects import Json, Session


def session(params: Json, *, account: str | None, created: int) -> Session:
    """Return a new session; ``created`` is its time in Unix seconds."""
    kind, flow = params.get("type"), params.get("verification_flow")
    options = {part: dict(chosen or {}) for part, chosen in (params.get("options") or {}).items()}
    if flow:
        # What a flow asks for is set up in the Dashboard, which the sandbox has none of.
        kind = "verification_flow"
        required = {"require_verification": True}
        options = {"document": {}, "email": required, "phone": dict(required)}
    elif kind:
        options.setdefault(kind, {})
    return Session(
        id=new_id("vs_1"),
        account=account,
        created=created,
        type=kind,
        options=options,
        metadata=params.get("metadata") or {},
        client_reference_id=params.get("client_reference_id"),
        related_customer=params.get("related_customer"),
        related_customer_account=params.get("related_customer_account"),
        related_person=params.get("related_person"),
        provided_details=params.get("provided_details") or None,
        verification_flow=flow,
        return_url=params.get("return_url"),
    )


def change(session: Session, params: Json) -> None:
    """Lay what an update gives over what a session asks for."""
    session.metadata = params.get("metadata", session.metadata)
    if "type" in params and params["type"] != session.type:
        session.type = params["type"]
        session.options = {params["type"]: {}}
    for part, chosen in (params.get("options") or {}).items():
        # Unset with an empty value; what is given is laid over what was there.
        laid = {**session.options.get(part, {}), **chosen} if chosen else {}
        session.options = session.options | {part: laid}
    if "provided_details" in params:
        given = (session.provided_details or {}) | (params["provided_details"] or {})
        session.provided_details = {k: v for k, v in given.items() if v} or None

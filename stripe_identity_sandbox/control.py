"""The sandbox's own routes, under ``/_sandbox/``: what happens to users, time and the network.

Bodies are JSON or forms. None of this exists at Stripe.
"""

import secrets
from typing import Literal, TypeVar

import msgspec
from flask import Blueprint, Flask, Response, jsonify, request

from stripe_identity_sandbox import checks, given
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.lifetimes import ROLL_OVERLAP, Seconds
from stripe_identity_sandbox.objects import (
    Delivery,
    Endpoint,
    Event,
    Json,
    Key,
    Session,
    endpoint_view,
)
from stripe_identity_sandbox.operations.base import PERMISSIONS
from stripe_identity_sandbox.recorder import as_json
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError


class Submit(msgspec.Struct, forbid_unknown_fields=True):
    """What processing will find, and when."""

    outcome: str = checks.VERIFIED
    hold: bool = False
    #: Seconds of the sandbox's clock.
    delay: Seconds = 0.0


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No fields."""


class Complete(msgspec.Struct, forbid_unknown_fields=True):
    """End processing (with another outcome, if one is given) or redaction now."""

    outcome: str | None = None
    #: Show the redaction status ``validated`` instead of ending the redaction.
    validated: bool = False


class Override(msgspec.Struct, forbid_unknown_fields=True):
    """Change the result of a session by hand."""

    status: Literal["verified", "requires_input"]


class Redact(msgspec.Struct, forbid_unknown_fields=True):
    """Start a redaction that ends so many seconds of the sandbox's clock later."""

    delay: Seconds | None = None


class Advance(msgspec.Struct, forbid_unknown_fields=True):
    """Move the clock forward."""

    advance: Seconds


class MakeKey(msgspec.Struct, forbid_unknown_fields=True):
    """Make a key; without permissions it may do all that its kind may."""

    kind: str = "restricted"
    permissions: list[str] | None = None


class RevokeKey(msgspec.Struct, forbid_unknown_fields=True):
    """Revoke a key, whoever made it: from now on it gets 401."""

    key: str


class Roll(msgspec.Struct, forbid_unknown_fields=True):
    """Make a new signing secret; the old one signs too for ``overlap`` seconds."""

    overlap: Seconds = ROLL_OVERLAP


Body = TypeVar("Body")


def read(shape: type[Body]) -> Body:
    """Return the request's body.

    Raises:
        ApiError: it has not this shape.
    """
    try:
        return msgspec.convert(given.fields(), shape, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, str(error)) from error


def session_of(world: World, id_: str) -> Session:
    """Return a session of any account."""
    if (session := world.sessions.get(id_)) is None:
        raise ApiError(404, f"No such VerificationSession: '{id_}'", code="resource_missing")
    return session


def event_of(world: World, id_: str) -> Event:
    """Return an event of any account, by its id in either form."""
    if (event := world.events.find(id_)) is None:
        raise ApiError(404, f"No such event: '{id_}'", code="resource_missing")
    return event


def outcome_named(name: str) -> str:
    """Return the outcome, or say which there are."""
    if name not in checks.OUTCOMES:
        raise ApiError(400, f"Unknown outcome '{name}'; there are: {', '.join(checks.OUTCOMES)}.")
    return name


def delivery_view(world: World, delivery: Delivery) -> Json:
    """Return a delivery with its tries."""
    event, endpoint = (
        world.events.by_id[delivery.event],
        world.endpoints.by_id.get(delivery.endpoint),
    )
    thin = delivery.form == "thin"
    return {
        "id": delivery.id,
        "event": event.thin_id if thin else event.id,
        "type": f"v1.{event.type}" if thin else event.type,
        "session": event.session,
        "form": delivery.form,
        "endpoint": delivery.endpoint,
        "url": endpoint.url if endpoint else None,
        "state": delivery.state,
        "next_try": delivery.due,
        "attempts": msgspec.to_builtins(delivery.attempts),
    }


def install(  # noqa: PLR0915 -- a list of routes
    app: Flask, world: World, faults: Faults
) -> None:
    """Add the routes."""

    routes = Blueprint("control", __name__)

    @routes.before_request
    def no_lost_query() -> None:
        # Who puts an outcome into the query, as curl -G does, would get another one.
        listing = request.endpoint == "control.list_requests"
        known = {"method", "path"} if listing else set()
        if unknown := ", ".join(sorted(given.query().keys() - known)):
            help_ = "There are method and path." if listing else "Fields are given in the body."
            raise ApiError(400, f"Unknown in the query: {unknown}. {help_}")

    @routes.get("/_sandbox/requests")
    def list_requests() -> Response:
        named = given.query()
        with world.step():
            text = as_json(world.recorder.all(**named))
        return Response(text, mimetype="application/json")

    @routes.delete("/_sandbox/requests")
    def clear_requests() -> Response:
        with world.step():
            return jsonify(cleared=world.recorder.clear())

    @routes.post("/_sandbox/sessions/<id_>/submit")
    def submit(id_: str) -> Response:
        body = read(Submit)
        with world.step():
            session = session_of(world, id_)
            outcome = outcome_named(body.outcome)
            if body.hold and body.delay:
                raise ApiError(400, "hold and delay exclude each other.")
            world.submit(session, outcome, hold=body.hold, delay=body.delay)
            return jsonify(world.view(session))

    @routes.post("/_sandbox/sessions/<id_>/complete")
    def complete(id_: str) -> Response:
        body = read(Complete)
        with world.step():
            session = session_of(world, id_)
            if body.validated:
                if body.outcome:
                    raise ApiError(400, "validated and outcome exclude each other.")
                world.validate_redaction(session)
            else:
                world.complete(session, outcome=body.outcome and outcome_named(body.outcome))
            return jsonify(world.view(session))

    @routes.post("/_sandbox/sessions/<id_>/override")
    def override(id_: str) -> Response:
        body = read(Override)
        with world.step():
            session = session_of(world, id_)
            world.override(session, verified=body.status == "verified")
            return jsonify(world.view(session))

    @routes.post("/_sandbox/sessions/<id_>/redact")
    def redact(id_: str) -> Response:
        body = read(Redact)
        with world.step():
            session = session_of(world, id_)
            world.redact(session, delay=body.delay)
            return jsonify(world.view(session))

    @routes.get("/_sandbox/clock")
    def clock() -> Response:
        with world.step():
            return jsonify(now=world.now(), ahead=world.journal.offset)

    @routes.post("/_sandbox/clock")
    def advance() -> Response:
        body = read(Advance)
        with world.step():
            world.advance(body.advance)
            return jsonify(now=world.now(), ahead=world.journal.offset)

    @routes.get("/_sandbox/deliveries")
    def deliveries() -> Response:
        with world.step():
            return jsonify([delivery_view(world, d) for d in world.outbox.by_id.values()])

    @routes.post("/_sandbox/events/<id_>/resend")
    def resend(id_: str) -> Response:
        read(Nothing)
        with world.step():
            again = world.outbox.send(event_of(world, id_), manual=True)
            return jsonify([delivery_view(world, delivery) for delivery in again])

    @routes.post("/_sandbox/webhook_endpoints/<id_>/roll")
    def roll(id_: str) -> Response:
        body = read(Roll)
        with world.step():
            endpoint: Endpoint | None = world.endpoints.by_id.get(id_)
            if endpoint is None:
                raise ApiError(404, f"No such webhook endpoint: '{id_}'", code="resource_missing")
            world.endpoints.roll_secret(endpoint, overlap=body.overlap)
            return jsonify(endpoint_view(endpoint, secret=True))

    @routes.get("/_sandbox/faults")
    def list_faults() -> Response:
        with world.step():
            return jsonify(msgspec.to_builtins(faults.all()))

    @routes.post("/_sandbox/faults")
    def add_fault() -> Response:
        fields = given.fields()
        with world.step():
            try:
                fault = faults.add(fields)
            except ValueError as error:
                raise ApiError(400, str(error)) from error
            return jsonify(msgspec.to_builtins(fault))

    @routes.delete("/_sandbox/faults")
    @routes.delete("/_sandbox/faults/<id_>")
    def clear_faults(id_: str | None = None) -> Response:
        with world.step():
            return jsonify(cleared=faults.clear(id_))

    @routes.get("/_sandbox/keys")
    def list_keys() -> Response:
        with world.step():
            return jsonify(msgspec.to_builtins(list(world.keys.values())))

    @routes.post("/_sandbox/keys")
    def make_key() -> Response:
        body = read(MakeKey)
        unknown = sorted(set(body.permissions or ()) - set(PERMISSIONS))
        if unknown or body.kind not in {"restricted", "secret"}:
            raise ApiError(
                400,
                f"Unknown: {', '.join(unknown) or body.kind}. A key is restricted or secret;"
                f" permissions are {', '.join(PERMISSIONS)}.",
            )
        prefix = "rk_test_" if body.kind == "restricted" else "sk_test_"
        key = Key(id=f"{prefix}{secrets.token_hex(16)}", permissions=body.permissions)
        with world.step():
            world.set_key(key)
            return jsonify(key=key.id, permissions=key.permissions)

    @routes.post("/_sandbox/keys/revoke")
    def revoke_key() -> Response:
        body = read(RevokeKey)
        if not body.key.startswith(("sk_test_", "rk_test_")):
            raise ApiError(400, "There is no such key: keys begin with sk_test_ or rk_test_.")
        with world.step():
            world.set_key(Key(id=body.key, revoked=True))
            return jsonify(key=body.key, revoked=True)

    app.register_blueprint(routes)

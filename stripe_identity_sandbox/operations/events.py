"""Events in their two forms."""

from stripe_identity_sandbox import wire, wire_v2
from stripe_identity_sandbox.objects import Event, Json, notification_view
from stripe_identity_sandbox.operations.base import EVENTS_READ, Call, event_by_id, operation
from stripe_identity_sandbox.parameters import (
    EXPAND,
    PAGE,
    Array,
    Boolean,
    EventName,
    Text,
    TimeRange,
)
from stripe_identity_sandbox.wire import ApiError


@operation(
    "GET",
    "/v1/events",
    EVENTS_READ,
    PAGE
    | {
        "created": TimeRange(),
        "delivery_success": Boolean(),
        "type": Text(),
        "types": Array(Text()),
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
            and wire.within(int(event.created), call.params.get("created"))
            and (success is None or success == (call.world.outbox.pending(event) == 0))
        )

    return wire.page(
        [event for event in call.world.events.alive() if event.account == call.account],
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


THIN = "/v2/core/events"


@operation(
    "GET",
    THIN,
    EVENTS_READ,
    # The bounds stand alone in API 2025-10-29.clover, and within ``created`` since.
    wire_v2.PAGE
    | wire_v2.BOUNDS
    | {"created": wire_v2.MomentRange(), "object_id": Text(), "types": Array(EventName("thin"))},
)
def list_thin_events(call: Call) -> Json:
    """List the events of the last 30 days in their thin form, newest first."""
    params = call.params
    bounds = {name: params[name] for name in wire_v2.BOUNDS if name in params}

    def keep(event: Event) -> bool:
        return (
            event.account == call.account
            and params.get("object_id") in {None, event.session}
            and (not params.get("types") or f"v1.{event.type}" in params["types"])
            and all(
                wire.within(wire_v2.written(int(event.created * 1000) / 1000), asked)
                for asked in (bounds, params.get("created"))
            )
        )

    events = [event for event in call.world.events.alive()[::-1] if keep(event)]
    return wire_v2.page(events, params, url=THIN, id_of=lambda one: one.thin_id, view=fetched)


@operation("GET", f"{THIN}/<id>", EVENTS_READ, {})
def retrieve_thin_event(call: Call) -> Json:
    """Retrieve an event in its thin form, which tells the id of the other form too."""
    event = call.world.events.find(call.arguments["id"])
    if event is None or event.thin_id != call.arguments["id"] or event.account != call.account:
        raise wire_v2.not_found("event")
    return fetched(event)


def fetched(event: Event) -> Json:
    """Return the thin form as the API shows it: with the id of the snapshot form."""
    return notification_view(event) | {"snapshot_event": event.id, "changes": None, "data": None}

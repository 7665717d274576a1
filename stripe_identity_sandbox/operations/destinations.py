"""Event destinations of /v2: where thin events are sent, and snapshots too."""

from typing import Any

from stripe_identity_sandbox import wire_v2
from stripe_identity_sandbox.objects import Endpoint, Json, destination_view
from stripe_identity_sandbox.operations.base import (
    ENDPOINTS_READ,
    ENDPOINTS_WRITE,
    Call,
    operation,
)
from stripe_identity_sandbox.parameters import (
    ApiVersion,
    Array,
    Enum,
    EventName,
    Kind,
    Metadata,
    Record,
    Text,
    Url,
    merged,
)
from stripe_identity_sandbox.wire import ApiError

DESTINATIONS = "/v2/core/event_destinations"
INCLUDE: dict[str, Kind] = {"include": Array(Enum(("webhook_endpoint.url",)))}
#: The secret is shown once, when the destination is made.
INCLUDE_ALL: dict[str, Kind] = {
    "include": Array(Enum(("webhook_endpoint.signing_secret", "webhook_endpoint.url")))
}
CHANGEABLE: dict[str, Kind] = {
    "description": Text(unset=True),
    # Which names these can be depends on the payload: see ``_events``.
    "enabled_events": Array(Text(), filled=True),
    "metadata": Metadata(),
    "name": Text(),
    "webhook_endpoint": Record({"url": Url(web=True)}, required=("url",)),
}
#: Whose events each source stands for; the second pair of names is that of older versions.
OWN, CONNECTED = ("@self", "self"), ("@accounts", "other_accounts")


@operation(
    "POST",
    DESTINATIONS,
    ENDPOINTS_WRITE,
    INCLUDE_ALL
    | CHANGEABLE
    | {
        "event_payload": Enum(("snapshot", "thin")),
        "events_from": Array(Enum((*OWN, *CONNECTED))),
        "snapshot_api_version": ApiVersion(),
        "type": Enum(("webhook_endpoint",)),
    },
    required=("enabled_events", "event_payload", "name", "type", "webhook_endpoint"),
)
def create_destination(call: Call) -> Json:
    """Register a destination."""
    params = call.params
    form = params["event_payload"]
    if form == "thin" and "snapshot_api_version" in params:
        # The rule is documented, the sentence is ours.
        raise ApiError(
            400,
            "It is for snapshot events only.",
            param="snapshot_api_version",
        )
    sources = params.get("events_from") or ["@self"]
    wanted = {source in CONNECTED for source in sources}
    destination = call.world.endpoints.add(
        params["webhook_endpoint"]["url"],
        prefix="ed_test_",
        account=call.account,
        enabled_events=_events(params, form),
        form=form,
        connect=wanted.pop() if len(wanted) == 1 else None,
        api_version=params.get("snapshot_api_version"),
        description=params.get("description"),
        name=params["name"],
        metadata=merged({}, params.get("metadata")),
    )
    return _view(call, destination)


@operation("GET", DESTINATIONS, ENDPOINTS_READ, INCLUDE | wire_v2.PAGE)
def list_destinations(call: Call) -> Json:
    """List destinations, newest first."""
    return wire_v2.page(
        call.world.endpoints.of(call.account)[::-1],
        call.params,
        url=DESTINATIONS,
        id_of=lambda one: one.id,
        view=lambda one: _view(call, one),
    )


@operation("GET", f"{DESTINATIONS}/<id>", ENDPOINTS_READ, INCLUDE)
def retrieve_destination(call: Call) -> Json:
    """Retrieve a destination."""
    return _view(call, _found(call))


@operation("POST", f"{DESTINATIONS}/<id>", ENDPOINTS_WRITE, INCLUDE | CHANGEABLE)
def update_destination(call: Call) -> Json:
    """Change a destination."""
    destination = _found(call)
    changes = {k: v for k, v in call.params.items() if k not in {"include", "webhook_endpoint"}}
    if "webhook_endpoint" in call.params:
        changes["url"] = call.params["webhook_endpoint"]["url"]
    if "enabled_events" in changes:
        changes["enabled_events"] = _events(changes, destination.form)
    if "metadata" in changes:
        changes["metadata"] = merged(destination.metadata, changes["metadata"])
    call.world.outbox.change_endpoint(destination, **changes)
    return _view(call, destination)


@operation("POST", f"{DESTINATIONS}/<id>/disable", ENDPOINTS_WRITE, INCLUDE)
def disable_destination(call: Call) -> Json:
    """Send nothing there until it is enabled again."""
    destination = _found(call)
    call.world.outbox.change_endpoint(destination, status="disabled")
    return _view(call, destination)


@operation("POST", f"{DESTINATIONS}/<id>/enable", ENDPOINTS_WRITE, INCLUDE)
def enable_destination(call: Call) -> Json:
    """Send there again."""
    destination = _found(call)
    call.world.outbox.change_endpoint(destination, status="enabled")
    return _view(call, destination)


@operation("DELETE", f"{DESTINATIONS}/<id>", ENDPOINTS_WRITE, {})
def delete_destination(call: Call) -> Json:
    """Delete a destination."""
    destination = _found(call)
    call.world.outbox.drop_endpoint(destination)
    return {"id": destination.id, "object": "v2.core.event_destination"}


def _events(params: Json, form: str) -> list[Any]:
    """Return the names of events, each of which has to be one of this form's."""
    return Array(EventName(form)).convert(params["enabled_events"], "enabled_events")


def _found(call: Call) -> Endpoint:
    destination = call.world.endpoints.by_id.get(call.arguments["id"])
    if destination is None or destination.account != call.account:
        raise wire_v2.not_found("event destination")
    return destination


def _view(call: Call, destination: Endpoint) -> Json:
    shown = {name.partition(".")[2] for name in call.params.get("include", ())}
    return destination_view(destination, include=shown)

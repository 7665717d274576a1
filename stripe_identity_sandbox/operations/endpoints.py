"""Webhook endpoints."""

from stripe_identity_sandbox import wire
from stripe_identity_sandbox.objects import Json, endpoint_view
from stripe_identity_sandbox.operations.base import (
    ENDPOINTS_READ,
    ENDPOINTS_WRITE,
    Call,
    endpoint_by_id,
    operation,
)
from stripe_identity_sandbox.parameters import (
    EXPAND,
    PAGE,
    ApiVersion,
    Array,
    Boolean,
    EventName,
    Metadata,
    Text,
    Url,
    merged,
)

ENDPOINTS = "/v1/webhook_endpoints"


@operation(
    "POST",
    ENDPOINTS,
    ENDPOINTS_WRITE,
    EXPAND
    | {
        "api_version": ApiVersion(),
        "connect": Boolean(),
        "description": Text(unset=True),
        "enabled_events": Array(EventName("snapshot"), filled=True),
        "metadata": Metadata(),
        "url": Url(web=True),
    },
    required=("enabled_events", "url"),
)
def create_endpoint(call: Call) -> Json:
    """Register an endpoint; this answer alone shows its signing secret.

    Thin events are sent to destinations, which are made through /v2/core/event_destinations.
    """
    params = call.params
    endpoint = call.world.endpoints.add(
        params["url"],
        enabled_events=params["enabled_events"],
        account=call.account,
        connect=params.get("connect", False),
        api_version=params.get("api_version"),
        description=params.get("description") or None,
        metadata=merged({}, params.get("metadata")),
    )
    return endpoint_view(endpoint, secret=True)


@operation("GET", ENDPOINTS, ENDPOINTS_READ, PAGE)
def list_endpoints(call: Call) -> Json:
    """List webhook endpoints, newest first."""
    return wire.page(
        [one for one in call.world.endpoints.of(call.account) if one.form == "snapshot"],
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
        "description": Text(unset=True),
        "disabled": Boolean(),
        "enabled_events": Array(EventName("snapshot"), filled=True),
        "metadata": Metadata(),
        "url": Url(web=True),
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
    if "metadata" in call.params:
        changes["metadata"] = merged(endpoint.metadata, call.params["metadata"])
    call.world.outbox.change_endpoint(endpoint, **changes)
    return endpoint_view(endpoint)


@operation("DELETE", f"{ENDPOINTS}/<id>", ENDPOINTS_WRITE, {})
def delete_endpoint(call: Call) -> Json:
    """Delete a webhook endpoint."""
    endpoint = endpoint_by_id(call)
    call.world.outbox.drop_endpoint(endpoint)
    return {"id": endpoint.id, "object": "webhook_endpoint", "deleted": True}

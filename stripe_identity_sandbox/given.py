"""What a request gives to the control routes and the pages: fields, a form, a query.

As to the API, nothing is made of bytes that are not in UTF-8.
"""

from flask import request

from stripe_identity_sandbox import wire
from stripe_identity_sandbox.objects import Json
from stripe_identity_sandbox.wire import ApiError


def fields() -> Json:
    """Return the fields of the body: JSON or a form, whatever its type says.

    ``fetch`` of JavaScript calls a JSON text plain text, and curl calls it a form.

    Raises:
        ApiError: it is neither.
    """
    body = request.get_data()
    if body and (request.is_json or body.lstrip().startswith(b"{")):
        return wire.json_object(body)
    nested: Json = wire.plain(wire.nest(_pairs()))
    return nested


def form() -> dict[str, str]:
    """Return what a form of a page says.

    Raises:
        ApiError: it is no form that browsers send for these pages.
    """
    return dict(_pairs())


def query() -> dict[str, str]:
    """Return the query.

    Raises:
        ApiError: it is not in UTF-8.
    """
    return dict(wire.pairs(request.query_string, "query"))


def _pairs() -> list[tuple[str, str]]:
    if request.mimetype == "multipart/form-data":
        raise ApiError(
            400, "The body must be JSON, or a form of type application/x-www-form-urlencoded."
        )
    return wire.pairs(request.get_data(), "POST body")

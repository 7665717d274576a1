"""What a fault of the API does instead of answering, or to an answer."""

import contextlib
from collections.abc import Iterator
from typing import Any

from flask import request

from stripe_identity_sandbox.faults import Fault, Faults
from stripe_identity_sandbox.wire import ApiError


def strike(fault: Fault, faults: Faults) -> None:
    """Do what a fault of the API does instead of answering."""
    match fault.kind:
        case "rate_limit":
            # The sentence is on record. Whether Stripe asks to retry is not: no SDK does by itself.
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
            faults.wait(fault.wait(), request.environ.get("gunicorn.socket"))
            _hang_up(request.environ)
            raise ApiError(500, "The connection was ended.", kind="api_error")


def slow_down(fault: Fault, faults: Faults) -> None:
    """Let an answer come late."""
    faults.wait(fault.wait(), request.environ.get("gunicorn.socket"))


def half(body: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    """Yield half of a body, and end the connection."""
    yield body[: len(body) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> None:
    """End the client's connection without a word; only a real server has one to end."""
    if (connection := environ.get("gunicorn.socket")) is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(2)

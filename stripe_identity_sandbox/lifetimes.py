"""How long things live at Stripe, in seconds. Nothing else of the sandbox decides by time."""

from typing import Annotated

import msgspec

DAY = 24 * 3600.0
#: What a user may set at most: longer than anything Stripe keeps.
LONGEST = 366 * DAY
#: How far the clock can be ahead: dates end with the year 9999.
FURTHEST = 1000 * LONGEST
Seconds = Annotated[float, msgspec.Meta(ge=0, le=LONGEST)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

#: Both are used once (Stripe's OpenAPI, ``verification_session``).
CLIENT_SECRET, URL = DAY, 2 * DAY
#: "up to 4 days" (docs.stripe.com/identity/verification-sessions#redact).
REDACTION = 4 * DAY
#: Events are listed and retrieved for 30 days (docs.stripe.com/api/events/list).
EVENT = 30 * DAY
#: Results older than this need a key that may see all of them
#: (docs.stripe.com/identity/access-verification-results).
SENSITIVE = 2 * DAY
#: Both secrets work for up to this long while one is rolled (docs.stripe.com/webhooks).
ROLL_OVERLAP = DAY
#: docs.stripe.com/api/idempotent_requests: at least 24 hours.
IDEMPOTENCY_KEY = DAY

#: The waits between tries. Docs: test mode 3 tries over a few hours, live mode up to 3 days with
#: exponential back-off. The single intervals are not published: these are our guess.
RETRIES = {
    "test": (3600.0, 7200.0),
    "live": (300.0, 1800.0, 7200.0, 18000.0, 36000.0, *[43200.0] * 4),
}


def seconds(text: str) -> float:
    """Return the seconds of a duration: 90, 15m, 2h, 4d.

    Raises:
        ValueError: it is none.
    """
    unit = _UNITS.get(text[-1:])
    number = float(text[:-1]) * unit if unit else float(text)
    if not 0 <= number <= LONGEST:
        raise ValueError(f"{text!r} is not between 0 and a year")
    return number

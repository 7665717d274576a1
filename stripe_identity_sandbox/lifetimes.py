"""How long things live at Stripe, in seconds. Nothing else of the sandbox decides by time."""

from typing import Annotated

import msgspec

DAY = 24 * 3600.0
#: What a user may set, a year and a day at most: longer than anything Stripe keeps.
Seconds = Annotated[float, msgspec.Meta(ge=0, le=366 * DAY)]

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

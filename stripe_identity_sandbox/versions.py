"""Which API versions can exist."""

import re
from datetime import date

from stripe_identity_sandbox.wire import ApiError

#: The months in which Stripe began to release API versions under a name.
RELEASES = {
    "2024-09": "acacia",
    "2025-03": "basil",
    "2025-09": "clover",
    "2026-03": "dahlia",
    "2026-09": "endive",
}


def check(version: str | None) -> None:
    """Refuse a version that cannot exist: no date, or not the name its month has.

    Which days had a release is not known here, nor what comes after the last name.
    """
    if version is None:
        return
    # Features in preview follow a semicolon.
    day, _, name = version.partition(";")[0].strip().partition(".")
    try:
        valid = bool(re.fullmatch(r"\d{4}-\d\d-\d\d", day)) and bool(date.fromisoformat(day))
    except ValueError:
        valid = False
    expected = [release for month, release in RELEASES.items() if month <= day[:7]]
    if expected and expected[-1] != "endive":
        valid = valid and name in {expected[-1], "preview"}
    elif not expected:
        valid = valid and not name
    if not valid:
        raise ApiError(400, f"Invalid Stripe API version: {version}")

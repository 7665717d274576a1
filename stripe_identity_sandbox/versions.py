"""Which API versions can exist."""

import re
from datetime import date

#: The months in which Stripe began to release API versions under a name.
RELEASES = {
    "2024-09": "acacia",
    "2025-03": "basil",
    "2025-09": "clover",
    "2026-03": "dahlia",
    "2026-09": "endive",
}
#: A release every half year: the name of this month's is not known here.
UNKNOWN = "2027-03"
#: Names besides that of the release; ``dashboard`` was released once, in March 2025.
OTHER_NAMES = ("preview", "dashboard")


def exists(version: str) -> bool:
    """Say whether a version can exist: a date, with the name that its month has.

    Which days had a release is not known here. Features in preview may follow a semicolon.
    """
    found = re.fullmatch(r"(\d{4}-\d\d)(-\d\d)(?:\.([a-z]+))?(?:;[ \w=.;-]*)?", version, re.ASCII)
    if not found:
        return False
    month, day, name = found.groups()
    try:
        date.fromisoformat(month + day)
    except ValueError:
        return False
    if month >= UNKNOWN:
        return name is not None
    expected = next((RELEASES[first] for first in reversed(RELEASES) if first <= month), None)
    return name == expected or (expected is not None and name in OTHER_NAMES)

"""The tables of docs/scaling.md: sums over what `make bench` measured and what the code says.

python -m tests.scaling_page    writes them into the page
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service import connection
from service.inbox import pending_limit
from service.inbox.inbox import MEMORY_LIMIT
from service.inbox.keys import KEEP
from service.settings import Settings
from stripe_identity_sandbox.lifetimes import RETRIES

DOCS = Path(__file__).parents[1] / "docs"
PAGE, MEASURED = DOCS / "scaling.md", DOCS / "performance.md"
MONTHS = (10_000, 100_000, 1_000_000, 10_000_000)
HANDLERS = (0.0, 0.5, 2.0, 10.0)
RETENTIONS = (4, 14, 31, KEEP // 86_400, 90, 400)
"""Days: the floor and the ceiling of RETENTION_DAYS, and some between."""
PLANS = (20, 40, 100, 1_000)
CALL = 0.2
"""Seconds a call of Stripe's API takes, as in the benchmarks."""
MONTH = 30
"""Days."""
SMALLEST_INBOX = 10_000
MEMORY = (512, 2_048, 8_192)
"""Megabytes of Redis in the simulation."""
STEP = 10
"""Seconds of the simulation."""
WAITS = RETRIES["live"]
"""Seconds that Stripe waits before it delivers again, as the sandbox plays it."""
WEB_PROCESSES = Settings.model_fields["web_concurrency"].default
CONCURRENCY = Settings.model_fields["worker_concurrency"].default
RATE = Settings(stripe_api_base="https://api.stripe.com").api_rate

Row = Sequence[object]


def measured(row: str) -> list[float]:
    """Return the numbers of every row of docs/performance.md that begins with this cell."""
    text = MEASURED.read_text(encoding="utf-8")
    rows = re.findall(rf"^\| \**{re.escape(row)}\** \|(.*)\|$", text, re.MULTILINE)
    cells = [re.findall(r"[\d.,]+", each.replace("*", "")) for each in rows]
    return [float(each.replace(",", "")) for row in cells for each in row if each != ","]


def bytes_of(state: str) -> float:
    """Return what an event takes in Redis, on the server where it takes more."""
    return max(measured(state)[:2])


def redis_us() -> float:
    """Return the microseconds of Redis for an event with one handler, with few others queued."""
    steps = ("accept", "take and claim", "record and finish")
    per_row = 6  # Redis few, many, ratio; client few, many, ratio
    return sum(max(measured(step)[0::per_row]) for step in steps)


def memory() -> list[Row]:
    """Redis by events a month: what is kept, a day that waits, and what to set."""
    rows: list[Row] = []
    for month in MONTHS:
        kept = month / MONTH * KEEP / 86_400 * bytes_of("settled")
        limit = max(SMALLEST_INBOX, _round_up(month / MONTH))
        waiting = limit * bytes_of("pending")
        wanted = (kept + waiting) / MEMORY_LIMIT
        rows.append((f"{month:,}", _mb(kept), f"{limit:,}", _mb(waiting), f"**{_mb(wanted)}**"))
    return rows


def retention() -> list[Row]:
    """Memory of what is kept, by events a month and by days."""
    return [
        (f"{month:,}", *(_mb(month / MONTH * days * bytes_of("settled")) for days in RETENTIONS))
        for month in MONTHS
    ]


def workers() -> list[Row]:
    """Workers for as many events as Stripe allows, by what handlers take."""
    rows: list[Row] = []
    for seconds in HANDLERS:
        at_once = math.ceil(RATE * (CALL + seconds))
        count = math.ceil(at_once / CONCURRENCY)
        used = count * (connection.RQ + connection.worker_connections(CONCURRENCY))
        rows.append((f"{seconds:g} s", at_once, count, used))
    return rows


def connections() -> list[Row]:
    """Workers that fit beside web, one periodic process and two commands, by the plan."""
    web = WEB_PROCESSES * (connection.WEB + connection.LINK)
    return [
        (f"{plan:,}", web, connection.workers_that_fit(plan, WEB_PROCESSES, CONCURRENCY))
        for plan in PLANS
    ]


def burst() -> list[Row]:
    """What Redis takes of a core and of memory."""
    share = redis_us() / 1e6
    return [
        ("of one core of Redis, 1,000 events a second", f"{1_000 * share:.0%}"),
        ("events a second at which Redis has no time left", f"{_round_down(1 / share):,}"),
        ("memory of Redis for a million that wait", _mb(1e6 * bytes_of("pending"))),
    ]


@dataclass
class Course:
    """How a burst went, in seconds and events."""

    limit: int
    full_at: int | None = None
    with_stripe: int = 0
    given_up: int = 0
    over_at: int = 0


def simulate(rate: int, seconds: int, limit: int) -> Course:
    """Deliver `rate` events a second for so long, to an inbox that takes `limit`.

    Stripe sends what is answered 503 again after the waits of its schedule, and then gives up;
    workers take as many a second as Stripe's limit allows. Reconciliation is left out.
    """
    course = Course(limit)
    due: dict[int, Counter[int]] = defaultdict(Counter)  # by moment: deliveries by their tries
    inbox = kept = now = 0
    while now < seconds or inbox or kept:
        inbox -= min(inbox, RATE * STEP)
        arriving = due.pop(now, Counter())
        kept -= arriving.total()
        if now < seconds:
            arriving[0] += rate * STEP
        for tries, count in sorted(arriving.items(), reverse=True):
            taken = min(count, limit - inbox)
            inbox += taken
            if refused := count - taken:
                course.full_at = now if course.full_at is None else course.full_at
                if tries == len(WAITS):
                    course.given_up += refused
                else:
                    due[now + int(WAITS[tries])][tries + 1] += refused
                    kept += refused
        course.with_stripe = max(course.with_stripe, kept)
        now += STEP
    course.over_at = now
    return course


def simulation() -> list[Row]:
    """A thousand events a second for an hour, and a million within seconds, by Redis' memory."""
    rows: list[Row] = []
    for name, rate, seconds in (
        ("1,000/s for 1 h", 1_000, 3_600),
        ("a million in 10 s", 100_000, 10),
    ):
        for maxmemory in MEMORY:
            limit = pending_limit({"maxmemory": maxmemory << 20})
            course = simulate(rate, seconds, limit)
            full = "never" if course.full_at is None else f"{course.full_at / 60:.0f} min"
            left = f"{course.over_at / 3_600:.0f} h"
            cells = (f"{limit:,}", full, f"{course.with_stripe:,}", f"{course.given_up:,}", left)
            rows.append((name, f"{maxmemory:,} MB", *cells))
    return rows


def render() -> dict[str, str]:
    """Return each table by the name of its mark."""
    return {
        "memory": _table(
            ("events a month", "kept for 35 days", "`INBOX_LIMIT`", "that waits", "`maxmemory`"),
            memory(),
        ),
        "retention": _table(
            ("events a month", *(f"{days} days" for days in RETENTIONS)), retention()
        ),
        "workers": _table(
            ("a handler takes", "events at once", "workers", "their connections"), workers()
        ),
        "connections": _table(
            ("connections of the plan", "web's", "workers that fit"), connections()
        ),
        "burst": _table(("", ""), burst()),
        "simulation": _table(
            (
                *("events", "`maxmemory`", "`INBOX_LIMIT`", "full after", "most that Stripe keeps"),
                *("left to reconciliation", "all handled after"),
            ),
            simulation(),
        ),
        "facts": (
            f"- {RATE} calls a second are what all workers make together (`STRIPE_API_RATE`).\n"
            f"- A worker takes {CONCURRENCY} events at once (`WORKER_CONCURRENCY`).\n"
            f"- Two web processes accepted {measured('identity-webhooks')[0]:,.0f} deliveries a"
            " second where that was measured.\n"
        ),
    }


def page() -> str:
    """Return the page with its tables as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in render().items():
        replace: Callable[[re.Match[str]], str] = lambda found, table=table: (  # noqa: E731
            f"{found[1]}{table}{found[2]}"
        )
        text, count = re.subn(
            rf"(<!-- {name}: made by make scaling-page -->\n).*?(<!-- end -->)",
            replace,
            text,
            flags=re.DOTALL,
        )
        assert count == 1, name
    return text


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _mb(number: float) -> str:
    return f"{math.ceil(number / 1e6):,} MB"


def _round_up(number: float) -> int:
    """Return it with two figures."""
    unit = 10 ** (len(str(int(number))) - 2)
    return int(math.ceil(number / unit) * unit)


def _round_down(number: float) -> int:
    unit = 10 ** (len(str(int(number))) - 2)
    return int(number // unit * unit)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Writes the worker's part of docs/performance.md, and its picture."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks import picture
from tests.benchmarks.machine import PAGE, write_section
from tests.benchmarks.worker.contest import (
    ARQ,
    AT_ONCE,
    CELERY,
    CELERY_TWICE,
    DRAMATIQ,
    DRAMATIQ_TWICE,
    OURS,
    OURS_TWICE,
    ROUNDS,
    RQ,
    SECONDS,
    WITH_A_SLOW_API,
    Result,
)

Results = dict[int, dict[str, Result]]
"""By the delay of the API in milliseconds, then by name."""

AT_ONCE_MS, STRIPE_MS = min(ROUNDS), max(ROUNDS)
MAX_CPU, MAX_COMMANDS = 3.0, 20.0


def write(
    results: Results, rounds: dict[int, int], versions: dict[str, str], explained: str
) -> None:
    """Write the section, and the picture beside the page."""
    image = PAGE.with_name("performance-worker.svg")
    charts = {
        f"events a second, {_api(delay)}": {
            name: result.rate for name, result in results[delay].items()
        }
        for delay in (STRIPE_MS, AT_ONCE_MS)
    }
    picture.draw(image, charts, _is_ours, "/s")
    fastest = max((r for table in results.values() for r in table.values()), key=lambda r: r.rate)
    lines = [
        f"Snapshot events of distinct sessions wait in each one's queue; each is worked off by one"
        f" call of an API on the same machine, through Stripe's SDK. Measured over about"
        f" {SECONDS:.0f} s, with the slowest API {WITH_A_SLOW_API:.0f} s, after warming up. CPU is"
        " that of all processes of the worker; commands include those that scripts call within"
        " Redis, reads are about its round trips. Only ours"
        " keeps a ledger of every event and handler, leases and fencing tokens, and all of that"
        f" was on. Each process of ours has {AT_ONCE} events under way.",
        *[line for delay in results for line in _table(results[delay], delay, rounds[delay])],
        "",
        f"![events per second]({image.name})",
        "",
        f"When it was asked most, the API itself (C) took {fastest.api_cpu * 1000:.0f} us of CPU a"
        " call.",
        "",
        "### Goals",
        "",
        "| goal | wanted | measured | | by CPU |",
        "|---|---:|---:|---|---:|",
        *_goals(results),
        "",
        explained.strip(),
    ]
    write_section("worker", lines, versions)


def _api(delay: int) -> str:
    return f"an API that takes {delay} ms" if delay else "an API that answers at once"


def _is_ours(name: str) -> bool:
    return name in {OURS, OURS_TWICE}


def _table(results: dict[str, Result], delay: int, rounds: int) -> Iterator[str]:
    ours = results[OURS].rate
    yield from ("", f"### With {_api(delay)}", "")
    yield f"Medians of {rounds} rounds in which all took turns." if rounds > 1 else "One round."
    yield from (
        "",
        "| worker | events/s | of ours x 1 | CPU ms/event | Redis CPU ms/event"
        " | Redis commands/event | reads/event | ledger, leases, fencing |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    )
    for name, r in results.items():
        label, keeps = (f"**{name}**", "yes") if _is_ours(name) else (name, "no")
        yield (
            f"| {label} | {r.rate:,.{0 if r.rate >= 100 else 1}f} | {r.rate / ours:.2f}"
            f" | {r.cpu:.2f} | {r.redis_cpu:.2f} | {r.commands:.1f} | {r.reads:.1f} | {keeps} |"
        )


def _goals(results: Results) -> Iterator[str]:
    """Yield each goal as it was measured, and as the CPU alone would have it.

    The second leaves out what share of the machine each happened to get.
    """
    slow, fast = results[STRIPE_MS], results[AT_ONCE_MS]
    yield _ratio(slow, OURS, RQ, 50, _api(STRIPE_MS), by_cpu=False)
    bound = AT_ONCE / (STRIPE_MS / 1000)
    share = slow[OURS].rate / bound
    yield _goal(
        f"{OURS} against the bound of {AT_ONCE} at once, {bound:.0f}/s", "at least", 0.85, share
    )
    yield _ratio(fast, OURS, RQ, 20, _api(AT_ONCE_MS))
    for ours, others in (
        (OURS, (DRAMATIQ, ARQ, CELERY)),
        (OURS_TWICE, (DRAMATIQ_TWICE, CELERY_TWICE)),
    ):
        for other in others:
            yield _ratio(fast, ours, other, 1, _api(AT_ONCE_MS))
    everywhere = [table[OURS] for table in results.values()]
    cpu, commands = max(r.cpu for r in everywhere), max(r.commands for r in everywhere)
    yield _goal(f"CPU ms/event of {OURS}, worst of the tables", "at most", MAX_CPU, cpu)
    yield _goal(f"Redis commands/event of {OURS}, likewise", "at most", MAX_COMMANDS, commands)


def _ratio(
    table: dict[str, Result], ours: str, other: str, wanted: float, where: str, by_cpu: bool = True
) -> str:
    goal = f"events/s of {ours} against {other}, {where}"
    cpu = _all_cpu(table[other]) / _all_cpu(table[ours])
    return _goal(
        goal, "at least", wanted, table[ours].rate / table[other].rate, cpu if by_cpu else None
    )


def _goal(
    text: str, bound: str, wanted: float, measured: float, by_cpu: float | None = None
) -> str:
    met = measured >= wanted if bound == "at least" else measured <= wanted
    verdict = "met" if met else "missed"
    beside = "" if by_cpu is None else f"{by_cpu:.2f}"
    return f"| {text} | {bound} {wanted:g} | {measured:.2f} | {verdict} | {beside} |"


def _all_cpu(result: Result) -> float:
    return result.cpu + result.redis_cpu

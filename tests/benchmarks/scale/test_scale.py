"""A million events, memory, start; writes its section of docs/performance.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import machine
from tests.benchmarks.scale import finding, growth, life, size
from tests.benchmarks.scale.growth import FEW, MANY, SETTLED, Growth, Weight
from tests.benchmarks.scale.size import CONCURRENCY, EVENTS, REQUESTS, STARTS, Sizes, Starts
from tests.benchmarks.system import verdict

HERE = Path(__file__).parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", machine.redis_servers())
def test_events_are_found_among_a_hundred_thousand(program) -> None:
    found = finding.measure(program)
    sys.stderr.write("\n" + finding.table(found))
    assert max(found.milliseconds.values()) < finding.AT_MOST


@pytest.mark.timeout(900)
def test_a_million_events_and_the_size_of_it_all() -> None:
    starts = size.starts()
    sizes = size.sizes()
    sys.stderr.write(f"\n{starts}\n{sizes}\n")
    grown = []
    for program in machine.redis_servers():
        grown.append(growth.measure(program))
        sys.stderr.write(f"{grown[-1]}\n")
    write(grown, sizes, starts)
    for each in grown:
        assert all(many.redis < 3 * few.redis for few, many in each.costs.values())
        assert each.pending.total < 2_000
    assert max(sizes.web, sizes.worker) < 200


def write(grown: list[Growth], sizes: Sizes, starts: Starts) -> None:
    """Write the section."""
    lines = [
        f"Each step with {FEW:,} and with {MANY:,} events in the queue, on two servers that took"
        f" turns: medians of {growth.ROUNDS} batches of {growth.BATCH} by one client.",
        *(line for each in grown for line in _costs(each)),
        "",
        *(HERE / "explained.md").read_text().splitlines(),
        "",
        "### Memory of Redis",
        "",
        "Growth of `used_memory` for one event, its ids as long as Stripe's and its session its"
        f" own: {MANY:,} pending ones; {SETTLED:,} settled ones with {len(life.HANDLERS)} handlers"
        " each. The parts are by `MEMORY USAGE`.",
        "",
        f"| bytes for one event | {' | '.join(each.server for each in grown)} |",
        "|---|" + "---:|" * len(grown),
        *_parts("pending", [each.pending for each in grown]),
        *_parts("settled", [each.settled for each in grown]),
        "",
        "A settled event keeps what a late duplicate, a person or reconciliation may ask for, in"
        " one line. What its session last heard stands with other sessions of the month, so that it"
        " is the less the more there are. Where it is more than wanted: each event is a key, with"
        " an allocation of its own and entries in the tables of keys and of expiries, which"
        " Valkey 9 keeps smaller than Redis 7. Less would mean to keep many events in one key, and"
        " to forget them by a program of ours.",
        "",
        "### Processes",
        "",
        f"Resident memory after {REQUESTS:,} deliveries, and after {EVENTS:,} events in a worker"
        f" with {CONCURRENCY} threads. Pages that a parent and its children share are counted in"
        f" each. Starts are medians of {STARTS}.",
        "",
        "| process | MB | ready after s | that is |",
        "|---|---:|---:|---|",
        f"| web, each process | {sizes.web:.0f} | {starts.web:.2f} | first 200 of /healthz |",
        f"| web, gunicorn's own | {sizes.web_parent:.0f} | | |",
        f"| worker, the process that runs events | {sizes.worker:.0f} | {starts.worker:.2f}"
        " | first handler runs |",
        f"| worker, its parent | {sizes.worker_parent:.0f} | | |",
        f"| periodic | {sizes.periodic:.0f} | | |",
        "",
        *_goals(grown, sizes),
    ]
    names = ("gunicorn", "flask", "redis", "rq", "stripe")
    machine.write_section("scale", lines, machine.python_versions(sys.executable, *names))


def _costs(grown: Growth) -> list[str]:
    return [
        "",
        f"**{grown.server}.** A million events, the very commands of the inbox, went in within"
        f" {grown.fill_seconds:.0f} s.",
        "",
        f"| step | Redis us with {FEW:,} | with {MANY:,} | ratio | client us with {FEW:,}"
        f" | with {MANY:,} | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {step} | {few.redis:.0f} | {many.redis:.0f} | {many.redis / few.redis:.2f}"
            f" | {few.client:.0f} | {many.client:.0f} | {many.client / few.client:.2f} |"
            for step, (few, many) in grown.costs.items()
        ),
    ]


def _parts(name: str, weights: list[Weight]) -> list[str]:
    def row(what: str, values: list[float], mark: str = "") -> str:
        cells = " | ".join(f"{mark}{value:,.0f}{mark}" for value in values)
        return f"| {mark}{what}{mark} | {cells} |"

    return [
        row(name, [weight.total for weight in weights], "**"),
        *(row(part, [weight.parts[part] for weight in weights]) for part in weights[0].parts),
    ]


def _goals(grown: list[Growth], sizes: Sizes) -> list[str]:
    goals: list[tuple[str, str, float, float]] = [
        (f"{step}, {side}, {MANY:,} to {FEW:,}: {_short(each)}", "{:.2f}", 1.2, ratio)
        for each in grown
        for step, (few, many) in each.costs.items()
        for side, ratio in (
            ("Redis", many.redis / few.redis),
            ("client", many.client / few.client),
        )
    ]
    for each in grown:
        settled = f"settled event, {len(life.HANDLERS)} handlers: {_short(each)}"
        goals += [
            (f"pending event: {_short(each)}", "{:,.0f} bytes", 1_000, each.pending.total),
            (settled, "{:,.0f} bytes", 350, each.settled.total),
        ]
    goals += [
        ("web, every process", "{:.0f} MB", 60, max(sizes.web, sizes.web_parent)),
        (f"worker with {CONCURRENCY} threads", "{:.0f} MB", 80, sizes.worker),
    ]
    return [
        "| goal | at most | measured | |",
        "|---|---:|---:|---|",
        *(
            f"| {what} | {unit.format(wanted)} | {unit.format(value)} |"
            f" {verdict(value <= wanted)} |"
            for what, unit, wanted, value in goals
        ),
    ]


def _short(grown: Growth) -> str:
    return grown.server.partition(",")[0]

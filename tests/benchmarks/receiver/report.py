"""Writes the receiver's part of docs/performance.md, and its picture."""

from __future__ import annotations

from tests.benchmarks import picture
from tests.benchmarks.machine import PAGE, write_section
from tests.benchmarks.receiver.contest import (
    CONNECTIONS,
    EXPRESS,
    FLASK_HELLO,
    NAIVE,
    NODE,
    OURS,
    PROCESSES,
    SECONDS,
    Result,
)


def write(
    results: dict[str, Result], rounds: int, versions: dict[str, str], explained: str
) -> None:
    """Write the section, and the picture beside the page."""
    image = PAGE.with_name("performance-receiver.svg")
    rates = {name: result.rate for name, result in results.items()}
    picture.draw(image, {"requests a second": rates}, lambda name: name == OURS, "/s")
    lines = [
        f"{CONNECTIONS} connections in a closed loop for {SECONDS:.0f} s, distinct signed events of"
        f" 2.5 to 4 kB, {PROCESSES} processes each, medians of {rounds} rounds in which all took"
        " turns. Load generator and Redis run on the same machine.",
        "",
        *_table(results),
        "",
        f"![requests per second]({image.name})",
        "",
        f"The load generator itself took {min(r.load_cpu for r in results.values()):.0f} to"
        f" {max(r.load_cpu for r in results.values()):.0f} us of CPU a request.",
        "",
        *_goals(results),
        "",
        explained.strip(),
    ]
    write_section("receiver", lines, versions)


def _table(results: dict[str, Result]) -> list[str]:
    ours = results[OURS].rate
    lines = [
        "| receiver | requests/s | of ours | p50 ms | p99 ms | CPU us/request | Redis us/request |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, r in results.items():
        label = f"**{name}**" if name == OURS else name
        lines.append(
            f"| {label} | {r.rate:,.0f} | {r.rate / ours:.2f} | {r.p50:.1f} | {r.p99:.1f}"
            f" | {r.server_cpu:.0f} | {r.redis_cpu:.0f} |"
        )
    return lines


def _goals(results: dict[str, Result]) -> list[str]:
    """Return each goal as it was measured, and as the CPU alone would have it.

    The second leaves out what share of the machine each happened to get.
    """
    ours = results[OURS]
    lines = ["| goal | wanted | measured | | by CPU |", "|---|---:|---:|---|---:|"]
    for other, wanted in ((NODE, 1.0), (EXPRESS, 1.6), (FLASK_HELLO, 0.55)):
        rate = ours.rate / results[other].rate
        cpu = _all_cpu(results[other]) / _all_cpu(ours)
        lines.append(
            f"| requests/s against {other} | at least {wanted:.2f} | {rate:.2f}"
            f" | {'met' if rate >= wanted else 'missed'} | {cpu:.2f} |"
        )
    for other, most in ((NAIVE, 0.25), (NODE, 1.0)):
        late = ours.p99 / results[other].p99
        verdict = "met" if late <= most else "missed"
        lines.append(f"| p99 against {other} | at most {most:.2f} | {late:.2f} | {verdict} | |")
    return lines


def _all_cpu(result: Result) -> float:
    return result.server_cpu + result.redis_cpu

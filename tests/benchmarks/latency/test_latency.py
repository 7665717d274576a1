"""From accepted to handler; writes its section of docs/performance.md."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from tests.benchmarks import machine, system
from tests.benchmarks.system import WEB_PROCESSES, percentile, verdict

CONCURRENCY = 20
SECONDS = 25
QUIET, BUSY = 10, 80
"""Events a second. 20 threads that wait 200 ms each are saturated by 100."""


@dataclass(frozen=True)
class Case:
    """What is sent and how long the API takes; what is wanted of the wait, in milliseconds."""

    api_ms: int
    rate: int
    p50: float | None
    p99: float


@dataclass(frozen=True)
class Result:
    """Milliseconds."""

    p50: float
    p99: float
    answer_p50: float
    answer_p99: float
    api_p50: float


CASES = (
    Case(api_ms=0, rate=QUIET, p50=5, p99=25),
    Case(api_ms=200, rate=QUIET, p50=205, p99=225),
    Case(api_ms=200, rate=BUSY, p50=None, p99=800),
)


@pytest.mark.timeout(300)
def test_from_accepted_to_handler() -> None:
    results = {case: measure(case) for case in CASES}
    write(results)
    assert all(result.p99 < 5_000 for result in results.values()), "nothing waits for a sweep"


def measure(case: Case) -> Result:
    with system.everything(api_ms=case.api_ms, concurrency=CONCURRENCY) as running:
        answers = system.send(running, case.rate * SECONDS, case.rate)
        running.wait_until_handled(answers)
        alone = system.api_alone(running)
        waited = [1000 * seconds for seconds in running.waited(answers)]
    assert {answer.status for answer in answers.values()} == {200}
    answered = [1000 * answer.seconds for answer in answers.values()]
    result = Result(
        percentile(waited, 0.5),
        percentile(waited, 0.99),
        percentile(answered, 0.5),
        percentile(answered, 0.99),
        percentile(alone, 0.5) * 1000,
    )
    sys.stderr.write(f"\n{case}\n  {result}\n")
    return result


def write(results: dict[Case, Result]) -> None:
    """Write the section."""
    lines = [
        "From accepted, by the clock of Redis, to the start of a handler that stands behind the"
        f" built-in one: gunicorn with {WEB_PROCESSES} processes, one worker with {CONCURRENCY}"
        " threads, the periodic process, and an API that answers after a fixed time. Events come"
        f" singly, each over a connection of its own, for {SECONDS} s. Accepted is kept in whole"
        " milliseconds; the middle of each is taken.",
        "",
        "| API | to a bare client p50 ms | events/s | p50 ms | p99 ms | receiver's answer p50 ms"
        " | p99 ms |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {case.api_ms} ms | {r.api_p50:.1f} | {case.rate} | {r.p50:.1f} | {r.p99:.1f}"
        f" | {r.answer_p50:.1f} | {r.answer_p99:.1f} |"
        for case, r in results.items()
    ]
    lines += ["", "| goal | wanted | measured | |", "|---|---:|---:|---|"]
    for case, r in results.items():
        what = f"API {case.api_ms} ms, {case.rate} events/s"
        for name, wanted, measured in (("p50", case.p50, r.p50), ("p99", case.p99, r.p99)):
            if wanted is not None:
                lines.append(
                    f"| {what}: {name} | at most {wanted:.0f} ms | {measured:.1f} ms"
                    f" | {verdict(measured <= wanted)} |"
                )
    busy = f"{BUSY} events/s are {BUSY * 200 // (CONCURRENCY * 10)} % of what the threads can do."
    machine.write_section("latency", [*lines, "", busy], versions())


def versions() -> dict[str, str]:
    return machine.python_versions(sys.executable, "gunicorn", "redis", "rq", "stripe", "urllib3")

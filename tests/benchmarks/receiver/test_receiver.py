"""The receiver beside what a user would pick instead; writes its section of docs/performance.md.

`BENCH_ROUNDS=1` for a quick look, which writes the page as well.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict

import pytest

from tests.benchmarks import machine
from tests.benchmarks.machine import ROOT
from tests.benchmarks.receiver import contest, report
from tests.benchmarks.receiver.contest import OURS, Result

EXPLAINED = (ROOT / "tests/benchmarks/receiver/explained.md").read_text()


@pytest.mark.timeout(1500)
def test_the_receiver_and_its_competitors() -> None:
    if missing := machine.missing_tools():
        pytest.skip(f"needs {missing}")
    rounds = int(os.environ.get("BENCH_ROUNDS", "4"))
    runs: dict[str, list[Result]] = defaultdict(list)
    for number, competitor, result in contest.run(rounds):
        runs[competitor.name].append(result)
        sys.stderr.write(
            f"\nround {number + 1}/{rounds} {competitor.name:40} {result.rate:8.0f}/s"
            f" p50 {result.p50:6.1f} p99 {result.p99:6.1f} ms, CPU {result.server_cpu:5.0f}"
            f" + Redis {result.redis_cpu:4.0f} + load {result.load_cpu:3.0f} us"
        )
    sys.stderr.write("\n")
    medians = {name: Result.median(results) for name, results in runs.items()}
    report.write(medians, rounds, contest.versions(), EXPLAINED)
    slowest = min(result.rate for result in medians.values())
    assert medians[OURS].rate > slowest, "ours is not the slowest of all"
    assert all(r.load_cpu < r.server_cpu for r in medians.values()), "the generator is no limit"

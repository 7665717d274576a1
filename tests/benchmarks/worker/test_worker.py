"""The worker beside what a user would pick instead; writes its section of docs/performance.md.

`BENCH_ROUNDS=1` for a quick look, which writes the page as well.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict

import pytest

from tests.benchmarks import machine
from tests.benchmarks.machine import ROOT
from tests.benchmarks.worker import contest, report
from tests.benchmarks.worker.contest import OURS, ROUNDS, RQ, Result

EXPLAINED = (ROOT / "tests/benchmarks/worker/explained.md").read_text()


@pytest.mark.timeout(1500)
def test_the_worker_and_its_competitors() -> None:
    if missing := machine.missing_tools():
        pytest.skip(f"needs {missing}")
    at_most = int(os.environ.get("BENCH_ROUNDS", "99"))
    rounds = {delay: min(count, at_most) for delay, count in ROUNDS.items()}
    runs: dict[int, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for delay, number, competitor, result in contest.run(rounds):
        runs[delay][competitor.name].append(result)
        sys.stderr.write(
            f"\n{delay:3} ms, round {number + 1}/{rounds[delay]} {competitor.name:25}"
            f" {result.rate:8.1f}/s, CPU {result.cpu:6.2f} + Redis {result.redis_cpu:.2f} ms,"
            f" {result.commands:4.1f} commands, {result.reads:4.1f} reads"
        )
    sys.stderr.write("\n")
    medians = {
        delay: {name: Result.median(results) for name, results in table.items()}
        for delay, table in runs.items()
    }
    report.write(medians, rounds, contest.versions(), EXPLAINED)
    for table in medians.values():
        assert table[OURS].rate > 5 * table[RQ].rate, "ours is far ahead of what it replaces"
        assert all(r.api_cpu * r.rate < 300 for r in table.values()), "the API is no limit"

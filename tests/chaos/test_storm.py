"""A short storm, every change in both forms; `make chaos` has the long ones."""

from __future__ import annotations

import pytest

from tests.chaos.storm import Plan, run


@pytest.mark.timeout(900)
def test_a_short_storm_in_both_forms() -> None:
    report = run(
        Plan(
            events=300,
            kills=12,
            redis_kills=1,
            seed=1,
            rate=20,
            forms=("snapshot", "thin"),
            plain_rq=False,
        )
    )
    assert report["kept"], report

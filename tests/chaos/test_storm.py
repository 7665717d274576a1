"""A short storm, every change in both forms; `make chaos` has the long ones."""

from __future__ import annotations

import pytest

from tests.chaos import storm
from tests.chaos.storm import Plan, run, summary


@pytest.mark.timeout(900)
def test_a_short_storm_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    # How soon is for `make chaos`, which has the machine to itself.
    monkeypatch.setattr(storm, "QUIET_WITHIN", 300)
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
    assert report["kept"], summary(report)

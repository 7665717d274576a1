"""What the console makes of numbers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from service.console.pages import _quantile
from service.metrics import TABLE

BOUNDS = TABLE["handler_seconds"].buckets
TIMES = st.sampled_from([*BOUNDS, math.inf])


@given(runs=st.lists(TIMES, min_size=1, max_size=50), share=st.sampled_from([0.5, 0.95]))
def test_so_many_of_the_runs_ended_within_what_is_shown(runs: list[float], share: float) -> None:
    counts: dict[str, float] = {"handler_seconds|a.b|sum": 1e9, "handler_seconds|a.c|0.1": 1e9}
    for bound in runs:
        name = f"handler_seconds|a.b|{'+Inf' if bound == math.inf else f'{bound:g}'}"
        counts[name] = counts.get(name, 0) + 1
    expected = sorted(runs)[math.ceil(share * len(runs)) - 1]
    shown = f"over {BOUNDS[-1]:g} s" if expected == math.inf else f"{expected:g} s"
    assert _quantile(counts, "a.b", share) == shown


def test_without_a_run_nothing_is_shown() -> None:
    assert _quantile({"handler_seconds|a.c|0.1": 3}, "a.b", 0.5) is None

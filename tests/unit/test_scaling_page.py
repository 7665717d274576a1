"""docs/scaling.md: its tables are what the code and docs/performance.md say."""

from __future__ import annotations

from tests.scaling_page import PAGE, measured, page


def test_it_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make scaling-page"


def test_what_is_read_of_the_measurements_is_there() -> None:
    assert len(measured("pending")) == len(measured("settled")) == 2
    for step in ("accept", "take and claim", "record and finish"):
        assert len(measured(step)) == 12

"""`workers.doctor`: what is computed from what was found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.inbox.inbox import MEMORY_LIMIT
from tests.scaling_page import bytes_of
from tests.unit.service.test_status import WELL
from workers.doctor import DONE_EVENT, memory_for_the_rate

DAY = 86_400


@pytest.mark.parametrize(
    ("days", "fits"), [(4, True), (35, True), (39, True), (41, False), (400, False)]
)
def test_events_have_to_fit_for_as_long_as_they_are_kept(days: int, fits: bool) -> None:
    a_day = 1000
    limit = round(40 * a_day * DONE_EVENT / MEMORY_LIMIT)
    seen = replace(WELL, memory_limit=limit)
    (finding,) = memory_for_the_rate(seen, days * DAY, a_day)
    assert (finding.state == "good") == fits
    assert "1000 events a day" in finding.text


def test_a_done_event_takes_what_was_measured() -> None:
    assert bytes_of("settled") == pytest.approx(DONE_EVENT, rel=0.05)

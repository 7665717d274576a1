"""`workers.doctor`: what is computed from what was found."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from service.inbox.inbox import MEMORY_LIMIT
from service.settings import Settings
from tests.scaling_page import bytes_of
from tests.unit.service.test_status import WELL
from workers.doctor import DONE_EVENT, _clock, _of_settings, memory_for_the_rate

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


@pytest.mark.parametrize("ahead", [0, 3_600], ids=["", "after Redis' clock was set back"])
@pytest.mark.parametrize(
    ("apart", "state"), [(0, "good"), (2, "good"), (-2, "good"), (60, "bad"), (-60, "bad")]
)
def test_clocks_differ_by_what_redis_itself_says(apart: int, state: str, ahead: int) -> None:
    """The inbox goes on from the latest moment that it has seen, which no clock shows."""
    of_redis = time.time() - apart
    found = _clock(replace(WELL, now=of_redis + ahead, clock_ahead=ahead))
    assert found.state == state
    assert state == "good" or re.search(r"differ by (59|6\d) s", found.text)


WEB, WORKER = "STRIPE_WEBHOOK_SECRET", "STRIPE_API_KEY"
GOOD = {WEB: "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4", WORKER: "sk_test_workers"}
MODE = {"STRIPE_LIVEMODE": "0"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GOOD, ["good complete for web", "good complete for worker"]),
        ({WEB: GOOD[WEB]} | MODE, ["good complete for web"]),
        ({WEB: GOOD[WEB]}, ["bad STRIPE_LIVEMODE: set it to 1 or 0, or give STRIPE_API_KEY"]),
        ({WORKER: GOOD[WORKER]}, ["good complete for worker"]),
        (MODE, ["bad STRIPE_API_KEY: missing"]),
    ],
    ids=["both", "web", "web without a mode", "worker", "none"],
)
def test_each_role_is_checked_that_has_its_secret_here(given, said, monkeypatch) -> None:
    for name in (*GOOD, *MODE):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = [each for each in _of_settings(Settings.load("tool")) if each.name == "settings"]
    lines = [f"{each.state} {each.text}" for each in found]
    assert len(lines) == len(said), lines
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True)), lines

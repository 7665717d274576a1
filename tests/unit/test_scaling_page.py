"""docs/scaling.md: its tables are what the code and docs/performance.md say."""

from __future__ import annotations

from tests.scaling_page import PAGE, RATE, STEP, measured, page, simulate


def test_it_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make scaling-page"


def test_what_is_read_of_the_measurements_is_there() -> None:
    assert len(measured("pending")) == len(measured("settled")) == 2
    for step in ("accept", "take and claim", "record and finish"):
        assert len(measured(step)) == 12


def test_a_simulated_burst_ends_when_its_events_are_worked_off() -> None:
    course = simulate(1_000, 60, limit=10**9)
    assert course.full_at is None
    assert course.with_stripe == course.given_up == 0
    assert 0 <= course.over_at - 60_000 / RATE <= 2 * STEP


def test_what_a_simulated_inbox_does_not_take_is_kept_by_stripe_or_given_up() -> None:
    course = simulate(1_000, 60, limit=1_000)
    assert course.full_at == 0
    assert course.with_stripe == 60_000 - 1_000 - 5 * RATE * STEP
    assert course.given_up > 0

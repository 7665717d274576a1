"""`workers.ending.end_of`: whether an event is over, or when it is looked at again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from identity_webhooks.event import Event
from service.inbox import Claim, Progress
from workers.ending import UNKNOWN_FOR, UNKNOWN_WAIT, Finish, Release, end_of

EVENT = Event("evt_1", "verified", "snapshot", "vs_1", 0, livemode=False)
NOW = 1_800_000_000_000
DAY = 86_400


def claim_of(age: float, **progress: Progress) -> Claim:
    """Return the claim of an event that was accepted so many seconds ago."""
    since = NOW - round(age * 1000)
    return Claim(EVENT, "1", {f"p.{k}": p for k, p in progress.items()}, 0, 0, NOW, since)


@pytest.mark.parametrize("age", [UNKNOWN_FOR - 60, UNKNOWN_FOR + 60, 3 * DAY])
@pytest.mark.parametrize("overdue", [-60, 0, UNKNOWN_FOR - 60, UNKNOWN_FOR + 60])
def test_a_handler_that_is_gone_is_waited_for_an_hour_from_its_due_time(age, overdue) -> None:
    """A release may come that has it; how old the event is says nothing about that."""
    gone = Progress("retry", 2, due=NOW - overdue * 1000)
    end = end_of(claim_of(age, gone=gone, other=Progress("done")), [])
    if overdue < UNKNOWN_FOR:
        assert end == Release(UNKNOWN_WAIT, "p.gone: this release has no such handler")
    else:
        assert isinstance(end, Finish)
        assert (end.state, end.outcome) == ("dead", "no_handler")
        assert end.reason.startswith(
            "p.gone: this release has no such handler (removed or renamed?)"
        )


RETRY_SOON = Progress("retry", 1, due=NOW + 20_000, reason="retry: later")
# name: (how its handlers fared, how it ends)
ENDS: dict[str, tuple[dict[str, Progress], Finish | Release]] = {
    "due in twenty seconds": ({"a": RETRY_SOON}, Release(20, "handlers wait for their retry")),
    "due already": (
        {"a": Progress("retry", 1, due=NOW - 9_000)},
        Release(0.05, "handlers wait for their retry"),
    ),
    "without an attempt it says what for": (
        {"a": Progress("retry", 0, due=NOW + 1_000, reason="stripe: x"), "b": RETRY_SOON},
        Release(1, "stripe: x"),
    ),
    "one is dead and another waits": (
        {"a": Progress("dead", reason="x"), "b": RETRY_SOON},
        Release(20, "handlers wait for their retry"),
    ),
    "of two that are dead the first by name": (
        {"b": Progress("dead", reason="y"), "a": Progress("dead", reason="x")},
        Finish("dead", "", "p.a: x"),
    ),
    "none is dead": (
        {"a": Progress("done"), "b": Progress("superseded"), "c": Progress("skipped")},
        Finish("done", "", ""),
    ),
}


@pytest.mark.parametrize(("progress", "end"), ENDS.values(), ids=ENDS)
def test_how_its_handlers_fared_says_how_it_ends(progress, end) -> None:
    subscribed: list[Any] = [SimpleNamespace(name=f"p.{name}") for name in progress]
    assert end_of(claim_of(60, **progress), subscribed) == end

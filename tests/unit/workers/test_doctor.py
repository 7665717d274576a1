"""`workers.doctor`: what is computed from what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from service.findings import Finding
from service.inbox.inbox import MEMORY_LIMIT
from service.settings import Settings, SettingsError
from tests.scaling_page import bytes_of
from tests.unit.service.test_status import WELL
from workers import doctor
from workers.doctor import (
    DONE_EVENT,
    _clock,
    _of_plugins,
    _of_settings,
    memory_for_the_rate,
)

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
    needed, room = (days * a_day * DONE_EVENT / 2**20, 40 * a_day * DONE_EVENT / 2**20)
    assert finding.text.startswith(
        f"1000 events a day take {needed:.0f} MB in the end, of {room:.0f}"
    )
    assert ("give Redis more memory" in finding.text) != fits


@pytest.mark.parametrize(("limit", "a_day"), [(0, 1000), (2**20, 0)], ids=["no limit", "no event"])
def test_without_a_limit_or_an_event_nothing_is_reckoned(limit: int, a_day: int) -> None:
    assert list(memory_for_the_rate(replace(WELL, memory_limit=limit), 35 * DAY, a_day)) == []


def test_a_done_event_takes_what_was_measured() -> None:
    assert bytes_of("settled") == pytest.approx(DONE_EVENT, rel=0.05)


@pytest.mark.parametrize("ahead", [0, 3_600], ids=["", "after Redis' clock was set back"])
@pytest.mark.parametrize(
    ("apart", "state"),
    [(0, "good"), (5, "good"), (-5, "good"), (6, "bad"), (-6, "bad"), (60, "bad"), (-60, "bad")],
)
def test_clocks_differ_by_what_redis_itself_says(
    apart: int, state: str, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inbox goes on from the latest moment that it has seen, which no clock shows."""
    now = 1_800_000_000
    monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: float(now)))
    found = _clock(replace(WELL, now=now - apart + ahead, clock_ahead=ahead))
    assert found.state == state
    assert state == "good" or f"differ by {abs(apart)} s" in found.text


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({WORKER: GOOD[WORKER]}, ["events of test mode are processed"]),
        ({WORKER: "sk_live_workers"}, ["events of live mode are processed"]),
        (MODE, ["events of test mode are processed"]),
        ({"STRIPE_LIVEMODE": "1"}, ["events of live mode are processed"]),
        ({}, []),
    ],
    ids=["test key", "live key", "test", "live", "not known"],
)
def test_the_mode_is_named_if_it_is_known(given, said, monkeypatch) -> None:
    for name in (*GOOD, *MODE):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = [each for each in _of_settings(Settings.load("tool")) if each.name == "mode"]
    assert [(each.state, each.text) for each in found] == [("good", text) for text in said]


def test_handlers_are_named_and_none_at_all_is_a_fault() -> None:
    (found,) = _of_plugins(Settings())
    assert (found.state, found.text) == ("good", "1 handlers: audit.log_event")
    (found,) = _of_plugins(Settings(audit=False))
    assert (found.state, found.text.partition(":")[0]) == ("bad", "no handler")


BAD, GOOD_ONE, UNKNOWN = (Finding("a", state, "b") for state in ("bad", "good", "unknown"))
VOUCHED = replace(BAD, vouched=True)


@pytest.mark.parametrize("options", [[], ["--json"], ["--before-start"]])
@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 0),
        ([GOOD_ONE], 0),
        ([UNKNOWN], 0),
        ([VOUCHED], 0),
        ([BAD], 1),
        ([BAD, GOOD_ONE], 1),
        ([GOOD_ONE, BAD], 1),
        ([VOUCHED, BAD], 1),
    ],
    ids=lambda value: " ".join(each.state for each in value) if isinstance(value, list) else None,
)
def test_it_ends_with_1_if_anything_is_bad_and_not_vouched_for(
    found, code, options, monkeypatch
) -> None:
    asked = []

    def examine(*, before_start: bool = False) -> list[Finding]:
        asked.append(before_start)
        return found

    monkeypatch.setattr(doctor, "examine", examine)
    done = CliRunner().invoke(doctor.command, options)
    assert (done.exit_code, done.stderr) == (code, "")
    assert asked == ["--before-start" in options]
    if "--json" in options:
        assert [each["state"] for each in json.loads(done.stdout)] == [e.state for e in found]


def test_settings_that_cannot_be_read_at_all_end_it_with_78(monkeypatch) -> None:
    def load(_: object) -> Settings:
        raise SettingsError("REDIS_URL: is none")

    monkeypatch.setattr(Settings, "load", load)
    done = CliRunner().invoke(doctor.command, [])
    assert (done.exit_code, done.stdout) == (78, "")
    assert "REDIS_URL: is none" in done.stderr

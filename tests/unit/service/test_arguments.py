"""`service.arguments`: what names one thing, a moment or a rate, and what does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from service import arguments
from service.arguments import MOMENT, RATE, fault_of_span

IDS = [
    (
        arguments.ACCOUNT,
        ["acct_1", "acct_" + "x" * 64, "acct_1/acct_2/acct_3/acct_4"],
        ["acct_", "acct_" + "x" * 65, "acct_1/", "acct_1" + 4 * "/acct_2", "acct_1\n", "xacct_1"],
    ),
    (arguments.SESSION, ["vs_" + "x" * 120], ["vs_", "vs_" + "x" * 121, "vs_1\n", "vr_1", "vs_é"]),
    (arguments.REPORT, ["vr_" + "x" * 120], ["vr_", "vr_" + "x" * 121, "vr_1\n", "vs_1"]),
    (
        arguments.EVENT,
        ["evt_" + "x" * 120, "a-b-c-d-evt_1"],
        ["evt_", "evt_" + "x" * 121, "a-b-c-d-e-evt_1", "evt_1\n", "vs_1", "-evt_1"],
    ),
    (
        arguments.EVENT_OR_SESSION,
        ["evt_1", "vs_1", "a-b-c-d-evt_1", "vs_" + "x" * 120],
        ["acct_1-vs_1", "vs_1\n", "evt_1\n", "vr_1", "vs_" + "x" * 121],
    ),
    (
        arguments.REASON,
        ["failed KeyError", "x" * 61, "it's a-b."],
        ["x" * 62, " failed", "failed: x", ".x"],
    ),
    (arguments.PERSON, ["x" * 32, "a.b-c_1"], ["x" * 33, "", "a@b", "a b", "é"]),
    (arguments.HANDLER, ["a.b", "a.b.c"], ["a", "a.", ".b", "a|b.c", "a.b|c", "a b.c", "a.b\n"]),
]


@pytest.mark.parametrize(
    ("kind", "names", "others"), IDS, ids=lambda each: getattr(each, "name", "")
)
def test_a_name_is_whole_and_not_too_long(kind, names, others) -> None:
    assert [kind.convert(name, None, None) for name in names] == names
    for other in others:
        with pytest.raises(click.BadParameter, match=f"is not the name of a {kind.name}, such as"):
            kind.convert(other, None, None)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90m", timedelta(minutes=90)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("9999m", timedelta(minutes=9999)),
    ],
)
def test_a_moment_may_be_so_long_ago(text, ago) -> None:
    before = datetime.now(UTC)
    moment = MOMENT.convert(text, None, None)
    assert before - ago <= moment <= datetime.now(UTC) - ago


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-26", datetime(2026, 11, 26, tzinfo=UTC)),
        ("2026-11-26T04:05", datetime(2026, 11, 26, 4, 5, tzinfo=UTC)),
        ("2026-11-26T04:05:06Z", datetime(2026, 11, 26, 4, 5, 6, tzinfo=UTC)),
        ("2026-11-26T04:05+02:00", datetime(2026, 11, 26, 2, 5, tzinfo=UTC)),
    ],
)
def test_a_moment_is_in_utc_unless_it_says_otherwise(text, moment) -> None:
    assert MOMENT.convert(text, None, None) == moment
    assert MOMENT.convert(moment, None, None) is moment


@pytest.mark.parametrize("text", ["2s", "2w", "h", "-2h", "2 h", "12345h", "2h3m", "", "٣h"])
def test_what_is_no_moment_is_refused(text) -> None:
    with pytest.raises(click.BadParameter, match="is no moment, such as 2h"):
        MOMENT.convert(text, None, None)


def test_a_rate_is_an_event_in_ten_seconds_or_more() -> None:
    assert [RATE.convert(each, None, None) for each in ("0.1", "5", "1e3")] == [0.1, 5.0, 1000.0]
    for text in ("0.09", "0", "-1", "nan", "inf", "many"):
        with pytest.raises(click.BadParameter):
            RATE.convert(text, None, None)


def test_a_span_has_a_beginning_that_has_been_and_an_end_after_it() -> None:
    now = datetime.now(UTC)
    before, later = now - timedelta(hours=1), now + timedelta(hours=1)
    for since, until in ((None, None), (before, None), (None, before), (before, now), (now, later)):
        assert fault_of_span(since, until) == ""
    for since, until in ((now, before), (before, before)):
        assert fault_of_span(since, until).startswith("until is not after since")
    for until in (None, before, later + timedelta(hours=1)):
        assert fault_of_span(later, until).startswith("since is still to come")

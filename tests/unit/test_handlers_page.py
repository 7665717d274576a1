"""docs/handlers.md: its tables are those of the code."""

from __future__ import annotations

from dev.handlers_page import PAGE, page


def test_the_tables_are_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run make handlers-page"


def test_they_name_every_word() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for word in (
        "v.subject",
        "v.metadata",
        "v.last_attempt",
        "v.outcome.reason",
        "v.sensitive.dob",
    ):
        assert f"| `{word}` |" in text

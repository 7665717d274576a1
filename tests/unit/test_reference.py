"""docs/reference/: its pages are those of the code, and nothing is left out."""

from __future__ import annotations

import pytest

import identity_webhooks
from dev.reference import FOLDER, pages
from service.settings import Settings

PAGES = pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name], "run make reference"


def test_no_other_page_is_there() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(PAGES)


def test_every_setting_is_named() -> None:
    for name in Settings.model_fields:
        assert f"| `{name.upper()}`" in PAGES["settings.md"]


def test_every_name_that_can_be_called_or_caught_is_there() -> None:
    named = [n for n in identity_webhooks.__all__ if callable(getattr(identity_webhooks, n))]
    literals = {"Form", "Kind", "Need", "OutcomeKind", "Reason"}
    assert {"on", "Retry", "Verification"} <= set(named) - literals
    for name in set(named) - literals:
        assert f"\n### {name}\n" in PAGES["handler-api.md"]


def test_no_address_in_memory_gets_into_a_page() -> None:
    assert not [name for name, text in PAGES.items() if " at 0x" in text]

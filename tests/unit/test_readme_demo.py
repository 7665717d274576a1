"""Which lines of the demo README.md shows."""

from __future__ import annotations

import pytest

from dev.readme_demo import BEGIN, END, excerpt
from tests.conftest import ROOT

PRINTED = """starting ...

  vs_...1  created

EVENT       FORM  MS
created evt...1     snapshot  1
verified evt...2    snapshot  2
verified evt...3    snapshot  3
redacted evt...4    snapshot  4
requires_input evt  snapshot  5

19 changes.
Each came in 2 forms.
Median 7 ms.
Everything is stopped again, after 3 s.
"""


def test_eight_lines_tell_it() -> None:
    assert excerpt(PRINTED).splitlines() == [
        "EVENT       FORM  MS",
        "verified evt...2    snapshot  2",
        "requires_input evt  snapshot  5",
        "redacted evt...4    snapshot  4",
        "",
        "19 changes.",
        "Each came in 2 forms.",
        "Median 7 ms.",
        "Everything is stopped again, after 3 s.",
    ]


@pytest.mark.parametrize("gone", ["EVENT ", "redacted evt", "19 changes."])
def test_a_demo_that_prints_something_else_is_not_shown(gone: str) -> None:
    with pytest.raises(ValueError, match="prints no table"):
        excerpt("\n".join("" if gone in line else line for line in PRINTED.splitlines()))


def test_the_page_shows_what_a_run_printed() -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    text = shown.removeprefix("```text\n").removesuffix("```\n")
    assert excerpt(text) == text.strip()


def test_the_first_handler_comes_early() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    begin = lines.index("```python")
    assert lines.index("```", begin) <= 30

"""`workers.single_run.in_words`: what a person reads of a single run."""

from __future__ import annotations

import pytest

from workers.single_run import RunResult, in_words

VERIFIED = "The session is verified and concerns u-1.\n"
# name: (how it ended, what is said)
WORDS: dict[str, tuple[RunResult, str]] = {
    "done": (
        RunResult("done", "verified", "verified", None, "u-1", took_ms=12),
        VERIFIED + "p.f: done in 12 ms",
    ),
    "retry": (
        RunResult("retry", "verified", "verified", None, "u-1", "closed"),
        VERIFIED + "p.f: failed, and would be run again: closed",
    ),
    "retry with a wait": (
        RunResult("retry", "verified", "verified", None, "u-1", "closed", 2.5),
        VERIFIED + "p.f: failed, and would be run again: closed\nIt asked to wait 2.5 s.",
    ),
    "retry at once": (
        RunResult("retry", "verified", "verified", None, "u-1", "closed", 0),
        VERIFIED + "p.f: failed, and would be run again: closed\nIt asked to wait 0 s.",
    ),
    "dead": (
        RunResult("dead", "verified", "verified", None, "u-1", "no user"),
        VERIFIED + "p.f: failed for good: no user",
    ),
    "skipped": (
        RunResult("skipped", "verified", "verified", None, "u-1", "it is busy"),
        VERIFIED + "p.f: would not be run: it is busy",
    ),
    "ready, of a failed session of nobody": (
        RunResult("ready", "requires_input", "needs_input", "abandoned", None),
        "The session is needs_input (abandoned) and concerns nobody (no client_reference_id).\n"
        "p.f: would be run",
    ),
}


@pytest.mark.parametrize(("result", "said"), WORDS.values(), ids=WORDS)
def test_each_end_in_words(result: RunResult, said: str) -> None:
    assert in_words(result, "p.f") == said

"""The table of failures in docs/reliability.md, made of the tables that the code reads.

python -m tests.failure_table    writes it into the page
"""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path

from workers.failures import KEYS, PATTERNS, RULES, Call, FailureKind, ResponsePattern, Rule

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by python -m tests.failure_table -->\n", "<!-- end of the table -->"


def answers() -> dict[str, str]:
    """Return what Stripe answers, by kind of failure, in words."""
    found = {"unreachable": "none: refused, cut off, or not in time"}
    for kind, rows in groupby(PATTERNS, key=lambda row: row.kind):
        words = ", or ".join(map(_answer, rows))
        found[kind] = f"{found[kind]}, or {words}" if kind in found else words
    found["stale"] = "a session that looks as it did before the event"
    return found


def _answer(row: ResponsePattern) -> str:
    status = "any other" if row.status is None and row.code is None else "any status"
    if row.status is not None:
        status = str(row.status[0]) if len(row.status) == 1 else "any other 4xx"
    code = f" with `{'`, `'.join(sorted(row.code))}`" if row.code else ""
    return status + code + (" in Stripe's own words" if row.envelope else "")


def _by_rule(call: Call) -> dict[Rule, list[FailureKind]]:
    found: dict[Rule, list[FailureKind]] = {}
    for kind, rule in RULES[call].items():
        found.setdefault(rule, []).append(kind)
    return found


def _lasts(rule: Rule) -> str:
    if rule.lasts == math.inf:
        return "until it passes"
    if rule.lasts == 0:
        return "not at all"
    since = " after the result" if rule.since_result else ""
    hours, minutes = divmod(round(rule.lasts), 3600)
    return f"{hours} h{since}" if hours else f"{minutes} s{since}"


def _wait(call: Call, rule: Rule) -> str:
    if rule.lasts == 0 or rule.who == "nobody" or call == "list":
        return "-"
    if rule.shortest:
        return f"{rule.shortest:g} s"
    return f"up to {rule.longest:g} s"


def render() -> str:
    """Return the two tables as Markdown."""
    answered = "".join(f"| {kind} | {words} |\n" for kind, words in answers().items())
    rows = "".join(
        f"| {call} | `{KEYS[call]}` | {', '.join(kinds)} | {rule.who} | {_wait(call, rule)} |"
        f" {_lasts(rule)} | {_then(call, rule)} |"
        f" {'`stripe_refuses_our_key`' if rule.alarm else '-'} |\n"
        for call in RULES
        for rule, kinds in _by_rule(call).items()
    )
    return (
        f"| kind | what Stripe answers |\n|---|---|\n{answered}\n"
        "| call | key | kind | who waits | between two looks | for how long | what then | alarm |\n"
        f"|---|---|---|---|---|---|---|---|\n{rows}"
    )


def _then(call: Call, rule: Rule) -> str:
    # Without the id of its other form, and with an old reading, an event goes on.
    goes_on = call == "thin event" or rule is RULES["session"]["stale"]
    dead = rule.who in {"event", "handlers"} and rule.lasts < math.inf and not goes_on
    return f"dead: *{rule.then}*" if dead else rule.then or "-"


def main() -> None:
    """Write it into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + render() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()

"""Puts what the last long storms counted into docs/reliability.md: the end of `make chaos`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "var" / "chaos"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by make chaos -->\n", "<!-- end -->\n"


def table(ours: dict[str, Any], plain: dict[str, Any]) -> str:
    """The counts of both runs, side by side."""
    plan = ours["plan"]
    kinds = {"kill": plan["kills"], "redis": plan["redis_kills"]}
    others = sum(ours["faults"].values()) - sum(kinds.values())
    handlers = list(plain["handlers"])

    def counts(report: dict[str, Any], name: str) -> str:
        return ", ".join(f"{report['handlers'][handler][name]:,}" for handler in handlers)

    def refused(report: dict[str, Any]) -> str:
        return f"{sum(n for status, n in report['answers'].items() if status != '200'):,}"

    def quiet(report: dict[str, Any]) -> str:
        seconds = report["quiet_after_s"]
        return "not in time" if seconds is None else f"{seconds} s"

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("accepted", lambda r: counts(r, "accepted")),
        ("lost", lambda r: counts(r, "lost")),
        ("unexpected", lambda r: counts(r, "unexpected")),
        ("repeated effects without the key", lambda r: counts(r, "repeats")),
        ("repeated effects with the key", lambda r: counts(r, "repeats_with_key")),
        ("answers that made Stripe send again", refused),
        ("lasted", lambda r: f"{r['lasted_s']} s"),
        ("quiet after the last fault", quiet),
    ]
    head = (
        f"{plan['events']:,} changes, seed {plan['seed']}: {kinds['kill']} processes killed or"
        f" stopped, Redis killed {kinds['redis']} times, {others} other faults. Counts are those of"
        f" the handlers {', '.join(f'`{h}`' for h in handlers)}."
    )
    lines = [head, "", "| | ours | plain RQ |", "|---|---|---|"]
    lines += [f"| {name} | {read(ours)} | {read(plain)} |" for name, read in rows]
    return "\n".join([*lines, "", "![The storm, second by second](storm.svg)", ""])


def main() -> None:
    """Replace what stands between the marks."""
    newest = max(REPORTS.glob("storm-20000-*.json"), key=lambda path: path.stat().st_mtime)
    plain = newest.with_name(newest.name.replace("storm", "plain-rq"))
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    block = table(json.loads(newest.read_text()), json.loads(plain.read_text()))
    PAGE.write_text(f"{before}{BEGIN}{block}{END}{after}")
    shutil.copy(newest.with_suffix(".svg"), PAGE.with_name("storm.svg"))


if __name__ == "__main__":
    main()

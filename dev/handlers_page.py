"""Write the tables of docs/handlers.md that come from the code: `make handlers-page`."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import get_args

from identity_webhooks import Dead, Event, Outcome, Verification
from identity_webhooks.event import KINDS
from identity_webhooks.testing import verification
from identity_webhooks.verification import SENSITIVE, OutcomeKind
from workers.handlers.forward import message
from workers.verification import freshness

PAGE = Path(__file__).resolve().parents[1] / "docs/handlers.md"


def page(text: str) -> str:
    """Return the page with its tables made anew."""
    made = {"": attributes(), "freshness: ": freshness_table(), "forward: ": forwarded()}
    for name, table in made.items():
        text = between(text, f"{name}made by make handlers-page", table)
    return text


def between(text: str, mark: str, new: str) -> str:
    """Return the page with `new` between the mark and the next end."""
    before, found, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not found or not end:
        raise SystemExit(f"{PAGE.name}: no place for {mark}")
    return f"{before}{found}{new}{end}{after}"


def attributes() -> str:
    """Return a table of what `v` holds, from the docstrings."""
    rows = ["| | |", "|---|---|"]
    for prefix, kind in (("v.", Verification), ("v.event.", Event), ("v.outcome.", Outcome)):
        rows += [f"| `{prefix}{name}` | {what} |" for name, what in described(kind)]
    for need, name in SENSITIVE.items():
        rows.append(f'| `v.sensitive.{name}` | with `needs=["{need}"]` |')
    rows += [f"| `dead.{name}` | {what} |" for name, what in described(Dead)]
    return "\n".join(rows) + "\n"


def described(kind: type) -> list[tuple[str, str]]:
    """Return the attributes of a class and its properties, each with its sentence."""
    text = inspect.getdoc(kind) or ""
    part = text.partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", part, re.MULTILINE)
    for name, member in vars(kind).items():
        if isinstance(member, property) and not name.startswith("_"):
            found.append((name, (inspect.getdoc(member) or "").partition("\n\n")[0]))
    return [(name, " ".join(what.split()).replace("|", "\\|")) for name, what in found]


def freshness_table() -> str:
    """Return a table of what a worker makes of an event, by where the session stands."""
    now: tuple[OutcomeKind, ...] = get_args(OutcomeKind)
    words = {"current": "**called**", "superseded": "superseded", "stale": "read again"}
    rows = [f"| | {' | '.join(now)} |", "|---" * (len(now) + 1) + "|"]
    for kind in KINDS:
        cells = [words[freshness(kind, outcome, redacted=outcome == "redacted")] for outcome in now]
        rows.append(f"| `{kind}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def forwarded() -> str:
    """Return what the handler `forward` posts, as a block of JSON."""
    body = message(verification("document_expired", reference="user-7"))
    return f"```json\n{json.dumps(json.loads(body), indent=2)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

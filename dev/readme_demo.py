"""Runs the demo and puts eight lines of what it printed into README.md: `make readme-demo`."""

import re
import subprocess
import sys

import click

from dev.local import ROOT

BEGIN, END = "<!-- made by make readme-demo -->\n", "<!-- end -->\n"
SHOWN = ("verified", "requires_input", "redacted")
"""The kinds of events of which the first line is shown."""


def excerpt(output: str) -> str:
    """Return the head of the demo's table, a line for each of `SHOWN`, and the summary.

    Raises:
        ValueError: the demo printed something else.
    """
    lines = output.strip().splitlines()
    head = [line for line in lines if re.match(r"EVENT +FORM ", line)]
    rows = [next((each for each in lines if each.startswith(f"{k} evt")), "") for k in SHOWN]
    if len(head) != 1 or not all(rows) or len(lines) < 4 or not all(lines[-4:]):
        raise ValueError("the demo prints no table of all kinds with four lines of summary")
    return "\n".join([*head, *rows, "", *lines[-4:]])


def main() -> None:
    """Replace what stands between the marks, if the demo passes."""
    run = subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    block = f"```text\n{excerpt(run.stdout)}\n```\n"
    readme.write_text(f"{before}{BEGIN}{block}{END}{after}", encoding="utf-8")
    click.echo(run.stdout)


if __name__ == "__main__":
    main()

"""Runs the demo and puts what it printed into README.md: `make readme-demo`."""

import subprocess
import sys

import click

from deploy.local import ROOT

BEGIN, END = "<!-- made by make readme-demo -->\n", "<!-- end -->\n"


def main() -> None:
    """Replace what stands between the marks, if the demo passes."""
    run = subprocess.run(
        [sys.executable, "-m", "deploy.demo"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    block = f"```text\n{run.stdout.strip()}\n```\n"
    readme.write_text(f"{before}{BEGIN}{block}{END}{after}", encoding="utf-8")
    click.echo(run.stdout)


if __name__ == "__main__":
    main()

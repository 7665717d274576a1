"""From nothing to a packaged, tested, running handler: `make trial`.

The transcript stands in docs/handlers.md. Runs the commands below in a copy of what git holds of
this checkout, with the .venv of this one, and notes what each printed and how long it took. It
stops at the first that fails.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import click

from dev.handlers_page import PAGE, between
from dev.local import ROOT

MARK = "trial: made by make trial"
COMMANDS = (
    ".venv/bin/python -m workers new-handler acme-checks",
    "python3 -m venv acme-checks/.venv",
    "acme-checks/.venv/bin/pip install -q . -e acme-checks pytest mypy",
    "cd acme-checks && .venv/bin/pytest -q",
    "cd acme-checks && .venv/bin/mypy",
    "acme-checks/.venv/bin/pip wheel -q --no-deps -w dist ./acme-checks",
    "acme-checks/.venv/bin/pip install -q --no-deps --target site dist/acme_checks-*.whl",
    "PYTHONPATH=site ACME_DATABASE=sqlite:///acme.db .venv/bin/python -m dev.demo | grep acme",
)
WITHIN = 600
"""Seconds that all of it may take."""


def play(folder: Path) -> str:
    """Run the commands in a copy of this checkout, made in `folder`; the transcript.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, tracked.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    (folder / ".venv").symlink_to(ROOT / ".venv")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")}
    kept |= {"PYTHONWARNINGS": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}
    kept.pop("PYTHONPATH", None)
    lines, began = [], time.monotonic()
    for command in COMMANDS:
        started = time.monotonic()
        done = subprocess.run(  # noqa: S603 (our own commands)
            ["sh", "-ec", command],  # noqa: S607 (a reader's shell)
            cwd=folder,
            env=kept,
            check=False,
            capture_output=True,
            text=True,
            timeout=WITHIN,
        )
        if done.returncode:
            click.echo(done.stdout + done.stderr, err=True)
            done.check_returncode()
        lines += [f"$ {command}", *done.stdout.strip().splitlines()]
        lines.append(f"[{time.monotonic() - started:.1f} s]")
    lines.append(f"[all of it: {time.monotonic() - began:.0f} s]")
    return "\n".join(line.rstrip() for line in lines)


@click.command()
@click.option("--write", is_flag=True, help="Put it into docs/handlers.md, too.")
def main(write: bool) -> None:
    """Run the commands and print the transcript."""
    with tempfile.TemporaryDirectory(prefix="identity-webhooks-") as folder:
        transcript = play(Path(folder))
    click.echo(transcript)
    if write:
        page = between(PAGE.read_text(encoding="utf-8"), MARK, f"```text\n{transcript}\n```\n")
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

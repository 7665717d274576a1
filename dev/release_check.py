"""Whether this commit can be released: `make release-check`.

One version stands in pyproject.toml. The image's label, the changelog and the tag have to agree.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from dev.local import ROOT
from service.version import version


def faults(root: Path) -> list[str]:
    """Return what has to be done before this commit can be released, a sentence each."""
    number = version(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", number):
        return [f"pyproject.toml: {number} is not MAJOR.MINOR.PATCH"]
    return [*_image(root, number), *_changelog(root, number), *_repository(root, number)]


def _image(root: Path, number: str) -> list[str]:
    text = (root / "deploy/Dockerfile").read_text(encoding="utf-8")
    if f"\nARG VERSION={number}\n" in text:
        return []
    return [f"deploy/Dockerfile: write ARG VERSION={number}"]


def _changelog(root: Path, number: str) -> list[str]:
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    by_head = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    dated = next((head for head in by_head if head.startswith(f"[{number}]")), None)
    found = []
    if dated is None:
        found.append(f"CHANGELOG.md: rename [Unreleased] to [{number}] - YYYY-MM-DD")
    elif not re.fullmatch(rf"\[{number}\] - \d{{4}}-\d{{2}}-\d{{2}}", dated):
        found.append(f"CHANGELOG.md: write the heading as [{number}] - YYYY-MM-DD")
    elif not by_head[dated].strip():
        found.append(f"CHANGELOG.md: say under [{number}] what changed")
    if dated is not None and by_head.get("[Unreleased]", "").strip():
        found.append(f"CHANGELOG.md: move what is under [Unreleased] to [{number}]")
    return found


def _repository(root: Path, number: str) -> list[str]:
    def git(*words: str) -> str:
        done = subprocess.run(  # noqa: S603  # words of this file
            ["git", *words],  # noqa: S607  # the git of the person who releases
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    found = []
    if git("status", "--porcelain"):
        found.append("commit or remove what `git status` lists")
    tags = git("tag", "--list", "v*").split()
    if f"v{number}" in tags:
        if git("rev-list", "-n1", f"v{number}") != git("rev-parse", "HEAD"):
            found.append(f"v{number} is the tag of another commit: choose the next version")
    elif later := [tag for tag in tags if _order(tag) > _order(number)]:
        found.append(f"{', '.join(later)} is released: choose a version after it")
    return found


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


@click.command()
def main() -> None:
    """Check that the version, the changelog, the image's label and the tags agree.

    Prints what to do, a line each, and exits with 1; or the commands that release, and 0.
    """
    found = faults(ROOT)
    for fault in found:
        click.echo(fault, err=True)
    if found:
        sys.exit(1)
    tag = f"v{version()}"
    click.echo(f"ready: git tag -a {tag} -m {tag} && git push origin {tag}")


if __name__ == "__main__":
    main()

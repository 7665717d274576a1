"""One version everywhere, and what `make release-check` says when it is not so."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import service.__main__
import workers.__main__
from dev import release_check
from service.version import version
from tests.conftest import ROOT

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n### Added\n- A thing.\n"


@pytest.mark.parametrize("command", [service.__main__.main, workers.__main__.main])
def test_both_commands_print_the_version_of_pyproject(command) -> None:
    said = CliRunner().invoke(command, ["--version"])
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (written,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert (said.exit_code, said.output) == (0, f"identity-webhooks {written}\n")


def test_the_label_of_the_image_is_the_version() -> None:
    assert f"\nARG VERSION={version()}\n" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., None]:
    def git(*words: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "tag.gpgSign=false")
        subprocess.run(
            ["git", *who, "-c", "commit.gpgSign=false", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    return git


@pytest.fixture
def release(tmp_path: Path, git: Callable[..., None]) -> Path:
    """A repository whose last commit can be released as 1.2.0, after 1.1.0."""
    git("init", "-q")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    (tmp_path / "deploy/Dockerfile").write_text("FROM x\nARG VERSION=1.2.0\nLABEL x=y\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git("add", ".")
    git("commit", "-qm", "Before")
    git("tag", "v1.1.0")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    git("commit", "-qam", "Release 1.2.0")
    return tmp_path


def test_a_commit_that_can_be_released(release: Path, git: Callable[..., None]) -> None:
    assert release_check.faults(release) == []
    git("tag", "v1.2.0")
    assert release_check.faults(release) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("pyproject.toml", "1.2.0", "1.2", "is not MAJOR.MINOR.PATCH"),
        ("deploy/Dockerfile", "1.2.0", "1.1.0", "write ARG VERSION=1.2.0"),
        ("CHANGELOG.md", "[1.2.0] - 2026-12-01", "[1.1.0] - 2026-12-01", "rename [Unreleased]"),
        ("CHANGELOG.md", " - 2026-12-01", "", "write the heading as"),
        ("CHANGELOG.md", "\n### Added\n- A thing.\n", "", "say under [1.2.0] what changed"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n- More.\n", "move what is under"),
    ],
)
def test_each_fault_is_named(
    release: Path, git: Callable[..., None], file: str, old: str, new: str, fault: str
) -> None:
    text = (release / file).read_text()
    assert old in text
    (release / file).write_text(text.replace(old, new))
    git("commit", "-qam", "Change")
    (found,) = release_check.faults(release)
    assert fault in found


def test_a_tag_of_another_commit(release: Path, git: Callable[..., None]) -> None:
    git("tag", "v1.2.0", "HEAD~1")
    assert release_check.faults(release) == [
        "v1.2.0 is the tag of another commit: choose the next version"
    ]


def test_a_later_version_is_out(release: Path, git: Callable[..., None]) -> None:
    git("tag", "v1.10.0")
    assert release_check.faults(release) == ["v1.10.0 is released: choose a version after it"]


def test_work_that_is_not_committed(release: Path) -> None:
    (release / "more").write_text("")
    assert release_check.faults(release) == ["commit or remove what `git status` lists"]

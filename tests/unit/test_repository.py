"""What a forge reads of this repository."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from tests.conftest import ROOT

GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name: str) -> Any:
    return yaml.safe_load((GITHUB / name).read_text(encoding="utf-8"))


def test_ci_only_calls_our_own_file() -> None:
    (job,) = read("workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_ci_runs_each_python_that_is_supported() -> None:
    (job,) = read("workflows/ci.yml")["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    assert f">={versions[0]}" == PROJECT["project"]["requires-python"]
    assert versions[-1] == (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    assert versions == [f"3.{minor}" for minor in range(11, 11 + len(versions))]


def test_ci_has_no_right_it_does_not_need_and_no_action_by_a_name_that_moves() -> None:
    workflow = read("workflows/ci.yml")
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read"}
    for step in job["steps"]:
        assert "uses" not in step or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"])


def test_dependencies_of_every_kind_are_looked_after() -> None:
    kinds = {each["package-ecosystem"] for each in read("dependabot.yml")["updates"]}
    assert kinds == {"pip", "docker", "github-actions"}


def test_the_form_for_bugs_asks_for_what_there_is() -> None:
    text = (GITHUB / "ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    for command in ("python -m service --version", "python -m service check"):
        assert command in text
    assert [part["type"] for part in read("ISSUE_TEMPLATE/bug.yml")["body"]]

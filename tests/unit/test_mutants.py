"""The command that puts faults in."""

from __future__ import annotations

from click.testing import CliRunner

from tests.mutants.__main__ import main


def test_a_commit_that_git_does_not_find_is_said() -> None:
    done = CliRunner().invoke(main, ["--since", "no-such-commit", "--list"])
    assert done.exit_code == 2
    assert "Invalid value for --since: fatal: " in done.output

"""Run mypy over the files of this folder, as authors run it over theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["accepted", "refused"])
def test_mypy_agrees(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", f"tests/typing/{name}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)

"""What README.md and docs/handlers.md show as Python is run, as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/handlers.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8") if (ROOT / page).exists() else ""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_first_handler_runs_in_the_demo(tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    (tmp_path / "first_handler.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo"],
        cwd=ROOT,
        env={**os.environ, "HANDLERS": "first_handler", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = r"^verified evt\S+ +\w+ +\S+ +first_handler\.grant_access +verified +\d+$"
    assert len(re.findall(row, done.stdout, re.MULTILINE)) == 2, done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_passes_mypy_strict(page: str, tmp_path: Path) -> None:
    for number, code in enumerate(blocks(page, "python")):
        file = tmp_path / f"block{number}.py"
        file.write_text(code, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", file],
            cwd=ROOT,
            env={**os.environ, "MYPYPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("", 0), code

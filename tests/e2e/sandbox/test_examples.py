"""The examples do what their pages say, followed to the letter."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def with_the_command(tmp_path: Path) -> dict[str, str]:
    """An environment that has `stripe-identity-sandbox`, from this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "stripe-identity-sandbox"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m stripe_identity_sandbox "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.timeout(180)
def test_node(tmp_path: Path, with_the_command: dict[str, str]) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI"):
            pytest.fail("CI has to have node and npm")
        pytest.skip("no node and npm on this machine")
    folder = shutil.copytree(EXAMPLES / "node", tmp_path / "node")
    block = re.search(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert block
    done = subprocess.run(
        ["sh", "-ec", block[1]],
        cwd=folder,
        env=with_the_command,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 1" in done.stdout


def test_pytest(tmp_path: Path, with_the_command: dict[str, str]) -> None:
    shutil.copy(EXAMPLES / "pytest" / "test_verification.py", tmp_path)
    plugin = ["-p", "stripe_identity_sandbox.pytest_plugin"]  # as its entry point would load it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, str(tmp_path)],
        cwd=tmp_path,
        env=with_the_command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout

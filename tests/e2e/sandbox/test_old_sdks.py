"""Old SDKs: the oldest that are supported, and the last of each manner of stripe-python.

Up to 12.0 it sends `True`, up to 13 it repeats the plain names of arrays in queries of /v2.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.walk

ROOT = Path(__file__).parents[3]


def sdk(version: str) -> Path:
    """Return the folder in which pip installed a version; kept from one run to the next."""
    folder = ROOT / "var" / f"stripe-python-{version}"
    if not (folder / "stripe").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        target = ["--target", str(folder), f"stripe=={version}"]
        done = subprocess.run(
            [*pip, *target], capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("version", ["5.0.0", "12.0.1", "13.1.0"])
def test_stripe_python(sandbox: Any, line_of_the_page: Any, version: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore"),
            *(str(Path(__file__).with_name("old_python.py")), sandbox.url, version),
            line_of_the_page("python", 1),
        ],
        env={"PYTHONPATH": str(sdk(version)), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", ["14.0.0", "21.0.0"])
def test_stripe_node(
    sandbox: Any, line_of_the_page: Any, node_package: Callable[[str], Path], version: str
) -> None:
    script = Path(__file__).with_name("old_node.mjs")
    done = subprocess.run(
        ["node", script, node_package(f"stripe@{version}"), sandbox.url, line_of_the_page("js", 1)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr

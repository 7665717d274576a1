"""Packages of npm, for tests that run code of others in Node; how long a browser may take."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]

# Five seconds by itself: too few where the machine is busy with other tests.
expect.set_options(timeout=120_000)


@pytest.fixture(scope="session")
def node_package() -> Callable[[str], Path]:
    """Install a package by npm; return its folder, which is kept from one run to the next."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI"):
            pytest.fail("CI has to have node and npm")
        pytest.skip("no node and npm on this machine")

    def install(wanted: str) -> Path:
        folder = ROOT / "var" / "npm" / wanted
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Whole before others see it: tests that run side by side may ask for the same.
            with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as making:
                npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", making, wanted]
                done = subprocess.run(npm, capture_output=True, text=True, timeout=250, check=False)
                assert done.returncode == 0, done.stderr
                with suppress(OSError):  # another test was first
                    Path(making).rename(folder)
        return folder

    return install

"""Run type checkers over the files of this folder, as authors run them over theirs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYRIGHT = "pyright@1.1.414"


@pytest.mark.parametrize("name", ["accepted", "refused"])
def test_mypy_agrees(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", f"tests/typing/{name}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.fixture(scope="module")
def pyright() -> Path:
    """The program, installed by npm; kept from one run to the next."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI"):
            pytest.fail("CI has to have node and npm")
        pytest.skip("no node and npm on this machine")
    folder = ROOT / "var" / "pyright"
    program = folder / "node_modules/.bin/pyright"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PYRIGHT]
        subprocess.run(npm, capture_output=True, timeout=250, check=True)
    return program


def test_pyright_agrees(pyright: Path, tmp_path: Path) -> None:
    """It refuses each line that has to be refused, and no other."""
    for name in ("accepted.py", "refused.py"):
        shutil.copy(HERE / name, tmp_path)
    config = {
        "typeCheckingMode": "standard",
        "reportUnnecessaryComparison": "error",
        "enableTypeIgnoreComments": False,
        "extraPaths": [str(ROOT)],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [pyright, "--outputjson", "-p", tmp_path, "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    found = {
        (Path(said["file"]).name, said["range"]["start"]["line"] + 1)
        for said in json.loads(done.stdout)["generalDiagnostics"]
        if said["severity"] == "error"
    }
    text = (HERE / "refused.py").read_text(encoding="utf-8")
    wanted = {n for n, line in enumerate(text.splitlines(), 1) if re.search("type: ignore", line)}
    # One is told at the list that holds it, too.
    inner = {n for n, line in enumerate(text.splitlines(), 1) if line == "    return ["}
    assert {line for name, line in found if name == "refused.py"} - inner == wanted
    assert not {line for name, line in found if name == "accepted.py"}

"""What README.md and docs/handlers.md show as Python is run, as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8") if (ROOT / page).exists() else ""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_first_handler_runs_in_the_demo(tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    (tmp_path / "first_handler.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=ROOT,
        env={**os.environ, "HANDLERS": "first_handler", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = r"^verified evt\S+ +\w+ +\S+ +first_handler\.grant_access +verified +\d+$"
    assert len(re.findall(row, done.stdout, re.MULTILINE)) == 2, done.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif("CI" not in os.environ, reason="it installs packages: with CI=1")
def test_the_transcript_of_a_first_plugin_is_what_happens() -> None:
    """In the order, with the results and in less than ten minutes: but for times and ids."""

    def without_chance(text: str) -> list[str]:
        text = re.sub(r"[\d.]+ ?s\b", "_ s", text)
        text = re.sub(r"(evt|vs_)\S+|\b(thin|snapshot)\b| \d+$", "_", text, flags=re.MULTILINE)
        return sorted(re.sub(r"[ _]+", " ", text).splitlines())

    done = subprocess.run(
        [sys.executable, "-m", "dev.trial"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (shown,) = [block for block in blocks("docs/handlers.md", "text") if "new-handler" in block]
    assert without_chance(done.stdout) == without_chance(shown)
    took = re.search(r"all of it: (\d+) s", shown)
    assert took
    assert int(took[1]) < 600


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder with every Python block of docs/handlers.md, under the name in its first line."""
    for code in blocks("docs/handlers.md", "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name, f"a block without a name: {code}"
        (tmp_path / name[1]).write_text(code, encoding="utf-8")
    return tmp_path


def run(*command: str | Path, path: Path, cwd: Path = ROOT, **extra: str) -> str:
    """Run a command of the reader's; its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
        "STRIPE_API_KEY": "sk_test_reader",
        "STRIPE_RESTRICTED_KEY": "rk_test_reader",
    }
    done = subprocess.run(
        command, cwd=cwd, env=env | extra, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_handler_of_the_page_is_taken(written: Path) -> None:
    modules = sorted(path.stem for path in written.glob("shop*.py"))
    listed = run("python", "-m", "workers", "handlers", path=written, HANDLERS=",".join(modules))
    code = "".join(path.read_text() for path in written.glob("shop*.py"))
    for name in re.findall(r"@on\(.*\n *def (\w+)", code):
        assert f".{name} " in listed


APP = """
from sqlalchemy import create_engine, text
from gate import may_enter
from identity_webhooks.database import create_table

engine = create_engine("sqlite://")
with engine.begin() as db:
    create_table(db)
    row = "('vs_1', '', 'user-7', 'verified', NULL, 1, 1)"
    db.execute(text(f"INSERT INTO identity_webhooks_sessions VALUES {row}"))
    print(may_enter(db, "user-7"), may_enter(db, "user-8"))
"""


def test_what_an_app_asks_the_database(written: Path) -> None:
    assert run("python", "-c", APP, path=written) == "True False\n"


def test_the_commands_of_the_page_run(written: Path) -> None:
    commands = blocks("docs/handlers.md", "sh")
    assert commands
    for command in commands:
        assert "shop.grant_access" in run("sh", "-ec", command, path=written)


def test_the_tests_of_the_page_pass(written: Path) -> None:
    home = {"IDENTITY_WEBHOOKS": str(ROOT)}
    said = run("python", "-m", "pytest", "-q", path=written, cwd=written, **home)
    assert "5 passed" in said


def test_the_handlers_of_the_page_run_in_the_demo(written: Path) -> None:
    modules = "shop_alarm,shop_crm"
    said = run("python", "-m", "dev.demo", path=written, HANDLERS=modules)
    assert "shop_alarm.close_account" in said
    assert "shop_crm.save" in said


@pytest.mark.walk
def test_every_python_block_passes_mypy_strict(written: Path) -> None:
    (code,) = blocks("README.md", "python")
    (written / "readme.py").write_text(code, encoding="utf-8")
    files = sorted(written.glob("*.py"))
    run("python", "-m", "mypy", "--strict", *files, path=written, MYPYPATH=str(written))

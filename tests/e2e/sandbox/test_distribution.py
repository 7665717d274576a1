"""The sandbox as its users install it: a distribution of its own, with a command."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[3]


def build(project: Path, to: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(to)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=60)
    (wheel,) = to.glob("*.whl")
    return wheel


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_service_s_wheel_holds_nothing_of_it(tmp_path: Path) -> None:
    assert not [name for name in names(build(ROOT, tmp_path)) if "sandbox" in name]


@pytest.mark.timeout(300)
def test_its_own_wheel_runs_in_an_empty_environment(tmp_path: Path) -> None:
    folder = ROOT / "stripe_identity_sandbox"
    wheel = build(folder, tmp_path / "dist")
    expected = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.suffix in {".py", ".html", ".yaml", ".typed"}
    }
    assert {name for name in names(wheel) if ".dist-info/" not in name} == expected

    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    pip = [environment / "bin" / "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=240)
    process = subprocess.Popen(
        [environment / "bin" / "stripe-identity-sandbox", "serve", "--port", "0", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    with process, process.stdout:
        try:
            url = json.loads(process.stdout.readline())["url"]
            sessions = f"{url}/v1/identity/verification_sessions"
            made = requests.post(
                sessions, data={"type": "document"}, auth=("sk_test_x", ""), timeout=5
            )
            page = requests.get(f"{url}/_sandbox/", timeout=5)
        finally:
            process.terminate()
    assert made.json()["status"] == "requires_input"
    assert made.json()["id"] in page.text

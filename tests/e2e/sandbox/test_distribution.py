"""The sandbox as its users install it: a distribution of its own, with a command."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import requests

pytestmark = pytest.mark.walk

ROOT = Path(__file__).parents[3]


def build(project: Path, to: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(to)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=120)
    (wheel,) = to.glob("*.whl")
    return wheel


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_service_s_wheel_holds_nothing_of_it(tmp_path: Path) -> None:
    assert not [name for name in names(build(ROOT, tmp_path)) if "sandbox" in name]


@pytest.mark.timeout(900)
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
                sessions, data={"type": "document"}, auth=("sk_test_x", ""), timeout=120
            )
            page = requests.get(f"{url}/_sandbox/", timeout=120)
        finally:
            process.terminate()
    assert made.json()["status"] == "requires_input"
    assert made.json()["id"] in page.text


@pytest.mark.timeout(300)
def test_the_page_s_commands_install_it(tmp_path: Path) -> None:
    """With pipx and uv, which are installed for it: once for good, and once for a single run."""
    page = (ROOT / "docs" / "sandbox.md").read_text()
    pipx, uvx = (
        line.partition("#")[0].split()
        for word in ("pipx install", "uvx --from")
        for line in re.findall(rf"^    ({word} .*)$", page, re.MULTILINE)
    )
    tools, home = tmp_path / "tools", tmp_path / "home"
    venv.create(tools, with_pip=True)
    pip = [tools / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "pipx", "uv"]
    subprocess.run(pip, check=True, capture_output=True, timeout=240)
    environment = os.environ | {
        "PATH": f"{tools / 'bin'}:{os.environ['PATH']}",
        "PIPX_HOME": str(home),
        "PIPX_BIN_DIR": str(home / "bin"),
        "UV_PYTHON": sys.executable,
    }

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*pipx)
    assert "Serve Stripe Identity" in run(home / "bin" / "stripe-identity-sandbox", "serve", "-h")
    assert uvx[-1] == "serve"
    assert "Serve Stripe Identity" in run(*uvx, "-h")


#: Runs the sandbox with the modules of no other distribution than these.
ONLY = """
import runpy, sys
from importlib.metadata import packages_distributions

allowed = set(sys.argv.pop(1).split(","))
names = lambda found: {name.lower().replace("_", "-") for name in found}
hidden = {top for top, by in packages_distributions().items() if not names(by) & allowed}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
runpy.run_module("stripe_identity_sandbox", run_name="__main__")
"""


def test_the_image_s_packages_are_enough_to_serve() -> None:
    """It has what requirements.txt names: less than the wheel of the sandbox asks for."""
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert "flask" in locked
    assert "pyyaml" not in locked
    only = [sys.executable, "-c", ONLY, ",".join(name.lower() for name in locked)]
    process = subprocess.Popen(
        [*only, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    with process, process.stdout:
        try:
            url = json.loads(process.stdout.readline())["url"]
            assert requests.get(f"{url}/_sandbox/", timeout=120).status_code == 200
        finally:
            process.terminate()
    told = subprocess.run([*only, "play", __file__], capture_output=True, text=True, check=False)
    assert "pip install pyyaml" in told.stderr

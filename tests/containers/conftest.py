"""The image and compose.yaml on a real engine, as README.md and docs/deploy.md say.

The engine is the one that `docker` reaches. Where there is none, and the machine is Debian's and
the user root, tests/containers/engine.sh starts one, on base images made of Debian packages.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests/containers/engine.sh"
CANARY = "ZyxCanary7Q"  # of tests/conftest.py: every secret holds it, no trace may show it
SECRETS = {
    "STRIPE_WEBHOOK_SECRET": f"whsec_{CANARY}q7H2kP9sXv4LbN8wRt3YcZ6m",
    "STRIPE_API_KEY": f"rk_test_{CANARY}",
}
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of setns(2)


@dataclass
class Engine:
    """An engine with our images, and a copy of the project to work in.

    `local`: it is engine.sh's, which builds images before, with `docker build`, on the host's
    network, so that `--build` is left out of the commands of our pages.
    """

    folder: Path
    local: bool

    def run(self, *command: str | Path, within: float = 300) -> str:
        """Run a command in the copy; its output. Fails with all it printed."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=within,
        )
        if done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def compose(self, *arguments: str, within: float = 300) -> str:
        return self.run("docker", "compose", "-f", "deploy/compose.yaml", *arguments, within=within)

    def python(self, service: str, code: str) -> str:
        """Run Python in a running container."""
        return self.compose("exec", "-T", service, "python", "-c", code)

    def container(self, service: str, form: str) -> str:
        """Return what `docker inspect --format` says of a service's container."""
        name = self.compose("ps", "--all", "--quiet", service).strip()
        return self.run("docker", "inspect", "--format", form, name).strip()

    def follow(self, page: str, mark: str) -> None:
        """Run the commands of a page, filling in what the first of them copies."""
        for line in block(page, mark).splitlines():
            command = line.replace(" --build", " --no-build") if self.local else line
            self.run("/bin/sh", "-ec", command, within=600)
            if " deploy/.env" in line:
                self.set(**SECRETS)

    def set(self, **settings: str) -> None:
        """Fill in deploy/.env, as its reader does."""
        file = self.folder / "deploy/.env"
        text = file.read_text()
        for name, value in settings.items():
            text, found = re.subn(rf"^(# )?{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
            assert found == 1, name
        file.write_text(text)


def block(page: str, mark: str) -> str:
    """Return the code block of a page behind `<!-- run by tests/containers: MARK -->`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    start = f"<!-- run by tests/containers: {mark} -->"
    found = re.search(rf"{start}\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, (page, mark)
    return found[1]


def status(url: str) -> int | None:
    """Return the status of a GET, None without an answer."""
    with suppress(requests.RequestException):
        return requests.get(url, timeout=5).status_code
    return None


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Build the images; in the end remove what runs, and the engine if it is ours."""
    folder = tmp_path_factory.mktemp("containers")
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    # Not the reader's own containers, volumes and settings.
    os.environ["COMPOSE_PROJECT_NAME"] = "identity-webhooks-tests"
    for name in [name for name in os.environ if name.startswith(("STRIPE_", "REDIS_"))]:
        del os.environ[name]
    engine = Engine(folder, local=not _answers())
    try:
        _build(engine)
        yield engine
    finally:
        (folder / "deploy/.env").touch()
        with suppress(pytest.fail.Exception):
            engine.compose("--profile", "*", "down", "--volumes", within=120)
        if engine.local:
            subprocess.run([ENGINE, "stop"], check=True, timeout=120)


def _answers() -> bool:
    """Whether an engine with Compose is there."""
    return bool(shutil.which("docker")) and all(
        subprocess.run(["docker", *command], check=False, capture_output=True).returncode == 0
        for command in (["version"], ["compose", "version"])
    )


def _build(engine: Engine) -> None:
    command = ["docker", "build"]
    if engine.local:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.skip("no container engine answers, and only root on Debian can start one here")
        engine.run(ENGINE, "prepare", within=900)
        os.environ |= dict(re.findall(r"(\w+)=(\S+)", engine.run(ENGINE, "env")))
        engine.run(ENGINE, "build")
        command += ["--network", "host"]
    ours, sbom = (("-f", f"deploy/{name}") for name in ("Dockerfile", "Dockerfile.sbom"))
    engine.run(*command, *ours, "-t", "identity-webhooks", ".", within=900)
    engine.run(
        *command, *ours, "--target", "sandbox", "-t", "identity-webhooks-sandbox", ".", within=300
    )
    engine.run(*command, *sbom, "-t", "identity-webhooks-sbom", ".", within=300)
    if engine.local:
        engine.run(ENGINE, "run")
        # Into its network, where its ports are. This process has one thread, and ends soon.
        with Path(os.environ["NETNS"]).open() as network:
            assert ctypes.CDLL(None).setns(network.fileno(), _NEW_NETWORK) == 0


@pytest.fixture(scope="session")
def up(engine: Engine, wait_until: Callable[..., None]) -> Engine:
    """The service, brought up as README.md says, without a Stripe."""
    engine.follow("README.md", "compose")
    wait_until(lambda: status("http://127.0.0.1:8000/readyz") == 200, within=300)
    return engine


@pytest.fixture(scope="session", name="block")
def block_of_a_page() -> Callable[[str, str], str]:
    return block


@pytest.fixture(scope="session", name="status")
def status_of_a_url() -> Callable[[str], int | None]:
    return status

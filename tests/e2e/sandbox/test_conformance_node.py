"""The sandbox seen through Stripe's own Node SDK: what ``conformance.mjs`` asserts."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SECRET, THIN_SECRET = "whsec_node_snapshot", "whsec_node_thin"


@pytest.fixture
def inbox() -> Iterator[str]:
    """An endpoint that keeps every delivery, and lists them on GET."""
    kept: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            signature = self.headers["Stripe-Signature"]
            kept.append({"path": self.path, "signature": signature, "body": body})
            self.answer(b"")

        def do_GET(self) -> None:
            time.sleep(0.5)  # what was sent last is still on its way
            self.answer(json.dumps(kept).encode())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_conformance(node_sdk: Path, run: Any, inbox: str) -> None:
    sandbox = run(
        "--deliver-to", f"{inbox}/snapshot", "--secret", SECRET,
        "--deliver-thin-to", f"{inbox}/thin", "--thin-secret", THIN_SECRET,
    )  # fmt: skip
    script = Path(__file__).with_name("conformance.mjs")
    done = subprocess.run(
        ["node", str(script), str(node_sdk), sandbox.url, inbox, SECRET, THIN_SECRET],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 7

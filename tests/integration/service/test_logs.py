"""The log of the receiver: every line in one format, whoever wrote it, and nothing personal."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import requests

from tests.conftest import free_port, wait_until

WHSEC = "whsec_q7H2kP9sXv4LbN8wRt3YcZ6m"


def lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, each of which must be as ours are."""
    read = [json.loads(line) for line in log.read_text().splitlines()]
    for line in read:
        assert {"event", "level", "timestamp", "logger"} <= line.keys()
    return read


def test_of_the_receiver(server, redis, processes, canary) -> None:
    port = free_port()
    process, log = processes.python(
        *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "1"),
        *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
        env={
            "REDIS_URL": server.url,
            "STRIPE_WEBHOOK_SECRET": WHSEC,
            "STRIPE_LIVEMODE": "0",
        },
    )
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: "Booting worker" in log.read_text())
    wait_until(lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
    requests.get(f"{url}/{canary}?name={canary}", timeout=120)
    requests.post(
        f"{url}/webhooks/stripe?name={canary}",
        data=canary,
        headers={"Stripe-Signature": f"t=1,v1={canary}", "User-Agent": canary},
        timeout=120,
    )
    for request in (
        f"GET /{canary} HTTP/{canary}\r\n\r\n",
        f"{canary}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{canary}@: 1\r\n\r\n",
        f"GET / HTTP/1.1\r\nContent-Length: {canary}\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(request.encode())
            connection.recv(1000)
    process.terminate()
    assert process.wait(120) == 0
    read = lines(log)
    assert {"gunicorn.error", "service.app"} <= {line["logger"] for line in read}
    refused = [
        (line["status"], line["reason"]) for line in read if line["event"] == "request_refused"
    ]
    assert refused == [(400, "malformed_request")] * 4, "its class, never its content"

"""The receiver under everything that can be sent: no 5xx, no false 2xx, no memory kept."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
import requests

from tests.chaos.fuzz import Report, fuzz
from tests.conftest import children, free_port, wait_until

SECRET = "whsec_ZyxCanary7Qq7H2kP9sXv4LbN8wRt3YcZ6m"
GROWTH = 2_048
"""kB by which the receiver's processes may be larger after the second half than before it."""


def rss(pid: int) -> dict[int, int]:
    """Return the resident memory of the worker processes, kB."""
    sizes = {}
    for child in children(pid):
        status = Path(f"/proc/{child}/status").read_text()
        sizes[child] = int(status.partition("VmRSS:")[2].split()[0])
    return sizes


def show(report: Report) -> None:
    rate = report.requests / report.seconds
    line = f"\r{report.requests:7} requests, {rate:5.0f} a second, {len(report.faults)} faults"
    sys.stderr.write(line)
    sys.stderr.flush()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [3_000, pytest.param(200_000, marks=pytest.mark.walk)])
def test_whatever_is_sent(processes, new_server, count) -> None:
    count = int(os.environ.get("FUZZ_REQUESTS", count))
    seed = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(10**6)))
    server, port = new_server(), free_port()
    receiver, log = processes.python(
        *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", f"127.0.0.1:{port}"),
        *("--max-requests", "0", "service.app:create_app()"),  # its memory is not renewed
        env={
            "REDIS_URL": server.url,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_LIVEMODE": "0",
            "INBOX_LIMIT": "1000000",
            "LOG_LEVEL": "warning",
        },
    )

    def ready() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=120).status_code == 200
        except requests.ConnectionError:
            return False

    wait_until(ready)
    sizes = []

    def watch(report: Report) -> None:
        show(report)
        if report.requests >= count * len(sizes) // 10:
            sizes.append(rss(receiver.pid))

    report = fuzz(port, SECRET, requests=count, seed=seed, progress=watch)
    sizes.append(rss(receiver.pid))

    sys.stderr.write(
        f"\nseed {seed}: {report.requests} requests in {report.seconds:.0f} s, the slowest answer"
        f" {report.slowest:.2f} s\n" + "\n".join(report.lines()) + "\n"
        f"memory of the workers in kB, as it went on: {[*map(list, map(dict.values, sizes))]}\n"
    )
    assert not report.faults, f"seed {seed}, {len(report.faults)}: {report.faults[:5]}"
    assert report.requests >= count
    first, half, last = sizes[0], sizes[len(sizes) // 2], sizes[-1]
    assert first.keys() == last.keys(), "no worker died"
    assert all(last[pid] - half[pid] < GROWTH for pid in half)
    assert "request_failed" not in log.read_text()
    with server.client() as client:
        # Nothing came in but what was rightly signed.
        answers = report.answers
        taken = sum(number for (_, status), number in answers.items() if status == 200)
        assert taken <= client.zcard("iw:due") == client.llen("rq:queue:identity")

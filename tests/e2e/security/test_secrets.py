"""Where personal data and secrets could show while the service runs, and do not.

The fixture `no_canary` searches keys, values, RQ's jobs, the append-only file and the logs after
each test. Here it gets something to find: every secret and every personal value holds the canary,
and what MONITOR shows of a whole run is searched too.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import requests

CANARY = b"ZyxCanary7Q"


def test_a_whole_run_with_trouble_shows_nothing(system, monitor) -> None:
    seen = monitor(system.server)
    system.settle(system.verify())
    hook = f"http://127.0.0.1:{system.port}/webhooks/stripe"
    for body in (b"", b'{"name": "ZyxCanary7Q"}', b"ZyxCanary7Q" * 100):
        answer = requests.post(
            hook, data=body, headers={"Stripe-Signature": "t=1,v1=ZyxCanary7Q"}, timeout=120
        )
        assert answer.status_code == 400
        assert CANARY not in answer.content
    system.server.freeze()
    try:
        assert (
            requests.get(f"http://127.0.0.1:{system.port}/readyz", timeout=120).status_code == 503
        )
    finally:
        system.server.thaw()
    system.settle(system.verify())
    assert b"iw:evt:evt_" in seen.seen, "it did listen"
    assert b'"HSET"' in seen.seen, "to what scripts do, too"
    with system.server.client() as client:
        assert not list(client.scan_iter("rq:failed:*"))
        assert not list(client.scan_iter("rq:results:*"))


def test_no_password_or_key_is_on_a_command_line(system) -> None:
    system.settle(system.verify())
    ours = system.pids()
    assert len(ours) >= 5, "web, its worker, worker, its child, periodic"
    for pid in ours:
        assert CANARY not in Path(f"/proc/{pid}/cmdline").read_bytes()
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            commands.append(path.read_bytes())
    redis = system.server.process.pid
    assert CANARY not in Path(f"/proc/{redis}/cmdline").read_bytes()
    assert any(b"gunicorn" in command for command in commands)


def closed(pid: int) -> bool:
    """Whether the process leaves no core dump and is not dumpable.

    What is not dumpable belongs to root in /proc, whoever runs it: its environment (with the
    secrets in it) is closed to other processes of the same user.
    """
    limits = Path(f"/proc/{pid}/limits").read_text()
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    environ = Path(f"/proc/{pid}/environ")
    return core.split()[4:6] == ["0", "0"] and environ.stat().st_uid == 0


def test_no_process_leaves_a_core_dump_or_lets_itself_be_read(system, wait_until) -> None:
    for pid in system.pids():
        # It does so as it starts, which the last of them may still be at.
        wait_until(lambda pid=pid: closed(pid))


def test_a_crash_leaves_nothing_behind(system) -> None:
    session = system.verify()
    before = set(Path.cwd().iterdir())
    child = system.worker_child()
    os.kill(child, signal.SIGSEGV)
    system.settle(session)
    system.wait_until(lambda: "worker_died" in system.log("worker"))
    assert not [path for path in set(Path.cwd().iterdir()) - before if "core" in path.name]

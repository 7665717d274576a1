"""A PostgreSQL of Debian's, with its files in a folder of the test run's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import end_with_parent, free_port, wait_until


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh server, without `postgresql://` or a driver's name before it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if not initdb:
        if os.environ.get("CI"):
            pytest.fail("CI has to have PostgreSQL")
        pytest.skip("no PostgreSQL on this machine (Debian: apt install postgresql)")
    # It refuses to run as root; and pytest's folders are closed to everyone else.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="identity-webhooks-postgres-"))
    if user:
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    subprocess.run(
        [initdb, "-D", data, "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8"],
        user=user,
        check=True,
        capture_output=True,
    )
    server = subprocess.Popen(
        [
            *(Path(initdb).with_name("postgres"), "-D", data, "-p", str(port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"),
            *("-c", "fsync=off", "-c", "deadlock_timeout=200ms"),
            *("-c", "autovacuum=off"),  # it would hold on to rows that a test has vacuumed
            *("-c", "wal_recycle=off"),  # old files of its log are removed, not used again
        ],
        user=user,
        preexec_fn=end_with_parent,  # noqa: PLW1509  # tests start no threads by then
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ready = Path(initdb).with_name("pg_isready")
    command = [ready, "-q", "-h", "127.0.0.1", "-p", str(port)]
    try:
        wait_until(lambda: subprocess.run(command, check=False).returncode == 0)
        yield f"tester@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # fast: open connections are ended
        server.wait(120)
        shutil.rmtree(folder)

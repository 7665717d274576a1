"""What the tests of deployments share: TLS in front of a server, with a self-made certificate."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest


def port_is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture(scope="session")
def listens() -> Callable[[int], bool]:
    """Whether somebody listens on a port."""
    return port_is_open


@pytest.fixture
def behind_tls(processes, free_port, wait_until, tmp_path) -> Callable[..., tuple[int, Path]]:
    """Put TLS in front of a port: `behind_tls(port, "IP:127.0.0.1")`, for the certificate's name.

    `days`: for how long it holds, negative for one that has expired.

    Returns the port to connect to, and the certificate.
    """

    def behind_tls(to: int, name: str = "DNS:redis.invalid", days: int = 2) -> tuple[int, Path]:
        key, request, more = tmp_path / "key.pem", tmp_path / "request.pem", tmp_path / "more.cnf"
        both, certificate = tmp_path / "self-signed.pem", tmp_path / "self-signed.crt"
        more.write_text(f"subjectAltName={name}\n")
        new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=self-signed")
        sign = ("openssl", "x509", "-req", "-days", str(days), "-extfile", more, "-signkey", key)
        for command in (
            (*new, "-keyout", key, "-out", request),
            (*sign, "-in", request, "-out", certificate),
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        both.write_text(key.read_text())
        both.write_text(both.read_text() + certificate.read_text())
        port = free_port()
        front = Path(__file__).with_name("tls_front.py")
        processes.python(front, str(port), str(to), str(both))
        wait_until(lambda: port_is_open(port))
        return port, certificate

    return behind_tls

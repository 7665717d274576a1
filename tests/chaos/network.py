"""Hosts of their own, with a cable each to a hub in their middle: network namespaces of Linux.

The thread that enters one, and what it starts from then on, is in the hub. Needs root and `ip`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of setns(2), which Python has from 3.12 on


class Network:
    """Hosts by their names: number N, from 1 on, is 10.77.N.2 and reaches the hub, 10.77.0.1."""

    HUB = "10.77.0.1"

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts
        self._mark = f"iw{os.getpid()}"
        self._entered = ExitStack()

    def address(self, host: str) -> str:
        return f"10.77.{self._hosts.index(host) + 1}.2"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for name in ("hub", *self._hosts):
                ip("netns", "add", self._name(name))
                undo.callback(self._delete, name)
                ip("-n", self._name(name), "link", "set", "lo", "up")
            hub = self._name("hub")
            ip("-n", hub, "address", "add", f"{self.HUB}/32", "dev", "lo")
            for number, host in enumerate(self._hosts, 1):
                name, gateway = self._name(host), f"10.77.{number}.1"
                peer = ("peer", "name", "eth0", "netns", name)
                ip("-n", hub, "link", "add", host, "type", "veth", *peer)
                for where, device, address in (
                    (hub, host, gateway),
                    (name, "eth0", self.address(host)),
                ):
                    ip("-n", where, "address", "add", f"{address}/30", "dev", device)
                    ip("-n", where, "link", "set", device, "up")
                ip("-n", name, "route", "add", "default", "via", gateway)
            outside = undo.enter_context(Path("/proc/thread-self/ns/net").open("rb"))
            with Path(f"/run/netns/{hub}").open("rb") as inside:
                _enter(inside.fileno())
            undo.callback(_enter, outside.fileno())
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")  # of this namespace
            self._entered = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def set_link(self, host: str, state: str) -> None:
        """Cut the cable of a host (`down`), or mend it (`up`)."""
        ip("-n", self._name("hub"), "link", "set", host, state)

    def on(self, host: str, *command: str | Path) -> tuple[str, ...]:
        """Return the command that runs another one on a host."""
        return ("ip", "netns", "exec", self._name(host), *map(str, command))

    def _name(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def _delete(self, host: str) -> None:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "delete", self._name(host))  # its links go with it


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


def _enter(network: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(network, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")

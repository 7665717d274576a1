"""The life of an event as Redis sees it, and many such lives, fast.

The commands of one life are recorded at the server, as the inbox sent them; the others are the same
with another id in each. So a million events take no longer than Redis does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from redis import Redis

from identity_webhooks.event import Event
from service.inbox import Claim, Inbox, Progress
from tests.benchmarks.machine import Server

HANDLERS = ("audit.log_event", "accounts.grant_access", "mail.say_it_went_well")
LIMIT = 10_000_000
UNIQUE = "X" * 24
"""As many characters as there are in Stripe's ids behind `evt_` and `vs_`."""

NONCE = 3
"""Where a command has its nonce: behind EVALSHA, the script and the number of keys."""

NUMBER = "N" * 8
"""Stands for the number of the life. Nonces are made of it: a command whose nonce Redis knows does
nothing. Redis keeps the last answer of each slot, and a process has few: so lives share theirs."""

_CHUNK = 1_000

Command = tuple[str, ...]


def unique(number: int) -> str:
    """Return the end of an id: like Stripe's, it begins alike and ends at random."""
    end = base64.b64encode(hashlib.blake2b(number.to_bytes(4), digest_size=12).digest(), b"Aa")
    return f"{number:08}{end.decode()}"


def event(unique: str) -> Event:
    return Event(f"evt_{unique}", "verified", "snapshot", f"vs_{unique}", 1_790_000_000, False)


def settle(inbox: Inbox) -> None:
    """Take the next event, and have all handlers done with it."""
    (claim,) = inbox.claim()
    assert isinstance(claim, Claim)
    for handler in HANDLERS:
        assert inbox.save_progress(claim, handler, Progress("done"))
    assert inbox.finish(claim, "done", outcome="verified") is not None


def record(server: Server, *, settled: bool) -> list[Command]:
    """Live one life, to its end or until it is accepted, and return its commands."""
    with Redis(port=server.port) as client, client.monitor() as monitor:
        with Redis(port=server.port) as other:
            inbox = Inbox(other, limit=LIMIT)
            inbox.accept(event(UNIQUE))
            if settled:
                settle(inbox)
            other.echo("that was all")
        commands = []
        while (seen := monitor.next_command())["command"] != "ECHO that was all":
            if seen["client_type"] != "lua":
                commands.append(tuple(seen["command"].split(" ")))
    # Without those that load a script or ask for the memory.
    asked = [command for command in commands if command[0] == "EVALSHA"]
    return [(*c[:NONCE], f"slot{n}.{NUMBER}", *c[NONCE + 1 :]) for n, c in enumerate(asked)]


def repeat(server: Server, commands: Iterable[Command], count: int) -> None:
    """Send the commands again for `count` other events."""
    with Redis(port=server.port, socket_timeout=60) as client:
        connection = client.connection_pool.get_connection()
        packed = b"".join(part for c in commands for part in connection.pack_command(*c))
        answers, under_way = len(list(commands)), 0
        for first in range(0, count, _CHUNK):
            numbers = range(first, min(first + _CHUNK, count))
            lives = [
                packed.replace(UNIQUE.encode(), unique(n).encode()).replace(
                    NUMBER.encode(), b"%08d" % n
                )
                for n in numbers
            ]
            connection.send_packed_command(lives)
            # One chunk ahead, so that the server never waits for us.
            for _ in range(under_way):
                connection.read_response()
            under_way = len(lives) * answers
        for _ in range(under_way):
            connection.read_response()
        client.connection_pool.release(connection)

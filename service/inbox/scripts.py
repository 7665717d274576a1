"""The Lua scripts of service/inbox/lua, and commands that run them as Redis reads them. No I/O
but reading the scripts themselves.

Packing the one command we send here, in place of redis-py's client, halves what a round trip costs
(measured on redis-py 8.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

from service.inbox import keys
from service.inbox.record import KEPT

# What Redis still runs when its memory is full: all but taking in new events. Otherwise a full
# inbox would never drain.
_TAKING_IN = ("accept", "replay")
_WORKING_OFF = ("claim", "renew", "save_progress", "release", "finish", "link", "sweep")


def constants() -> dict[str, str | int | tuple[str, ...]]:
    """Return what stands in front of each script: keys, times (ms, or s where KEEP) and limits."""
    return {
        "KEPT": KEPT,
        "RECORD": keys.RECORD,
        "DONE": keys.DONE,
        "SESSION": keys.SESSION,
        "WAITING": keys.WAITING,
        "LAST": keys.LAST,
        "DUE": keys.DUE,
        "DEAD": keys.DEAD,
        "PAUSE": keys.PAUSE,
        "BUDGET": keys.BUDGET,
        "SEQUENCE": keys.SEQUENCE,
        "JOB": keys.JOB,
        "QUEUE": keys.QUEUE_KEY,
        "LEASE": round(keys.LEASE * 1000),
        "HORIZON": round(keys.HORIZON * 1000),
        "BUSY": round(keys.BUSY_DELAY * 1000),
        "KEEP": keys.KEEP,
        "KEEP_LAST": keys.KEEP_LAST,
        "MAX_LAPSES": keys.MAX_LAPSES,
    }


def sources() -> dict[str, str]:
    """Return every script by name, with the constants and lib.lua in front of it."""
    folder = resources.files("service.inbox") / "lua"
    names = "".join(f"local {name} = {_lua(value)}\n" for name, value in constants().items())
    lib = names + (folder / "lib.lua").read_text()
    return {
        name: f"{flags}{lib}{(folder / f'{name}.lua').read_text()}"
        for flags, scripts in (
            ("#!lua\n", _TAKING_IN),
            ("#!lua flags=allow-oom\n", _WORKING_OFF),
        )
        for name in scripts
    }


class Scripts:
    """Scripts by name, and the commands that run them."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self._heads = {name: _head(source) for name, source in sources.items()}

    def command(self, name: str, *args: str | int) -> bytes:
        """Return the command that runs a script, as Redis reads it.

        (https://redis.io/docs/latest/develop/reference/protocol-spec/)
        """
        return b"*%d\r\n%b%b" % (len(args) + 3, self._heads[name], _pack(args))


def pack_command(*parts: str | int) -> bytes:
    """Return any other command as Redis reads it."""
    return b"*%d\r\n%b" % (len(parts), _pack(parts))


def _pack(parts: tuple[str | int, ...]) -> bytes:
    data = [str(part).encode() for part in parts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in data])


def _head(source: str) -> bytes:
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n" % sha.encode()


def _lua(value: str | int | tuple[str, ...]) -> str:
    return f"{{{str(value)[1:-1]}}}" if isinstance(value, tuple) else repr(value)

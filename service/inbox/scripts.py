"""The Lua scripts of service/inbox/lua, and commands that run them as Redis reads them. No I/O
but reading the scripts themselves.

Every command carries a nonce, by which a script that is asked twice answers as the first time
(lua/once.lua; accept.lua has a cheaper way).

Packing the one command we send here, in place of redis-py's client, halves what a round trip costs
(measured on redis-py 8.1).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from importlib import resources

from service.inbox import keys
from service.inbox.record import KEPT

# What Redis still runs when its memory is full, or a full inbox would never drain. `_TAKING_IN` are
# refused then, and `accept`, which has no flags, runs until its first write is refused: a delivery
# of an event that is known already is answered.
_WORKING_OFF = (
    *("claim", "renew", "save_progress", "release", "finish", "link", "sweep", "discard"),
    *("pause", "acquire", "spend", "note_death"),
)
_TAKING_IN = ("replay", "retry", "adopt", "list")

# What lib.lua consists of: functions that end with a line `end`, and what stands in one line.
_PART = re.compile(r"^local function .*\)\n(?:.*\n)*?end\n|^local .*\n", re.MULTILINE)
_NAME = re.compile(r"^local (?:function )?(\w+)")
_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")  # not the `find` of `string.find`
_CAPITALS = re.compile(r"(?<![.\w])[A-Z][A-Z_]*\b")
_COMMENT = re.compile(r"--.*")


def constants(keep: int) -> dict[str, str | int | tuple[str, ...]]:
    """Return what scripts name in capitals: keys, durations (ms; KEEP... in s) and limits."""
    return {
        "KEPT": KEPT,
        "RECORD": keys.RECORD,
        "DONE": keys.DONE,
        "SESSION": keys.SESSION,
        "WAITING": keys.WAITING,
        "LAST": keys.LAST,
        "DUE": keys.DUE,
        "DEAD": keys.DEAD,
        "DEATHS": keys.DEATHS,
        "DEAD_OF": keys.DEAD_OF,
        "LOG": keys.LOG,
        "HOURS": keys.HOURS,
        "OF": keys.OF,
        "OUTCOMES": keys.OUTCOMES,
        "PAUSE": keys.PAUSE,
        "TURN": keys.TURN,
        "BUDGET": keys.BUDGET,
        "CLOCK": keys.CLOCK,
        "SEQUENCE": keys.SEQUENCE,
        "ACCOUNTS": keys.ACCOUNTS,
        "PROCESSES": keys.PROCESSES,
        "SEEN": keys.SEEN,
        "ANSWER": keys.ANSWER,
        "JOB": keys.JOB,
        "QUEUE": keys.QUEUE_KEY,
        "LEASE": round(keys.LEASE * 1000),
        "HORIZON": round(keys.HORIZON * 1000),
        "BUSY": round(keys.BUSY_DELAY * 1000),
        "STEP": round(keys.STEP * 1000),
        "CATCH_UP": round(keys.CATCH_UP * 1000),
        "HOUR": keys.HOUR * 1000,
        "DAY": keys.DAY * 1000,
        "HOURS_OF": keys.HOURS_OF,
        "KEEP": keep,
        "KEEP_LOG": keep + keys.HOUR + keys.DAY,
        "KEEP_OF": keep + keys.HOURS_OF * keys.HOUR + keys.DAY,
        "KEEP_ANSWER": round(keys.KEEP_ANSWER * 1000),
        "KEEP_LAST": keys.KEEP_LAST,
        "KEEP_OUTCOMES": keys.KEEP_OUTCOMES,
        "MAX_LAPSES": keys.MAX_LAPSES,
        "MAX_ACTS": keys.MAX_ACTS,
        "MAX_TRAIL": keys.MAX_TRAIL,
    }


def sources(keep: int = keys.KEEP) -> dict[str, str]:
    """Return every script by name; done records are kept for `keep` seconds."""
    values = _values(keep)
    return {
        "accept": _linked(_read("accept"), values),  # keeps its nonce itself
        "report": "#!lua flags=allow-oom\n" + _linked(_read("report"), values),  # needs none
        **{name: "#!lua\n" + _once(_read(name), values) for name in _TAKING_IN},
        **{name: "#!lua flags=allow-oom\n" + _once(_read(name), values) for name in _WORKING_OFF},
    }


def script(body: str) -> str:
    """Return a script: what it needs of lib.lua, the body, and what has it happen once."""
    return _once(body, _values(keys.KEEP))


def _once(body: str, values: tuple[tuple[str, str], ...]) -> str:
    return _linked(f"local function run(ARGV)\n{body}end\n{_read('once')}", values)


@functools.cache
def _linked(body: str, values: tuple[tuple[str, str], ...]) -> str:
    """Return a script behind those parts of lib.lua that it needs, with constants as their values.

    Redis runs the whole text for each call: every function in it is made anew, and takes the longer
    the more names it uses from outside.
    """
    code, needed = [body], _words(body)
    for part in reversed(_PART.findall(_read("lib"))):
        if needed.intersection(_NAME.findall(part)):
            code.insert(0, part)
            needed |= _words(part)
    value = dict(values)
    return _CAPITALS.sub(lambda word: value.get(word[0], word[0]), "".join(code))


def _values(keep: int) -> tuple[tuple[str, str], ...]:
    return tuple((name, _lua(value)) for name, value in constants(keep).items())


def _words(code: str) -> set[str]:
    return set(_WORD.findall(_COMMENT.sub("", code)))


class Scripts:
    """Scripts by name, and the commands that run them."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self._heads = {name: _head(source) for name, source in sources.items()}

    def command(self, name: str, nonce: str, *args: str | int) -> bytes:
        """Return the command that runs a script, as Redis reads it.

        (https://redis.io/docs/latest/develop/reference/protocol-spec/)
        """
        return b"*%d\r\n%b%b" % (len(args) + 4, self._heads[name], _pack((nonce, *args)))


def pack_command(*parts: str | int) -> bytes:
    """Return any other command as Redis reads it."""
    return b"*%d\r\n%b" % (len(parts), _pack(parts))


def _pack(parts: tuple[str | int, ...]) -> bytes:
    texts = list(map(str, parts))
    packed = "".join([f"${len(each)}\r\n{each}\r\n" for each in texts])
    if packed.isascii():  # as long in bytes; half the time of what follows (measured)
        return packed.encode()
    return b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in map(str.encode, texts)])


@functools.cache
def _read(name: str) -> str:
    return (resources.files("service.inbox") / "lua" / f"{name}.lua").read_text()


def _head(source: str) -> bytes:
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n" % sha.encode()


def _lua(value: str | int | tuple[str, ...]) -> str:
    return f"{{{str(value)[1:-1]}}}" if isinstance(value, tuple) else repr(value)

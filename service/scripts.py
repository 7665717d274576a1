"""Runs the Lua scripts of service/lua: packed here, and sent over connections that are kept.

redis-py's client can send any command in any setting, and takes 120 us of CPU for it; packing the
one command we send, and taking connections from a list, leaves half (measured on redis-py 8.1).
Connecting, reading replies and what they mean stay redis-py's.

What a thread asks for with `soon` leaves in one piece when it needs the first answer, so that many
events cost one round trip.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import redis
from redis.connection import AbstractConnection
from redis.exceptions import NoScriptError


class Scripts:
    """Lua scripts by name, on one Redis. For any number of threads; not to be used before a fork.

    Every script may be asked for twice: where no reply came, all that left with it is asked again,
    once.
    """

    def __init__(self, client: redis.Redis, sources: Mapping[str, str]) -> None:
        self._client = client
        self._sources = sources
        self._heads = {name: _head(source) for name, source in sources.items()}
        self._threads = threading.local()
        # The last one used is the next; `pop` and `append` of a list need no lock.
        self._idle: list[AbstractConnection] = []

    def run(self, name: str, *args: str | int) -> Any:
        """Run a script without keys; its answer as redis-py gives it.

        Raises:
            redis.RedisError: Redis cannot be asked, or refuses.
        """
        return self.soon(name, *args)()

    def soon(self, name: str, *args: str | int) -> Callable[[], Any]:
        """Run a script together with what else this thread asks for until it needs an answer.

        The function returned waits for the answer, and raises as `run` does.
        """
        batch: _Batch | None = getattr(self._threads, "batch", None)
        if batch is None or batch.answers is not None:
            batch = self._threads.batch = _Batch()
        place = len(batch.commands)
        batch.commands.append(_pack(self._heads[name], args))
        return lambda: self._answer(batch, place)

    def _answer(self, batch: _Batch, place: int) -> Any:
        if batch.answers is None:
            try:
                batch.answers = self._ask_twice(batch.commands)
            except redis.RedisError as error:
                batch.answers = [error] * len(batch.commands)
        answer = batch.answers[place]
        if isinstance(answer, redis.RedisError):
            raise answer
        return answer

    def _ask_twice(self, commands: list[bytes]) -> list[Any]:
        """Return an answer for each, which may be a refusal."""
        try:
            answers = self._ask(commands)
        except (redis.ConnectionError, redis.TimeoutError):
            answers = self._ask(commands)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # A server that has just started knows none.
            for source in self._sources.values():
                self._client.script_load(source)
            answers = self._ask(commands)
        return answers

    def _ask(self, commands: list[bytes]) -> list[Any]:
        try:
            connection = self._idle.pop()
        except IndexError:
            # Ours to keep, so not one that the client's pool waits to get back.
            pool = self._client.connection_pool
            connection = cast(AbstractConnection, pool.connection_class(**pool.connection_kwargs))
        try:
            connection.send_packed_command([b"".join(commands)], check_health=False)
            answers = [_reply(connection) for _ in commands]
            if any(isinstance(answer, redis.ReadOnlyError) for answer in answers):
                # A primary no longer: its name may lead to another machine now.
                connection.disconnect()
        except BaseException:
            connection.disconnect()  # it may be out of step; the next use connects anew
            raise
        finally:
            self._idle.append(connection)
        return answers


class _Batch:
    """Commands of one thread that leave together; `answers` once they have."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.answers: list[Any] | None = None


def _reply(connection: AbstractConnection) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as refusal:
        return refusal


def _head(source: str) -> bytes:
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n" % sha.encode()


def _pack(head: bytes, args: tuple[str | int, ...]) -> bytes:
    """Return the command as Redis reads it (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    parts = [b"*%d\r\n" % (len(args) + 3), head]
    for arg in args:
        data = str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)

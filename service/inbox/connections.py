"""Sends pipelines to Redis over connections that are kept, for any number of threads.

Connections come from redis-py, which also reads the replies. They are kept in a list here: the
client's own pool costs more than the round trip (measured on redis-py 8.1).
"""

from __future__ import annotations

from typing import Any, cast

import redis
from redis.connection import AbstractConnection
from redis.exceptions import NoScriptError

from service.inbox.pipeline import Pipeline
from service.inbox.scripts import Scripts


class Connections:
    """Connections to one Redis. Not to be used before a fork."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client, self._scripts = client, scripts
        # The last one used is the next; `pop` and `append` of a list need no lock.
        self._idle: list[AbstractConnection] = []

    def send(self, pipe: Pipeline) -> None:
        """Send a pipeline and set its replies; a failure is set in place of those it concerns.

        Where no reply came, the whole pipeline is sent again, once: every script may be run twice.
        """
        if not len(pipe):
            return
        try:
            pipe.set_replies(self._exchange(pipe))
        except redis.RedisError as error:
            pipe.set_replies([error] * len(pipe))

    def _exchange(self, pipe: Pipeline) -> list[Any]:
        data, count = pipe.pack(), len(pipe)
        try:
            replies = self._round_trip(data, count)
        except (redis.ConnectionError, redis.TimeoutError):
            replies = self._round_trip(data, count)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # A server that has just started knows no script.
            for source in self._scripts.sources.values():
                self._client.script_load(source)
            replies = self._round_trip(data, count)
        return replies

    def _round_trip(self, data: bytes, count: int) -> list[Any]:
        """Return a reply for each command, which may be a refusal."""
        try:
            connection = self._idle.pop()
        except IndexError:
            # Ours to keep, so not one that the client's pool waits to get back.
            pool = self._client.connection_pool
            connection = cast(AbstractConnection, pool.connection_class(**pool.connection_kwargs))
        try:
            connection.send_packed_command([data], check_health=False)
            replies = [_reply(connection) for _ in range(count)]
            if any(isinstance(reply, redis.ReadOnlyError) for reply in replies):
                # A primary no longer: its name may lead to another machine now.
                connection.disconnect()
        except BaseException:
            connection.disconnect()  # it may be out of step; the next use connects anew
            raise
        finally:
            self._idle.append(connection)
        return replies


def _reply(connection: AbstractConnection) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as refusal:
        return refusal

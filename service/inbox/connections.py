"""Sends pipelines to Redis over the connections of a client, for any number of threads.

redis-py connects and reads the replies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.connection import AbstractConnection
from redis.exceptions import MaxConnectionsError, NoScriptError

from service.inbox.pipeline import Pipeline
from service.inbox.scripts import Scripts


class Connections:
    """Connections to one Redis. Not to be used before a fork."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client, self._scripts = client, scripts

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
            replies = self.round_trip(data, count)
        except MaxConnectionsError:
            raise  # nothing was asked
        except (redis.ConnectionError, redis.TimeoutError):
            replies = self.round_trip(data, count)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # A server that has just started knows no script.
            for source in self._scripts.sources.values():
                self._client.script_load(source)
            replies = self.round_trip(data, count)
        return replies

    def round_trip(self, data: bytes, count: int) -> list[Any]:
        """Send packed commands; a reply for each, which may be a refusal."""
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command([data], check_health=False)
            replies = [read_reply(connection) for _ in range(count)]
            if any(isinstance(reply, redis.ReadOnlyError) for reply in replies):
                # A primary no longer: its name may lead to another machine now.
                connection.disconnect()
        except BaseException:
            connection.disconnect()  # it may be out of step; the next use connects anew
            raise
        finally:
            pool.release(connection)
        return replies


Ask = Callable[[bytes, int], list[Any]]
"""Sends packed commands and returns one reply for each; for a refused command its error."""


def asking(client: redis.Redis) -> Ask:
    """Return a way to ask over the connections of a client."""
    return Connections(client, Scripts({})).round_trip


def read_reply(connection: AbstractConnection) -> Any:
    """Return the next reply on a connection, which may be a refusal."""
    try:
        return connection.read_response()
    except redis.ResponseError as refusal:
        return refusal

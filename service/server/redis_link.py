"""The one connection to Redis over which a web process accepts events, inside the event loop.

Nothing here waits: connecting, with all that may block in it (names, TLS, the handshake), happens
on a thread; then the loop writes pipelines and reads replies as they come. A pipeline that Redis
has not answered by its deadline fails, and with it everything that waits; from then on pipelines
fail at once, until a new connection has answered.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import hiredis
import redis
from redis.connection import AbstractConnection

from service import connection, findings, logs
from service.findings import Command, Finding, Info, Look
from service.inbox import Limits, Pipeline, keys, memory_is_short
from service.inbox.connections import read_reply
from service.inbox.pipeline import Memory
from service.inbox.probe import Probe
from service.inbox.scripts import Scripts, pack_command, sources
from service.limits import ACCEPT_DEADLINE
from service.redis_errors import UnsafeRedis, explain
from service.settings import Settings

RETRY_PERIOD = 0.25
"""Seconds between two attempts to connect."""

_INFO = pack_command("INFO") + pack_command("ZCARD", keys.DUE)

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_INCOMPLETE = object()

log = logs.get(__name__)


@dataclass(slots=True)
class _Sent:
    """A pipeline, what to do when its replies are set, and until when that must be."""

    data: bytes
    count: int
    set_replies: Callable[[list[Any]], None]
    deadline: float


class RedisLink:
    """Sends pipelines and sets their replies. All of it runs in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scripts = Scripts(sources(settings.keep))
        # How many pending events there may be is known once Redis was looked at.
        self._limits = Limits(reopen_dead=settings.reopen_dead_on_redelivery)
        self._memory = Memory()
        self._loop = asyncio.get_running_loop()
        self._connection: _Connection | None = None
        self._unsent: deque[_Sent] = deque()
        self._in_flight: deque[_Sent] = deque()
        self._replies: list[Any] = []
        self._probe = Probe()
        self._asked: list[Command] = []  # of Redis beside INFO
        self._told: list[Callable[[list[str]], None]] = []  # by the check that is under way
        self._connected_at = 0.0
        self._not_connected: Exception | None = None  # why not, while it is tried
        self._closed = False
        self.trouble: Exception | None = None
        """Why pipelines fail at once; None while they are sent."""
        self._memory_is_short = False
        self._timer = self._loop.call_later(ACCEPT_DEADLINE / 10, self._look_at_deadlines)
        self._check_timer = self._loop.call_later(findings.PERIOD, self._check_again)
        self._open()

    def pipeline(self) -> Pipeline:
        """Return an empty pipeline, which accepts no new events while Redis is short of memory."""
        limits = self._limits
        if self._memory_is_short:
            limits = Limits(0, limits.reopen_dead, limits.api_rate)
        return Pipeline(self._scripts, limits, self._memory)

    def send(self, pipe: Pipeline, done: Callable[[], None]) -> None:
        """Send a pipeline; `done` is called when its replies are set, at most once, maybe at once.

        Every script may be sent twice: what a broken connection left unanswered is sent again.
        """

        def set_replies(replies: list[Any]) -> None:
            pipe.set_replies(replies)
            done()

        self._send(_Sent(pipe.pack(), len(pipe), set_replies, self._deadline()))

    def check(self, tell: Callable[[list[str]], None]) -> None:
        """Find out why events would not be accepted now, and tell: a sentence each, or none.

        Redis is asked for its properties, and to accept a test event.
        """
        self._told.append(tell)
        if len(self._told) == 1:  # else the check that is under way tells all
            self._ask()

    def _ask(self) -> None:
        asked = self._asked
        trial, reply = self._probe.pipeline()

        def judge(replies: list[Any]) -> None:
            info, pending, *answers, last = replies
            trial.set_replies([last])
            if isinstance(info, UnsafeRedis):
                faults = str(info).splitlines()
            elif findings.cannot_be_asked(info):
                faults = [f"Redis cannot be reached: {explain(info)}"]
            else:
                known = findings.parse_info(info)
                self._asked = findings.questions(known)
                if not set(self._asked) <= set(asked):
                    self._ask()  # it is another Redis now, which tells less
                    return
                full = findings.completed(known, dict(zip(asked, answers, strict=True)))
                refusal = findings.refusal_of(reply)
                found = findings.judge(full, self._settings, accepting=refusal)
                self._judge(full, found)
                faults = findings.faults(found)
                if isinstance(pending, int) and pending >= self._limits.pending:
                    faults.append(findings.INBOX_IS_FULL)
            told, self._told = self._told, []
            for each in told:
                each(faults)

        data = _INFO + b"".join(pack_command(*each) for each in asked) + trial.pack()
        sent = _Sent(data, 3 + len(asked), judge, self._deadline())
        if isinstance(self.trouble, UnsafeRedis) and self._connection is not None:
            # Refused, but it answers: perhaps it is safe by now.
            self._in_flight.append(sent)
            self._connection.write(sent.data)
        else:
            self._send(sent)

    def close(self) -> None:
        """End the connection; what waits fails."""
        self._closed = True
        self._timer.cancel()
        self._check_timer.cancel()
        self._fail(redis.ConnectionError("closed"))

    def _send(self, sent: _Sent) -> None:
        if self.trouble is not None:
            sent.set_replies([_as_redis_error(self.trouble)] * sent.count)
        elif self._connection is None:
            self._unsent.append(sent)
        else:
            self._in_flight.append(sent)
            self._connection.write(sent.data)

    def _deadline(self) -> float:
        return self._loop.time() + ACCEPT_DEADLINE

    # --- connecting ---------------------------------------------------------------------------

    def _open(self) -> None:
        threading.Thread(target=self._connect, name="redis", daemon=True).start()

    def _connect(self) -> None:
        """Connect and look whether this Redis is fit; on a thread."""
        try:
            opened = _Opened.open(self._settings, self._scripts)
            result: _Opened | Exception = opened
        except Exception as error:  # noqa: BLE001 (whatever it is, deliveries are refused meanwhile)
            result = error
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._opened, result)

    def _opened(self, result: _Opened | Exception) -> None:
        if self._closed:
            return
        if isinstance(result, Exception):
            self._not_connected = result
            if self.trouble is not None:
                self._note(result)
            self._loop.call_later(RETRY_PERIOD, self._open)
            return
        self._not_connected = None
        self._connection = _Connection(result.connection, self._loop, self._receive, self._lost)
        self._connected_at = self._loop.time()
        self._asked = result.look.asked
        self._judge(result.look.info, result.look.found)
        waiting, self._unsent = self._unsent, deque()
        for sent in waiting:
            self._send(sent)

    def _lost(self, lost: _Connection, error: Exception) -> None:
        """Note that a connection broke: perhaps one that is given up already."""
        if lost is self._connection:
            self._connect_anew(error)

    def _connect_anew(self, error: Exception) -> None:
        """Connect again at once; what is not answered yet is sent again then."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        self._replies = []
        self._unsent.extendleft(reversed(self._in_flight))
        self._in_flight.clear()
        log.warning("redis_connection_lost", **explain(error).fields())
        # Pause between attempts, also when Redis refuses each at once.
        is_new = self._loop.time() < self._connected_at + RETRY_PERIOD
        self._loop.call_later(RETRY_PERIOD if is_new else 0, self._open)

    # --- replies ------------------------------------------------------------------------------

    def _receive(self, reply: Any) -> None:
        if isinstance(reply, redis.exceptions.NoScriptError | redis.ReadOnlyError):
            # It restarted without scripts, or is a primary no longer: connect anew.
            self._connect_anew(reply)
            return
        if not self._in_flight:
            self._connect_anew(redis.InvalidResponse("a reply that nobody asked for"))
            return
        self._replies.append(reply)
        if len(self._replies) == self._in_flight[0].count:
            replies, self._replies = self._replies, []
            self._in_flight.popleft().set_replies(replies)

    def _look_at_deadlines(self) -> None:
        self._timer = self._loop.call_later(ACCEPT_DEADLINE / 10, self._look_at_deadlines)
        oldest = next(iter(self._in_flight or self._unsent), None)
        if oldest and oldest.deadline <= self._loop.time():
            had_connection = self._connection is not None
            self._fail(self._not_connected or redis.TimeoutError("not answered in time"))
            if had_connection:
                self._open()

    def _fail(self, trouble: Exception) -> None:
        """Fail everything that waits, and what comes until Redis answers again."""
        self._note(trouble)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._replies = []
        waiting = [*self._in_flight, *self._unsent]
        self._in_flight.clear()
        self._unsent.clear()
        for sent in waiting:
            sent.set_replies([_as_redis_error(trouble)] * sent.count)

    def _note(self, trouble: Exception) -> None:
        """Fail later pipelines, and log the cause unless it is the same as before."""
        before, self.trouble = self.trouble, trouble
        cause = explain(trouble)
        if not self._closed and (before is None or explain(before) != cause):
            log.error("redis_unreachable", **cause.fields())

    # --- what Redis is ------------------------------------------------------------------------

    def _check_again(self) -> None:
        self._check_timer = self._loop.call_later(findings.PERIOD, self._check_again)
        if self._connection is not None:
            self.check(lambda _: None)

    def _judge(self, info: Info, found: list[Finding]) -> None:
        """Accept events only if the findings allow it."""
        before = self.trouble
        try:
            findings.require(found)
            self.trouble = None
        except UnsafeRedis as unsafe:
            self.trouble = unsafe
        self._memory_is_short = memory_is_short(info)
        limit = findings.inbox_limit(info, self._settings)
        self._limits = replace(self._limits, pending=limit)
        if before is not None and self.trouble is None:
            log.info("redis_reached")
        if self.trouble is not None and str(before) != str(self.trouble):
            log.error("redis_unsafe", faults=str(self.trouble).splitlines())


@dataclass(frozen=True, slots=True)
class _Opened:
    connection: AbstractConnection
    look: Look

    @classmethod
    def open(cls, settings: Settings, scripts: Scripts) -> _Opened:
        """Connect, load the scripts and look at Redis. Blocks, for seconds in the worst case."""
        pool = connection.connect(settings, protocol=2).connection_pool
        opened = pool.connection_class(**pool.connection_kwargs)

        def ask(data: bytes, count: int) -> list[Any]:
            opened.send_packed_command([data], check_health=False)
            return [read_reply(opened) for _ in range(count)]

        try:
            opened.connect()
            _require_login(ask)
            loads = [pack_command("SCRIPT", "LOAD", each) for each in scripts.sources.values()]
            ask(b"".join(loads), len(loads))  # what is refused here is found below
            seen = findings.look(ask, settings)
        except BaseException:
            opened.disconnect()
            raise
        return cls(opened, seen)


def _require_login(ask: Callable[[bytes, int], list[Any]]) -> None:
    """Raise `redis.AuthenticationError` where Redis asks for a password.

    Scripts are longer than 16 kB, and Redis cuts the connection of a client that sends so much and
    has not logged in.
    """
    (reply,) = ask(pack_command("PING"), 1)
    if isinstance(reply, redis.AuthenticationError):
        raise reply


class _Connection:
    """The socket of a connection of redis-py's, written and read in the loop."""

    def __init__(
        self,
        opened: AbstractConnection,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[Any], None],
        lost: Callable[[_Connection, Exception], None],
    ) -> None:
        self._opened = opened  # closes the socket when it is collected
        # redis-py has no public way to its socket (tests/integration/server/test_contracts.py).
        self._socket: Any = vars(opened)["_sock"]
        self._socket.setblocking(False)
        self._file = self._socket.fileno()
        self._loop, self._receive, self._lost = loop, receive, lost
        self._reader = hiredis.Reader(
            protocolError=redis.InvalidResponse,
            replyError=_refusal,
            notEnoughData=_INCOMPLETE,
        )
        self._output = bytearray()
        self._closed = False
        loop.add_reader(self._file, self._read)

    def write(self, data: bytes) -> None:
        """Send bytes, now or when the socket takes them."""
        self._output += data
        if len(self._output) == len(data):
            self._write()

    def close(self) -> None:
        """Close the socket. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._file)
        self._loop.remove_writer(self._file)
        self._opened.disconnect()

    def _write(self) -> None:
        try:
            while self._output:
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except _WOULD_BLOCK:
            self._loop.add_writer(self._file, self._write)
            return
        except OSError as error:
            # From the loop, not from within whoever asked.
            self._loop.call_soon(self._lost, self, error)
            return
        self._loop.remove_writer(self._file)

    def _read(self) -> None:
        try:
            while True:
                data = self._socket.recv(65_536)
                if not data:
                    self._lost(self, ConnectionResetError(errno.ECONNRESET, "closed by Redis"))
                    return
                self._reader.feed(data)
                while not self._closed:
                    reply = self._reader.gets()
                    if reply is _INCOMPLETE:
                        break
                    self._receive(reply)
                # A TLS socket may hold more than it shows to the loop.
                if self._closed or not isinstance(self._socket, ssl.SSLSocket):
                    return
        except _WOULD_BLOCK:
            return
        except (OSError, redis.InvalidResponse) as error:
            self._lost(self, error)


def _refusal(text: str) -> redis.RedisError:
    word = text.partition(" ")[0]
    kinds: dict[str, type[redis.RedisError]] = {
        "NOSCRIPT": redis.exceptions.NoScriptError,
        "READONLY": redis.ReadOnlyError,
        "OOM": redis.OutOfMemoryError,
    }
    return kinds.get(word, redis.ResponseError)(text)


def _as_redis_error(error: Exception) -> redis.RedisError:
    if isinstance(error, redis.RedisError):
        return error
    wrapped = redis.ConnectionError(type(error).__name__)
    wrapped.__cause__ = error
    return wrapped

"""The gunicorn worker class of the web process: one event loop that never blocks.

Deliveries are answered in the loop: those that are whole are decided together, Redis is asked once
for all of them, and the loop goes on meanwhile. Health and readiness are answered in the loop, too.
Everything else goes to the WSGI application on a few threads, so that no page delays a delivery.

It speaks plain HTTP/1; TLS ends in front of it. After SIGTERM it goes on accepting and answering
for `DRAIN_SECONDS`, with `Connection: close` and an unready `/readyz`, so that proxies leave in
time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote

import redis
from gunicorn.workers.base import Worker

from identity_webhooks.event import Event
from service import extras, logs
from service.app import HEALTH_PATH, READY_PATH, WEBHOOK_PATH, Web
from service.extras import Delivery
from service.inbox import AcceptResult, Reply
from service.limits import MAX_CONNECTIONS, MAX_HELD, MAX_WAITING_PAGES
from service.receiver import ALIVE, JsonResponse, readiness
from service.server import wsgi
from service.server.client import Client
from service.server.http import Exchange, Refusal, Response
from service.server.redis_link import RedisLink

TICK = 0.25
"""Seconds between two looks at deadlines."""

HEARTBEAT = 1.0
"""Seconds between two signs of life to gunicorn's master."""

ACCEPT_AT_ONCE = 8
"""Connections accepted in one turn of the loop, at most."""

ACCEPT_PAUSE = 0.5
"""Seconds no connection is accepted after the process ran out of file descriptors."""

LAST_SECONDS = 9.0
"""Seconds for what is under way when the listener is closed: a request may take `READ_DEADLINE` to
come and `ACCEPT_DEADLINE` to be answered. gunicorn's `graceful_timeout` is longer than all."""

LAST_WORD = 1.0
"""Seconds a connection without a request is kept at the end: one may be under way."""

_BUSY = Response(503, b"too many requests wait\n", (("Retry-After", "1"),))

log = logs.get(__name__)


class LoopWorker(Worker):
    """See the module. Its parts live in one event loop, started by `run`."""

    @classmethod
    def check_config(cls, cfg: Any, _: Any) -> None:
        """Refuse settings of gunicorn's that have no effect here (RuntimeError)."""
        for name, instead in _UNSUPPORTED.items():
            if cfg.settings[name].get() not in {None, False, "off"}:
                raise RuntimeError(f"{cls.__name__} does not support {name}: {instead}")

    def init_signals(self) -> None:
        """Leave signals to the loop, but SIGABRT, which gunicorn sends to a worker that hangs."""
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def run(self) -> None:
        """Serve until told to stop."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        await _Server(self).run()


class _Server:
    """The server inside the event loop."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._app = worker.wsgi
        self._web: Web | None = getattr(worker.wsgi, "extensions", {}).get("identity_webhooks")
        self._loop = asyncio.get_running_loop()
        self._link = RedisLink(self._web.settings) if self._web else None
        self._tracing = extras.Tracing()
        self._deliveries: list[tuple[Client, Exchange]] = []
        self._pages: SimpleQueue[tuple[Client, Exchange]] = SimpleQueue()
        self._opening: set[asyncio.Task[Any]] = set()
        self._listening: set[socket.socket] = set()
        self._paused_until = 0.0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._capacity = _connection_limit()
        self.clients: set[Client] = set()
        self.held = 0

    async def run(self) -> None:
        """Serve until told to stop; then drain."""
        self._loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        for each in (signal.SIGINT, signal.SIGQUIT):
            self._loop.add_signal_handler(each, self._quit)
        self._loop.add_signal_handler(signal.SIGUSR1, self._worker.log.reopen_files)
        for number in range(self._worker.cfg.threads):
            name = f"page-{number}"
            threading.Thread(target=self._run_pages, name=name, daemon=True).start()
        housekeeping = asyncio.create_task(self._keep_house())
        if self._web:
            self._web.metrics.start()
            self._tracing = extras.start(self._web.settings)
        self._listen()
        await self._stop.wait()
        await self._drain()
        housekeeping.cancel()
        if self._link:
            self._link.close()
        self._tracing.end()

    def _quit(self) -> None:
        self._stop.set()
        self._hurry.set()

    # --- connections --------------------------------------------------------------------------

    def _listen(self) -> None:
        for listener in set(self._worker.sockets) - self._listening:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
            self._listening.add(listener)

    def _pause_listening(self) -> None:
        while self._listening:
            self._loop.remove_reader(self._listening.pop().fileno())

    def _accept(self, listener: socket.socket) -> None:
        """Accept a few connections: few, so that processes get about as many each."""
        for _ in range(ACCEPT_AT_ONCE):
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        if not self._make_room():
            self._pause_listening()  # until a client leaves (`_keep_house`)
            return False
        try:
            accepted, _ = listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                log.exception("connection_not_accepted", code=errno.errorcode[error.errno])
                self._drop_some()
                self._pause_listening()
                self._paused_until = self._loop.time() + ACCEPT_PAUSE
            return False  # or taken by another process, or gone already
        accepted.setblocking(False)
        opening = self._loop.connect_accepted_socket(self._new_client, accepted)
        task = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opened)
        return True

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.exception()  # a client that is gone again

    def _new_client(self) -> Client:
        client = Client(self, self._loop)
        if self._stop.is_set():
            client.retire()
        return client

    def _make_room(self) -> bool:
        """Whether another connection may be accepted, if need be after dropping some."""
        if len(self.clients) + len(self._opening) < self._capacity:
            return True
        return self._drop_some()

    def _drop_some(self) -> bool:
        """Drop a tenth of the clients that have no delivery under way: the longest silent first."""
        free = sorted((each for each in self.clients if not each.delivers), key=_since)
        for client in free[: len(free) // 10 + 1]:
            client.drop()
        return bool(free)

    def relieve(self) -> None:
        """Drop clients until requests take half of the memory they may: those with most first.

        A client is kept if it uses no more than an equal share among all connections.
        """
        for client in sorted(self.clients, key=_held, reverse=True):
            if self.held <= MAX_HELD // 2 or client.held <= MAX_HELD // MAX_CONNECTIONS:
                break
            if not client.delivers:
                client.drop()

    async def _keep_house(self) -> None:
        """End what is past its deadline, and tell gunicorn that the loop lives."""
        beat = 0.0
        while True:
            now = self._loop.time()
            for client in [each for each in self.clients if each.deadline < now]:
                client.expire()
            if not self._listening and not self._stop.is_set() and now >= self._paused_until:
                self._listen()
            if now >= beat:
                beat = now + HEARTBEAT
                self._worker.notify()
                if os.getppid() != self._worker.ppid:
                    log.warning("master_gone")
                    self._quit()
            await asyncio.sleep(TICK)

    # --- requests -----------------------------------------------------------------------------

    def dispatch(self, client: Client, exchange: Exchange) -> None:
        """See to it that the exchange gets its response."""
        request = exchange.request
        path = unquote(request.path) if self._web else None
        if path == WEBHOOK_PATH and request.method == "POST":
            if not self._deliveries:
                self._loop.call_soon(self._decide)
            self._deliveries.append((client, exchange))
            client.delivers = True
        elif path == READY_PATH and request.method in {"GET", "HEAD"}:
            self._check_readiness(client, exchange)
        elif path == HEALTH_PATH and request.method in {"GET", "HEAD"}:
            client.respond(exchange, _ALIVE)
        elif self._pages.qsize() >= MAX_WAITING_PAGES:
            client.respond(exchange, _BUSY)
        else:
            self._pages.put((client, exchange))

    def refused(self, refusal: Refusal) -> None:
        """Log and count a request that is refused."""
        log.warning("request_refused", status=refusal.status, reason=refusal.reason)
        if self._web:
            self._web.metrics.count("refusals", refusal.reason)

    def _decide(self) -> None:
        """Decide all deliveries that are whole, and ask Redis once to accept their events."""
        assert self._web  # noqa: S101 (deliveries come with it)
        assert self._link  # noqa: S101
        receiver = self._web.receiver
        batch, self._deliveries = self._deliveries, []
        events: list[tuple[Client, Exchange, Event, Delivery]] = []
        for client, exchange in batch:
            request = exchange.request
            decision = receiver.decide(request.body, request.header(b"stripe-signature"))
            request.body = b""
            if isinstance(decision, JsonResponse):
                client.respond(exchange, _response(decision))
            else:
                events.append((client, exchange, decision, self._tracing.delivery(decision)))
        if events:
            pipe = self._link.pipeline()
            waiting = [(*each, pipe.accept(each[2], each[3].parent)) for each in events]
            self._link.send(pipe, partial(self._answer, waiting, self._loop.time()))

    def _answer(self, waiting: list[_Waiting], asked: float) -> None:
        assert self._web  # noqa: S101
        receiver = self._web.receiver
        took = self._loop.time() - asked
        self._web.metrics.observe("accept_seconds", took, times=len(waiting))
        for client, exchange, event, delivery, reply in waiting:
            try:
                answer = receiver.accepted(event, reply.result())
            except redis.RedisError as error:
                answer = receiver.failed(event, error)
            delivery.answered(answer.status)
            client.respond(exchange, _response(answer))

    def _check_readiness(self, client: Client, exchange: Exchange) -> None:
        assert self._link  # noqa: S101
        tell = partial(self._tell_readiness, client, exchange)
        if self._stop.is_set():
            tell(["this process is about to stop"])
        else:
            self._link.check(tell)

    def _tell_readiness(self, client: Client, exchange: Exchange, faults: list[str]) -> None:
        client.respond(exchange, _response(readiness(faults)))

    def _run_pages(self) -> None:
        while True:
            client, exchange = self._pages.get()
            address, server = client.address, client.server_address
            response = wsgi.run(self._app, exchange.request, address, server)
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(client.respond, exchange, response)

    # --- the end ------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Answer what comes for a while, then what is under way, then end."""
        for client in self.clients:
            client.retire()
        if self._web and not self._hurry.is_set():
            self._listen()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._web.settings.drain_seconds)
        listeners = list(self._worker.sockets)
        self._pause_listening()
        for listener in listeners:
            # What the kernel has accepted for us would be reset with the listener.
            while self._accept_one(listener):
                pass
            listener.close()
        ends = self._loop.time() + LAST_SECONDS
        while (self.clients or self._opening) and self._loop.time() < ends:
            for client in list(self.clients):
                client.close_if_quiet(LAST_WORD)
            await asyncio.sleep(TICK / 5)
        for client in list(self.clients):
            client.drop()


_UNSUPPORTED = {
    "certfile": "have TLS end in front of it",
    "keyfile": "have TLS end in front of it",
    "proxy_protocol": "have the proxy speak plain HTTP/1 to it",
    "max_requests": "a process is not renewed, since that would hold up deliveries",
}
_Waiting = tuple[Client, Exchange, Event, Delivery, Reply[AcceptResult]]
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def _response(answer: JsonResponse) -> Response:
    return Response(answer.status, answer.body, answer.headers)


_ALIVE = _response(ALIVE)


def _since(client: Client) -> float:
    return client.since


def _held(client: Client) -> int:
    return client.held


def _connection_limit() -> int:
    """Return how many connections the file descriptors of this process allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(MAX_CONNECTIONS, soft - _OTHER_FILES))


_OTHER_FILES = 100
"""File descriptors for all but clients: Redis, logs, listeners, pages."""

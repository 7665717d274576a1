"""A TCP proxy that does to a connection what networks do. It runs on a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self

LOOPBACK = "127.0.0.1"


class Proxy:
    """Stands in front of a server on loopback; set the attributes and call the methods at any time.

    Attributes:
        port: where to connect instead.
        target: the port of the server, for new connections.
        delay: seconds by which everything is late, both ways.
        rate: bytes a second, each way of each connection; None is no limit.
        refusing: whether new connections are ended at once.
        connections: how many were made so far.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._serving: set[asyncio.Task[None]] = set()  # one for each connection
        self._replies_to_drop: list[int] = []
        self._to_tear = 0
        self.port = 0
        self.delay = 0.0
        self.rate: float | None = None
        self.refusing = False
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection there is."""
        self._call(self._abort_all())

    def half_close(self) -> None:
        """End what the server says on every connection; what the client says still gets there."""
        self._call(self._end_replies())

    def drop_reply(self, nth: int = 1) -> None:
        """Swallow the n-th reply from now on, and reset its connection.

        A reply is what the server sends at once: of Redis, the answer to a command or a pipeline.
        """
        self._replies_to_drop.append(nth)

    def tear_reply(self, length: int) -> None:
        """Pass on so many bytes of the next reply, and reset its connection."""
        self._to_tear = length

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        # asyncio's own server says of a connection only ticks later that it has accepted it, and
        # what it has accepted when the proxy ends would be left open.
        with suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = self._listener.accept()
            task = self._loop.create_task(self._serve(accepted))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        self.connections += 1
        if self.refusing:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            _reset(writer)
            return
        ends = (writer, server_writer)
        self._open.add(ends)
        # ExceptionGroup: whatever ends one way ends the connection.
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(reader, server_writer))
                ways.create_task(self._pump(server_reader, writer, replies=True))
        self._open.discard(ends)
        for end in ends:
            _reset(end)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False
    ) -> None:
        due = 0.0  # when the last part arrives; those on their way do not hold up each other
        while part := await reader.read(65_536):
            if self.rate:
                await asyncio.sleep(len(part) / self.rate)
            if replies and self._drops():
                raise ConnectionResetError
            if replies and self._to_tear:
                _write(writer, part[: self._to_tear])
                self._to_tear = 0
                await asyncio.sleep(0.1)  # a reset may overtake what was sent
                raise ConnectionResetError
            if self.delay or due > self._loop.time():
                due = max(due, self._loop.time() + self.delay)
                self._loop.call_at(due, _write, writer, part)
                continue
            _write(writer, part)
            await writer.drain()
        await asyncio.sleep(max(0.0, due - self._loop.time()))
        if not writer.is_closing():
            writer.write_eof()

    def _drops(self) -> bool:
        if self._replies_to_drop:
            self._replies_to_drop = [left - 1 for left in self._replies_to_drop]
            if 0 in self._replies_to_drop:
                self._replies_to_drop.remove(0)
                return True
        return False

    async def _abort_all(self) -> None:
        for ends in self._open:
            for end in ends:
                _reset(end)

    async def _end_replies(self) -> None:
        for client, _ in self._open:
            client.write_eof()

    async def _end(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        while self._serving:
            await self._abort_all()
            await asyncio.sleep(0.001)


def _write(writer: asyncio.StreamWriter, part: bytes) -> None:
    """Write a part, unless `half_close` has ended this way of the connection meanwhile."""
    with suppress(RuntimeError):
        writer.write(part)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: at an orderly end (FIN) a client may take what it got for all."""
    with suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

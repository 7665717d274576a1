"""Handlers that must not run beside others: each has a process of its own, and one event at a time.

`@on(..., own_process=True)`, for code that is not safe on threads. A worker starts the process when
the handler first runs, and again when it died. It imports all plugins anew, so what they set up as
they are imported is not shared. A handler that hangs or crashes there fails alone.

The two processes talk over a pair of sockets in pickles, which nobody else can write to. Personal
data is on neither's disk, and the other end closes with the worker, however that ends.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

from structlog.stdlib import BoundLogger

from identity_webhooks.handlers import Discard, Retry
from identity_webhooks.verification import Verification
from service import logs, process
from service.settings import Settings
from workers import plugins
from workers.router import Handler, place


class Failed(Exception):
    """It raised something else, died or hung; `reason` is redacted, and may be written down."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.reason = why


class OwnProcess:
    """The process of one handler, as the worker sees it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket

    def run(self, verification: Verification, personal: Iterable[str]) -> None:
        """Run the handler there; raises what it raises. The caller holds `turn`.

        Raises:
            Retry, Discard: the handler's; the reason is redacted.
            Failed: anything else.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._ours.settimeout(self._handler.timeout)
            _send(self._ours, (_without_log(verification), set(personal)))
            word, text, delay = _receive(self._ours)
        except TimeoutError:
            self._end()
            raise Failed("timeout") from None
        except (OSError, EOFError):
            code = self._end()
            raise Failed(f"its process died (exit code {code})") from None
        if word == "retry":
            raise Retry(text, delay=delay)
        if word == "discard":
            raise Discard(text)
        if word == "failed":
            raise Failed(text)

    def _start(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-c", _PROGRAM, self._handler.name, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        try:
            # Importing takes its time, which is not the handler's.
            self._ours.settimeout(60)
            _receive(self._ours)
        except (OSError, EOFError):
            raise Failed(f"its process did not start (exit code {self._end()})") from None

    def _end(self) -> int:
        """End the process, if it has not ended; its exit code, negative for a signal."""
        assert self._process is not None  # noqa: S101 (for the type checker)
        self._ours.close()
        try:
            return self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


_PROGRAM = "import sys; from workers import apart; apart.serve(sys.argv[1], int(sys.argv[2]))"


def serve(name: str, descriptor: int) -> None:
    """Be the process: run the handler for each event that comes, until the worker is gone."""
    process.keep_memory_private()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # A stop is for the worker, which gives a handler time to end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings.load("worker")
    logs.configure(settings)
    (handler,) = (each for each in plugins.load(settings).handlers if each.name == name)
    with socket.socket(fileno=descriptor) as worker:
        _send(worker, "ready")
        while True:
            try:
                verification, personal = _receive(worker)
            except EOFError:
                return
            log = logs.get("handler").bind(
                handler=name,
                attempt=verification.attempt,
                event_id=verification.event.id,
                session_id=verification.event.session,
                kind=verification.event.kind,
            )
            with logs.masking(personal):
                _send(worker, _answer(handler, dataclasses.replace(verification, log=log)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(os.EX_TEMPFAIL)  # whatever the handler is at: another worker has the event


def _answer(handler: Handler, verification: Verification) -> tuple[str, str, float | None]:
    try:
        handler.function(verification)
    except Retry as retry:
        return "retry", logs.quote(retry.reason), retry.delay
    except Discard as discard:
        return "discard", logs.quote(discard.reason), None
    except BaseException as error:  # noqa: BLE001 (sys.exit is the handler's failure, not ours)
        return "failed", place(error), None
    return "done", "", None


def _without_log(verification: Verification) -> Verification:
    return dataclasses.replace(verification, log=cast(BoundLogger, None))


def _send(sock: socket.socket, message: object) -> None:
    data = pickle.dumps(message)
    sock.sendall(struct.pack("!Q", len(data)) + data)


def _receive(sock: socket.socket) -> Any:
    (length,) = struct.unpack("!Q", _exactly(sock, 8))
    return pickle.loads(_exactly(sock, length))  # noqa: S301 (from our own process)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 1 << 16))
        if not part:
            raise EOFError
        data += part
    return bytes(data)

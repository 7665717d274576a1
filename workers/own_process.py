"""Handlers that run in a process beside the worker, which runs one event at a time.

- Each `@on(..., own_process=True)` has one: for code that is not safe on threads.
- All others share one for the events whose last worker died: should a handler have been what killed
  it, that process dies, and the worker and all else that it has in hand live on.

A worker starts the process when a handler first runs there, and again when it died. It imports all
plugins anew, so what they set up as they are imported is not shared. A handler that hangs or
crashes there fails alone.

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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from structlog.stdlib import BoundLogger

from identity_webhooks.answers import told
from identity_webhooks.handlers import MARKS, Discard, Retry
from identity_webhooks.verification import Verification
from service import logs, process
from service.settings import Settings
from workers import plugins
from workers.hooks import Hooks
from workers.router import Failed, Handler, place

IDLE = 95
"""Exit code of a process that ended since nothing was asked of it. No handler ran meanwhile."""


class OwnProcess:
    """The process of these handlers, as the worker sees it.

    With `idle` it ends, and gives its memory back, when nothing was asked of it for so many
    seconds.
    """

    def __init__(self, handlers: Sequence[Handler], *, idle: float | None = None) -> None:
        self._names, self._idle = [handler.name for handler in handlers], idle
        self._turn, self._next = threading.Lock(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket

    @property
    def is_busy(self) -> bool:
        """Whether an event runs, and another one waits for its turn."""
        return self._next.locked()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait until no other event runs there. False, at once, if another event already waits.

        So a slow handler occupies at most two threads of the worker.
        """
        if not self._next.acquire(blocking=False):
            yield False
            return
        try:
            self._turn.acquire()
        finally:
            self._next.release()
        try:
            yield True
        finally:
            self._turn.release()

    def run(self, handler: Handler, verification: Verification, personal: Iterable[str]) -> None:
        """Run the handler there; raises what it raises. The caller has the turn.

        Raises:
            Retry, Discard: the handler's; the reason is redacted.
            Failed: anything else.
        """
        message = handler.name, _without_log(verification), set(personal)
        # It may have ended, being idle, just when it was asked.
        answer = self._ask(message, handler.timeout) or self._ask(message, handler.timeout)
        if answer is None:
            raise Failed(f"its process died (exit code {IDLE})")
        word, text, delay = answer
        if word == "retry":
            raise Retry(text, delay=delay)
        if word == "discard":
            raise Discard(text)
        if word == "failed":
            raise Failed(text)

    def _ask(self, message: object, timeout: float) -> Any:
        """Return what was answered; None when it had ended, being idle.

        Raises:
            Failed: it did not answer.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._ours.settimeout(timeout)
            _send(self._ours, message)
            return _receive(self._ours)
        except TimeoutError:
            self._end()
            raise Failed("timeout") from None
        except (OSError, EOFError):
            code = self._end(5)  # it ends by itself
            if code == IDLE:
                return None
            raise Failed(f"its process died (exit code {code})") from None

    def _start(self) -> None:
        if self._process:
            self._ours.close()
        self._ours, theirs = socket.socketpair()
        arguments = ",".join(self._names), str(theirs.fileno()), str(self._idle or "")
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-c", _PROGRAM, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        try:
            # Importing takes its time, which is not the handler's.
            self._ours.settimeout(60)
            _receive(self._ours)
        except (OSError, EOFError):
            raise Failed(f"its process did not start (exit code {self._end()})") from None

    def _end(self, within: float = 0.2) -> int:
        """End the process, if it does not end itself; its exit code, negative for a signal."""
        assert self._process is not None  # noqa: S101 (for the type checker)
        self._ours.close()
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


_PROGRAM = "import sys; from workers.own_process import serve; serve(*sys.argv[1:])"


def serve(names: str, descriptor: str, idle: str) -> None:
    """Entry point of the process: run handlers on request until the worker ends or it is idle."""
    process.keep_memory_private()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # A stop is for the worker, which gives a handler time to end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings.load("worker")
    logs.configure(settings)
    process.hook_exceptions()
    router = plugins.load(settings)
    handlers = {each.name: each for each in router.handlers if each.name in names.split(",")}
    MARKS.closed = True
    hooks = Hooks(router, {each.plugin for each in handlers.values()})
    hooks.start()
    with socket.socket(fileno=int(descriptor)) as worker:
        _send(worker, "ready")
        while True:
            try:
                worker.settimeout(float(idle) if idle else None)
                name, verification, personal = _receive(worker)
            except (EOFError, TimeoutError) as end:
                hooks.stop()
                sys.exit(IDLE if isinstance(end, TimeoutError) else 0)
            worker.settimeout(None)
            log = logs.get("handler").bind(
                handler=name,
                attempt=verification.attempt,
                event_id=verification.event.id,
                session_id=verification.event.session,
                kind=verification.event.kind,
            )
            with logs.masking(personal):
                own = dataclasses.replace(verification, log=log)
                process.end_with_parent(at_once=True)
                answer = _answer(handlers[name], own)
                process.end_with_parent(at_once=False)
                _send(worker, answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(os.EX_TEMPFAIL)  # whatever the handler is at: another worker has the event


def _answer(handler: Handler, verification: Verification) -> tuple[str, str, float | None]:
    try:
        handler.run(verification)
    except Retry as retry:
        text, delay = told(retry)
        return "retry", logs.quote(text), delay
    except Discard as discard:
        return "discard", logs.quote(told(discard)[0]), None
    except Failed as failed:
        return "failed", failed.reason, None
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

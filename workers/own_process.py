"""Handlers that run in a process beside the worker, which runs one event at a time.

- Each `@on(..., own_process=True)` has one: for code that is not safe on threads.
- All others share one for the events whose last worker died: if a handler killed it, only that
  process dies, and the worker goes on with its other events.

A worker starts the process when a handler first runs there, and again when it died. It imports all
plugins anew, so what they set up as they are imported is not shared. A handler that hangs or
crashes there fails alone.

The process says when it begins with a handler. One that ends before has run none, whatever its exit
code is: that may be the handler's, so it decides nothing.

The two processes exchange pickles over a pair of sockets that nobody else can write to. Personal
data is written to no disk, and the sockets are closed when the worker ends, however it ends.
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
from contextlib import contextmanager, suppress
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

STARTED_WITHIN = 60.0
"""Seconds until the process has imported all plugins, or begins with a handler. That is not the
handler's time."""

STOPPED_WITHIN = 5.0
"""Seconds that the functions marked `on_stop` have once the worker is gone."""

_STOPS = {signal.SIGTERM, signal.SIGINT}


class NotRun(Exception):
    """The handler did not run: its process did not start, or ended before it began."""


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
            NotRun: it did not run.
            Failed: anything else.
        """
        message = handler.name, _without_log(verification), set(personal)
        # It may have ended just when it was asked: it was idle, or something killed it.
        answer = self._ask(message, handler.timeout) or self._ask(message, handler.timeout)
        if answer is None:
            raise NotRun("its process ended before the handler began")
        word, text, delay = answer
        if word == "retry":
            raise Retry(text, delay=delay)
        if word == "discard":
            raise Discard(text)
        if word == "failed":
            raise Failed(text)

    def _ask(self, message: object, timeout: float) -> Any:
        """Return what was answered; None when the process ended before the handler began.

        Raises:
            NotRun: it did not start.
            Failed: it did not answer.
        """
        if self._process is None or self._process.returncode is not None:
            self._start()
        try:
            self._ours.settimeout(STARTED_WITHIN)
            _send(self._ours, message)
            _receive(self._ours)
        except (OSError, EOFError):
            self._end(5)  # one that is idle ends by itself
            return None
        try:
            self._ours.settimeout(timeout)
            return _receive(self._ours)
        except TimeoutError:
            self._end()
            raise Failed("timeout") from None
        except (OSError, EOFError):
            raise Failed(f"its process died (exit code {self._end(5)})") from None

    def _start(self) -> None:
        if self._process:
            self._ours.close()
            self._process = None
        try:
            self._process = self._spawn()
            watched = self._process, self._ours
            threading.Thread(target=_reap, args=watched, daemon=True).start()
            self._ours.settimeout(STARTED_WITHIN)
            _receive(self._ours)
        except (OSError, EOFError, RuntimeError) as error:
            # Without a process the machine has none left, or no descriptor.
            code = f"exit code {self._end()}" if self._process else type(error).__name__
            raise NotRun(f"its process did not start ({code})") from None

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._ours, theirs = socket.socketpair()
        arguments = ",".join(self._names), theirs.fileno(), self._idle or "", os.getpid()
        # A stop may reach every process: it is held until this one ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            return subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            self._ours.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _end(self, within: float = 0.2) -> int:
        """End the process, if it does not end itself; its exit code, negative for a signal."""
        assert self._process is not None  # noqa: S101 (for the type checker)
        self._ours.close()
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _reap(process: subprocess.Popen[bytes], ours: socket.socket) -> None:
    """Wait for the end of the process, whenever that is: so it does not stay as a zombie.

    Then shut the socket down: a process that it started may still hold the other end.
    """
    logs.is_ours()
    process.wait()
    with suppress(OSError):  # closed
        ours.shutdown(socket.SHUT_RD)


_PROGRAM = "import sys; from workers.own_process import serve; serve(*sys.argv[1:])"


def serve(names: str, descriptor: str, idle: str, parent: str) -> None:
    """Entry point of the process: run handlers on request until the worker ends or it is idle."""
    process.keep_memory_private()
    # A stop is for the worker, which gives a handler time to end.
    for each in _STOPS:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    is_free = threading.Event()  # nothing runs that the end of the worker is to end
    threading.Thread(target=_end_with, args=(int(parent), is_free), daemon=True).start()
    settings = Settings.load("worker")
    logs.configure(settings)
    process.hook_exceptions()
    router = plugins.load(settings)
    handlers = {each.name: each for each in router.handlers if each.name in names.split(",")}
    MARKS.closed = True
    hooks = Hooks(router, {each.plugin for each in handlers.values()})
    hooks.start()
    # Until it is idle, or the worker is gone.
    with suppress(EOFError, OSError), socket.socket(fileno=int(descriptor)) as worker:
        is_free.set()
        _send(worker, "ready")  # whoever started it asks next, so it is not idle yet
        while True:
            name, verification, personal = _receive(worker)
            worker.settimeout(None)
            is_free.clear()
            handler = handlers[name]
            own = dataclasses.replace(
                verification, log=handler.log(verification.event, verification.attempt)
            )
            with logs.masking(personal):
                process.end_with_parent(at_once=True)
                _send(worker, "begun")
                answer = _answer(handler, own)
                process.end_with_parent(at_once=False)
                is_free.set()
                _send(worker, answer)
            worker.settimeout(float(idle) if idle else None)
    hooks.stop()


def _end_with(parent: int, is_free: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    if is_free.is_set():
        time.sleep(STOPPED_WITHIN)
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

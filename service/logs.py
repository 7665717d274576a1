"""One log for web, worker, gunicorn, RQ and stripe: one line per event.

JSON lines, or columns on a terminal. Three rules keep personal data and secrets out:

* **Keys are an allow-list** (`KEYS`): a value under any other key is dropped, and the line says
  which keys were (`dropped`). Values are cut at 200 characters.
* **Exceptions are types and places**: never their text, which may quote anything.
* **Texts are masked**: API keys, signing secrets, passwords in URLs and e-mail addresses always;
  and while an event is processed, every personal value that was fetched for it (`masking`), even
  where a handler formats one into its message.

Plugins may replace the logging configuration (Django's LOGGING, `basicConfig(force=True)`,
`structlog.configure`); `restore` puts ours back. What `print` writes passes none of this.

Event names are static snake_case words; identifiers are bound, not formatted into them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from io import UnsupportedOperation
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast
from weakref import WeakSet

import msgspec
import redis
import structlog
from gunicorn.glogging import Logger as _GunicornBase
from structlog.stdlib import BoundLogger

from service.redis_errors import explain
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

KEYS = frozenset(
    [
        # what it concerns
        *("event_id", "event_key", "kind", "form", "session_id", "account", "livemode"),
        *("handler", "handlers", "plugin", "origin", "attempt", "idempotency_key", "secret"),
        *("request_id", "request_ids"),
        *("subject", "key_name", "call", "accounts", "in_hand", "running"),
        # what happened
        *("outcome", "reason", "code", "status", "error", "where", "fault", "faults", "hint"),
        *(
            "by",
            "action",
            "state",
            "count",
            "counts",
            "woken",
            "postponed",
            "stale",
            "stuck",
            "pending",
            "dead",
        ),
        # how long and how much
        *("delay_s", "age_s", "took_ms", "stages_ms", "size", "limit"),
        # which process
        *(
            "pid",
            "worker",
            "signal",
            "exit_code",
            "address",
            "redis",
            "version",
            "role",
            "path",
            "method",
        ),
        # made by the pipeline itself
        *("event", "level", "timestamp", "logger", "dropped"),
    ]
)

# Keys, and whatever stands before the last @ of a URL's host. Neither part can match in more
# than one way, so no text takes long.
_SECRETS = re.compile(r"(whsec_|[rs]k_(?:live|test|org)_)[A-Za-z0-9+/=_-]+|(?<=://)[^/\s]+(?=@)")
# From the begin of a word on, so that no text takes long.
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+@[\w-]+\.[\w.-]+")
_RUNS = re.compile(r"[A-Za-z0-9]+")
_MAX_TEXT = 200
# What structlog's formatter keeps in the event, and removes.
_META = frozenset({"_record", "_from_structlog", "_error"})
_KNOWN = KEYS | _META
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "exception": 40, "critical": 50}
# At INFO RQ prints job descriptions and at ERROR the exception; urllib3 prints URLs.
_QUIET = ("rq", "stripe", "urllib3", "redis", "werkzeug")

_personal: ContextVar[frozenset[str]] = ContextVar("personal", default=frozenset())
_mask_personal: ContextVar[Callable[[str], str] | None] = ContextVar("mask_personal", default=None)
_masks: set[Callable[[str], str]] = set()  # of all threads
# Of blocks that have ended, each with the threads that were started meanwhile.
_outlived: list[tuple[Callable[[str], str], list[threading.Thread]]] = []
_outlived_lock = threading.Lock()
_ours: WeakSet[threading.Thread] = WeakSet()

RESTORE_PERIOD = 1.0
"""Seconds after which `masking` looks again whether the configuration still holds."""


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send every log of this process through the one pipeline, by default to standard output.

    Our own lines are written as soon as they are made; those of the standard library's loggers
    come by its handlers, which costs about twice as much (measured).
    """
    stream = stream or sys.stdout
    level = _LEVELS[settings.log_level]
    console = settings.log_format == "console" or (
        settings.log_format == "auto" and stream.isatty()
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer()
        if console
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    _Lines.stream, _Lines.level = stream, level
    _pipeline[:] = [_only_heard, *_SHARED, renderer]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_without_arguments)
    _Lines.handler = handler
    restore()


def restore() -> list[str]:
    """Restore the configuration; return what had been changed. Does nothing before `configure`."""
    if _Lines.handler is None:
        return []
    root, changed = logging.getLogger(), []
    if root.handlers != [_Lines.handler] or root.level != _Lines.level:
        changed.append("the root logger")
        root.handlers[:] = [_Lines.handler]
        root.setLevel(_Lines.level)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger):
            continue
        if logger.disabled or any(not isinstance(h, logging.NullHandler) for h in logger.handlers):
            changed.append(f"the logger {name}")
            logger.handlers[:], logger.propagate, logger.disabled = [], True, False
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    if structlog.get_config()["processors"] is not _pipeline:
        changed.append("structlog")
    structlog.configure(
        processors=_pipeline,
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
    return changed


def get(name: str | None = None) -> BoundLogger:
    """Return a logger on our pipeline, whatever structlog is configured for."""
    logger: BoundLogger = structlog.wrap_logger(
        _Lines(name),
        processors=_pipeline,
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger


def listen(listener: Callable[[dict[str, Any], BaseException | None], None]) -> None:
    """Call `listener` with each line that is an error, or a warning with an exception.

    The exception comes as it is, and not masked. A line names it by `exc_info`, or by `_error`
    where its type and places are not to stand in the line.
    """
    _Lines.listener = staticmethod(listener)


class _Lines:
    """Where our own lines go. Looks to structlog like a logger of the standard library."""

    # Attributes of the class, since loggers are made once and kept when `configure` runs again.
    stream: TextIO = sys.stdout
    level = 0
    handler: logging.Handler | None = None  # for the standard library's loggers
    listener: Callable[[dict[str, Any], BaseException | None], None] | None = None
    restored = 0.0

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def _write(self, line: str) -> None:
        """Write a line, whole, in one call of the system.

        No lock is held, here or in the stream: threads that wait for a lock and then for the
        interpreter would all finish as late as the last one (measured).
        """
        data = f"{line}\n".encode(errors="replace")
        with suppress(OSError, ValueError):  # closed: nobody reads any more
            try:
                descriptor = self.stream.fileno()
            except UnsupportedOperation:  # in memory
                self.stream.write(data.decode())
                return
            while data:
                data = data[os.write(descriptor, data) :]

    debug = info = warning = error = critical = exception = _write


@contextmanager
def masking(values: Iterable[str]) -> Iterator[None]:
    """Mask these personal values in everything this thread logs or hands to `redact`.

    Threads without a block of their own, such as a handler may start, mask the values of all: those
    of a block also after it has ended, for as long as a thread lives that was started meanwhile.
    Blocks may be nested: the outer one's values stay masked in the inner one.
    """
    _restore_at_times()
    before = set(threading.enumerate())
    words = _personal.get() | frozenset(values)
    mask = _Mask(words)
    words_token = _personal.set(words)
    token = _mask_personal.set(mask)
    _masks.add(mask)
    try:
        yield
    finally:
        if started := [each for each in threading.enumerate() if each not in before]:
            with _outlived_lock:
                _outlived.append((mask, started))
        _masks.discard(mask)
        _mask_personal.reset(token)
        _personal.reset(words_token)


def is_ours() -> None:
    """Mark this thread as one of the service, which no handler has started."""
    _ours.add(threading.current_thread())


def _masks_of_others() -> list[Callable[[str], str]]:
    """Return what a thread without a block masks."""
    if not _outlived:
        return list(_masks)
    with _outlived_lock:
        _outlived[:] = [
            (mask, alive)
            for mask, started in _outlived
            if (alive := [each for each in started if each.is_alive() and each not in _ours])
        ]
        return [*_masks, *(mask for mask, _ in _outlived)]


def _restore_at_times() -> None:
    """Detect a configuration changed by a handler, for example by `django.setup()`."""
    now = time.monotonic()
    if now - _Lines.restored < RESTORE_PERIOD:
        return
    _Lines.restored = now
    if changed := restore():
        get(__name__).warning("logging_restored", faults=changed)


class _Mask:
    """Masks values in texts. Most texts contain none, which a cheap check finds."""

    def __init__(self, words: frozenset[str]) -> None:
        self._words = words
        # However a value is escaped, its longest run of letters and digits stays as it is.
        runs = [_RUNS.findall(word) for word in words if word.strip()]
        self._pieces = {max(run, key=len).lower() if run else "" for run in runs}

    def __call__(self, text: str) -> str:
        # Outside ASCII are letters that count as an "s" or a "k" of another case.
        if text.isascii():
            lower = text.lower()
            if not any(piece in lower for piece in self._pieces):
                return text
        return self._pattern.sub("[personal]", text) if self._pattern else text

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # Longest first, so that "Ann Lee" goes before "Ann".
        forms = {form for word in self._words for form in _forms(word)}
        longest_first = sorted(forms, key=len, reverse=True)
        return re.compile("|".join(longest_first), re.IGNORECASE) if forms else None


def quote(value: object) -> str:
    """Return the redacted text of anything (another's exception), whatever its `str` does."""
    try:
        text = str(value)
    except BaseException:  # noqa: BLE001 (it is another's code)
        return f"<{type(value).__name__}>"
    return redact(text)


def _forms(value: str) -> Iterator[str]:
    """Yield patterns of a value: as it is, in JSON, in a `repr`."""
    value = value.strip()
    for text in {value, json.dumps(value)[1:-1], repr(value)[1:-1]}:
        pattern = r"\s+".join(map(re.escape, text.split()))
        if len(text) > 2:
            yield pattern
        elif any(map(str.isalpha, text)):
            # "Li" is a name and no part of "outline"; "12" says nothing of anyone.
            yield rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9_])"


def redact(text: str) -> str:
    """Return `text` on one line, at most 200 characters, without secrets, e-mail addresses or
    personal values.

    What cannot be encoded (a lone surrogate) becomes a question mark.
    """
    if "k_" in text or "whsec_" in text or "://" in text:
        text = _SECRETS.sub(lambda match: f"{match[1] or ''}***", text)
    if "@" in text:
        text = _EMAIL.sub("[e-mail]", text)
    own = _mask_personal.get()
    for mask in [own] if own else _masks_of_others():
        text = mask(text)
    if len(text) <= _MAX_TEXT and text.isascii() and text.isprintable():
        return text
    return " ".join(text.split())[:_MAX_TEXT].encode(errors="replace").decode()


def places(traceback: TracebackType | None, last: int = 3) -> str:
    """Return where an exception came from, innermost last: `crm.py:42 save < jobs.py:7 run`."""
    frames = [
        f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{line} {frame.f_code.co_name}"
        for frame, line in walk_tb(traceback)
    ]
    return " > ".join(frames[-last:])


class GunicornLogger(_GunicornBase):
    """Gunicorn's own messages in our pipeline. No access log: the app logs what it did."""

    def setup(self, cfg: Any) -> None:
        """Leave the handlers to `configure`, and pass everything up to the root logger."""
        try:
            configure(Settings.load("web"))
        except SettingsError as error:
            # Before any worker is started: gunicorn would restart those for ever.
            sys.stderr.write(f"refusing to start: {error}\n")
            raise SystemExit(3) from None
        for logger in (self.error_log, self.access_log):
            logger.propagate = True
            logger.handlers[:] = []
            logger.setLevel(logging.INFO)


def _without_arguments(record: logging.LogRecord) -> bool:
    """Reduce a message of another library to its fixed text and to arguments that are known to be
    safe: all of gunicorn's, names and numbers of RQ's, and otherwise types.
    """
    sender = record.name.split(".")[0]
    if not isinstance(record.msg, str):
        # `logger.error(exception)`: its text may quote anything.
        record.msg, record.args = f"<{type(record.msg).__name__}>", None
    elif sender != "gunicorn" or record.exc_info:
        # Gunicorn formats signals, pids, addresses and worker names into its messages, unless it
        # reports an exception: then the request's URL.
        record.msg, record.args = _filled(record.msg, record.args, names=sender == "rq"), None
    elif record.msg.startswith("Invalid request from"):
        # Then what a stranger sent: gunicorn quotes the line or header it could not read.
        record.msg = re.sub(r"""(['"]).*\1""", "'...'", record.msg, flags=re.DOTALL)
    return True


_CONVERSION = re.compile(r"%(%|(?P<name>\(\w+\))?[^a-zA-Z%()]*[a-zA-Z])")
_NAME = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def _filled(text: str, arguments: object, *, names: bool) -> str:
    """Fill a message with what may be logged of its arguments; numbers and words only with `names`.

    One that cannot be filled stays as it is.
    """
    if not arguments:
        return text

    def said(value: object) -> str:
        if isinstance(value, redis.RedisError):
            return str(explain(value))
        if isinstance(value, BaseException):
            return type(value).__name__
        if names and type(value) in {int, float}:
            return f"{value:g}" if type(value) is float else f"{value}"
        if names and type(value) is str and _NAME.fullmatch(value):
            return value
        return f"<{type(value).__name__}>"

    # As text, whatever it was to be formatted as.
    plain = _CONVERSION.sub(lambda c: "%%" if c[1] == "%" else f"%{c['name'] or ''}s", text)
    try:
        if isinstance(arguments, dict):
            return plain % {name: said(value) for name, value in arguments.items()}
        return plain % tuple(map(said, cast("tuple[object, ...]", arguments)))
    except (TypeError, ValueError, KeyError):  # more or fewer than the text has places for
        return text


def _only_heard(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if _LEVELS[method] < logger.level:
        raise structlog.DropEvent
    return event


def _exceptions_as_places(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    info: ExcInfo | bool | BaseException | None = event.pop("exc_info", None)
    event.pop("stack_info", None)
    error = sys.exception() if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["_error"] = error
        event.setdefault("error", type(error).__name__)
        event.setdefault("where", places(error.__traceback__))
        if isinstance(error, redis.RedisError):
            for key, value in explain(error).fields().items():
                event.setdefault(key, value)
    return event


def _only_allowed_keys(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    odd = [key for key, value in event.items() if value is None or key not in _KNOWN]
    dropped = sorted(key for key in odd if event.pop(key) is not None)
    if dropped:
        event["dropped"] = [redact(key) for key in dropped]
    return event


def _mask_texts(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(str.__str__(value))
        elif key not in _META and not isinstance(value, int | float | bool | None):
            event[key] = [redact(str(item)) for item in value] if _plain(value) else _shape(value)
    return event


def _tell_listener(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.pop("_error", None)
    error = error if isinstance(error, BaseException) else None
    worst = _LEVELS[event["level"]] >= (_LEVELS["warning"] if error else _LEVELS["error"])
    if worst and _Lines.listener is not None:
        with suppress(Exception):  # whatever becomes of the report, the line is written
            _Lines.listener({k: v for k, v in event.items() if k not in _META}, error)
    return event


def _to_json(event: EventDict, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=_plain_number).decode()


def _plain_number(value: Any) -> float:
    return int(value) if isinstance(value, int) else float(value)


def _plain(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str | int) for item in value)


def _shape(value: object) -> object:
    """Keep a dict of numbers (counts); of anything else only the type's name."""
    if isinstance(value, dict) and all(isinstance(item, int | float) for item in value.values()):
        return {redact(str(key)): item for key, item in value.items()}
    return f"<{type(value).__name__}>"


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _exceptions_as_places,
    _only_allowed_keys,
    _mask_texts,
    _tell_listener,
]
# What our loggers run through: one list, which `configure` fills anew.
_pipeline: list[Processor] = [
    *_SHARED,
    structlog.processors.JSONRenderer(serializer=_to_json),
]

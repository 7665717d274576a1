"""What fails, reported to Sentry without personal data.

Imported only where the extra `sentry` is installed and SENTRY_DSN is set (service/extras.py).

Lines of the log go there that are errors or tell of an exception, as the log has them: with keys of
its allow-list, and masked (service/logs.py). Of an exception goes its type and the places it came
through; neither its text nor any variable, source line, request, breadcrumb or user. What a handler
sends by `sentry_sdk` itself passes the same gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, cast

import sentry_sdk
from sentry_sdk.transport import Transport

from service import logs
from service.settings import Settings
from service.version import version

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

END_SECONDS = 2.0
"""Seconds for sending the last report."""

_TAGS = ("handler", "kind", "status", "code")
"""Keys of a line by which its reports can be searched."""

_NO_DETAILS = frozenset({*_TAGS, "event", "level", "timestamp", "logger", "subject"})
"""Keys of a line that are no details of its report. A subject may be the id of a person."""

_LINE = "identity_webhooks_line"
"""Where the hint has the line of which a report is made."""

_MAY_LEAVE = (
    *("event_id", "timestamp", "level", "logger", "platform", "release", "environment"),
    *("server_name", "sdk"),
)
_OF_A_FRAME = ("filename", "module", "function", "lineno", "in_app")


def start(settings: Settings, transport: type[Transport] | None = None) -> None:
    """Begin to report, from a thread."""
    assert settings.sentry_dsn  # noqa: S101 (service/extras.py)
    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        release=f"identity-webhooks@{version()}",
        transport=transport,
        # Each of them takes something in that nobody has masked.
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        before_breadcrumb=lambda _, __: None,
        before_send=_gate,
        before_send_transaction=lambda _, __: None,
        enable_logs=False,
        enable_metrics=False,
    )
    logs.listen(_report)


def _report(line: Mapping[str, Any], error: BaseException | None) -> None:
    if str(line.get("logger")).startswith("sentry_sdk"):
        return  # a failure to report is not reported
    event: dict[str, Any] = {"level": line["level"], "logger": line.get("logger")}
    if error is not None:
        frames = list(_frames(error))
        kind = {"type": type(error).__name__, "module": type(error).__module__}
        event["exception"] = {"values": [kind | {"stacktrace": {"frames": frames}}]}
    sentry_sdk.capture_event(cast("Event", event), {_LINE: line})
    if line["level"] == "critical":  # the process ends
        sentry_sdk.flush(timeout=END_SECONDS)


def _frames(error: BaseException) -> Iterator[dict[str, Any]]:
    for frame, line in walk_tb(error.__traceback__):
        code, module = frame.f_code, frame.f_globals.get("__name__")
        filename = code.co_filename.rsplit("/", 1)[-1]
        place = {"filename": filename, "function": code.co_name, "lineno": line}
        yield place | ({"module": module} if isinstance(module, str) else {})


def _gate(event: Event, hint: Hint) -> Event:
    """Return what may leave of a report, whoever made it."""
    found = cast("dict[str, Any]", event)
    kept = {name: found[name] for name in _MAY_LEAVE if name in found}
    line = hint.get(_LINE)
    if line is not None:
        kept["message"] = line["event"]
        kept["tags"] = {name: str(line[name]) for name in _TAGS if name in line}
        kept["extra"] = {name: line[name] for name in line.keys() - _NO_DETAILS}
    else:
        text = found.get("message") or (found.get("logentry") or {}).get("message")
        kept["message"] = logs.quote(text or "reported by a handler")
    errors = (found.get("exception") or {}).get("values") or []
    if errors:
        kept["exception"] = {"values": [_without_text(each) for each in errors]}
    return cast("Event", kept)


def _without_text(error: Mapping[str, Any]) -> dict[str, Any]:
    frames = (error.get("stacktrace") or {}).get("frames") or []
    return {
        "type": error.get("type"),
        "module": error.get("module"),
        "stacktrace": {
            "frames": [
                {name: frame[name] for name in _OF_A_FRAME if name in frame} for frame in frames
            ]
        },
    }

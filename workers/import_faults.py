"""What may be shown of an exception that a plugin raises as it is imported or built.

Its text is shown to the operator, who can do something about it, with file and line and without
values of settings: those may be secrets.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from service import logs

_SECRET_NAME = re.compile(
    r"key|secret|token|passw|pwd|dsn|credential|_url$|_uri$|auth", re.IGNORECASE
)

_EXTRA = "extra_forbidden"  # of a field that there is not


def at(file: str, line: int) -> str:
    """Return a place as editors and terminals read it; below the working directory shortened."""
    path = Path(file)
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"


def of(error: BaseException, advice: str = "") -> str:
    """Return type and text of an exception, what to do about it, and its place."""
    place = _place(error)
    text = logs.quote(_without_secrets(_text(error)))
    return f"{type(error).__name__}: {text}{advice}{f' ({place})' if place else ''}"


def is_of_plugin(error: BaseException) -> bool:
    """Whether code of the plugin raised it, and not the search for the plugin."""
    return bool(_place(error))


def of_settings(error: ValidationError, kind: type | None = None) -> list[str]:
    """Return a line for each setting that is missing or wrong, by the variable that sets it.

    Args:
        error: what pydantic says.
        kind: the settings class; looked for by its name when it is not given.
    """
    if kind is None:
        # Names may be had by several: of those with these fields the newest.
        named = [each for each in _settings_classes() if _could_say(each, error)]
        kind = named[-1] if named else None
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        text = fault["msg"]
        for value in sorted(_texts(fault["input"]), key=len, reverse=True):
            text = text.replace(value, "***")
        text = logs.quote(_without_secrets(text))
        if fault["loc"]:
            what = f"setting {_variable(kind, fault['loc'])}: {text}"
        else:  # a validator of the whole model
            what = f"settings {error.title}: {text}"
        if fault["type"] == "missing":
            what += ": set it in the environment of the worker"
        # Where the plugin builds it, or else where the class is that we build.
        place = _place(error) or _place_of(kind)
        lines.append(f"{what}{f' ({place})' if place else ''}")
    return lines


def _place_of(kind: type | None) -> str:
    try:
        return at(inspect.getfile(kind), inspect.getsourcelines(kind)[1]) if kind else ""
    except (OSError, TypeError):  # no source
        return ""


def _variable(kind: type | None, where: tuple[int | str, ...]) -> str:
    """Return the name of the environment variable of a field."""
    config: Any = getattr(kind, "model_config", {})
    fields: dict[str, FieldInfo] = getattr(kind, "model_fields", {})
    first, *rest = map(str, where)
    field = fields.get(first)
    # A field with an alias is reported, and set, under that; the prefix is not put before it.
    prefix = config.get("env_prefix", "") if field and field.validation_alias is None else ""
    nested = config.get("env_nested_delimiter")
    name = prefix + (nested.join([first, *rest]) if nested else first)
    return str(name) if config.get("case_sensitive") else str(name).upper()


def _could_say(kind: Any, error: ValidationError) -> bool:
    """Whether this class has the title and the fields of which pydantic speaks."""
    title = kind.model_config.get("title") or kind.__name__
    known = set(kind.model_fields)
    for field in kind.model_fields.values():
        alias = field.validation_alias
        known |= {str(each) for each in getattr(alias, "choices", [alias]) if each is not None}
    found = error.errors(include_url=False)
    wanted = {str(each["loc"][0]) for each in found if each["loc"] and each["type"] != _EXTRA}
    return title == error.title and wanted <= known


def _settings_classes(base: Any = BaseSettings) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _settings_classes(each)


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a value that is long enough to be a secret."""
    if isinstance(value, BaseSettings):
        yield from _texts(vars(value))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _texts(item)
    elif hasattr(value, "get_secret_value"):
        yield from _texts(value.get_secret_value())
    elif len(text := str(value)) >= 4 and not isinstance(value, bool | None):
        yield text


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 (it is another's code)
        return f"<{type(error).__name__}>"


def _without_secrets(text: str) -> str:
    """Take out what the environment holds under a name that secrets have."""
    values = {v for name, v in os.environ.items() if len(v) >= 4 and _SECRET_NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _place(error: BaseException) -> str:
    """Return where the plugin's own code raised it: without the frames of Python's import."""
    if isinstance(error, SyntaxError):
        return at(error.filename, error.lineno or 0) if error.filename else ""
    frames = [at(file, line) for file, line in _frames(error.__traceback__)]
    # The plugin's line, and the line it led to.
    return " > ".join(dict.fromkeys([*frames[:1], *frames[-1:]]))


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    for frame, line in walk_tb(traceback):
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("importlib", "workers.plugins", "workers.collecting", "pydantic")):
            yield frame.f_code.co_filename, line

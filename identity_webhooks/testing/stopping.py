"""Stop a handler in the middle, as the end of its process does."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

_PYTHONS = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
_INSTALLED = ("/site-packages/", "/dist-packages/")


class Stopped(BaseException):
    """Stands for the end of the process."""


@dataclass(slots=True)
class Steps:
    """The lines that a handler is about to run, in its own code: file and number, oldest first.

    Its own code is that of its top-level package, and all that is neither Python's nor installed.
    Lines of a `with` or `for` count once, where they begin: a process that ends there leaves
    no lock behind, and one that is stopped by an exception would.
    """

    handler: Callable[..., object]
    stop_at: int | None = None
    passed: list[tuple[str, int]] = field(default_factory=list)
    _begins: dict[CodeType, dict[int, int]] = field(default_factory=dict)

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        """Be what `sys.settrace` calls."""
        code = frame.f_code
        if code not in self._begins:
            self._begins[code] = _begins(code) if self._is_own(frame) else {}
        begins = self._begins[code]
        if not begins:
            return None
        if event == "line" and frame.f_lasti <= begins.get(frame.f_lineno, -1):
            self.passed.append((code.co_filename, frame.f_lineno))
            if len(self.passed) == self.stop_at:
                raise Stopped
        return self.trace

    def _is_own(self, frame: FrameType) -> bool:
        package, file = _top(frame.f_globals.get("__name__")), frame.f_code.co_filename
        if package == "identity_webhooks" or file.startswith("<"):
            return False
        is_others = file.startswith(_PYTHONS) or any(part in file for part in _INSTALLED)
        return not is_others or package == _top(getattr(self.handler, "__module__", None))


@contextmanager
def stepping(handler: Callable[..., object], stop_at: int | None = None) -> Iterator[Steps]:
    """Note the lines that a handler runs, and raise `Stopped` before the one of this number.

    Threads that it starts are not looked at.
    """
    steps, before = Steps(handler, stop_at), sys.gettrace()
    sys.settrace(steps.trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


def _begins(code: CodeType) -> dict[int, int]:
    """Return where in the code each line begins."""
    begins: dict[int, int] = {}
    for start, _, line in code.co_lines():
        if line is not None:
            begins.setdefault(line, start)
    return begins


def _top(module: object) -> str:
    return str(module or "").partition(".")[0]

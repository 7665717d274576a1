"""What tests read of the log, and what of its configuration must be undone for later tests."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from service import logs
from service.settings import Settings

Said = Callable[[], list[dict[str, Any]]]


@contextmanager
def configuration_undone() -> Iterator[None]:
    """Undo at the end what `logs.configure`, or a plugin, changes in this process meanwhile."""
    root, lines = logging.getLogger(), logs._Lines
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("gunicorn.error", *logs._QUIET)}
    ours = (lines.stream, lines.level, lines.handler, logs._pipeline[:])
    try:
        yield
    finally:
        # The handler, too: with it, `masking` would restore the configuration.
        lines.stream, lines.level, lines.handler, logs._pipeline[:] = ours
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    """Undo what a test did to logging: `logs.configure`, commands that call it, or a plugin."""
    with configuration_undone():
        yield


@contextmanager
def logging_to(log_path: Path) -> Iterator[None]:
    """Send the log of this process to a file for a while."""
    with log_path.open("w") as stream, configuration_undone():
        logs.configure(Settings(log_format="json", log_level="debug"), stream)
        yield


def lines_of(log_path: Path, name: str | None = None) -> list[dict[str, Any]]:
    """Return the lines of a log, all or those with this event name."""
    lines = map(json.loads, log_path.read_text().splitlines())
    return [line for line in lines if name in {None, line["event"]}]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """Return what this process has logged in the test so far, without times and loggers."""
    monkeypatch.setattr(logs, "RESTORE_PERIOD", math.inf)  # pytest's handlers are let be
    log_path = tmp_path / "said.log"

    def said() -> list[dict[str, Any]]:
        left_out = {"timestamp", "logger"}
        return [
            {name: value for name, value in line.items() if name not in left_out}
            for line in lines_of(log_path)
        ]

    with logging_to(log_path):
        yield said

"""What a test that configures logging must undo, or later tests log through its configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from service import logs


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

"""The rule of this suite: no test opens a socket."""

from __future__ import annotations

import socket

import pytest

from tests.logs import logging_undone, said  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = socket.socket.__init__

    def refuse(*args: object, **kwargs: object) -> None:
        if kwargs.get("fileno") is not None:  # a look at one that is open already
            allowed(*args, **kwargs)
            return
        # Not an Exception: `except Exception` in the code under test does not swallow it.
        pytest.fail("a unit test opened a socket: it belongs into tests/integration")

    monkeypatch.setattr(socket.socket, "__init__", refuse)

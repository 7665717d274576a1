"""What is said of an error: its cause in words, and nothing of its text."""

from __future__ import annotations

import errno
import re
import socket

import pytest
import redis

from service.redis_errors import CAUSES, Cause, explain
from tests.conftest import CANARY


@pytest.mark.parametrize("code", CAUSES)
def test_every_row_is_a_sentence_of_its_own(code: str) -> None:
    hint = CAUSES[code].hint
    assert re.fullmatch(r"[A-Z0-9_]+", code)
    assert not hint.endswith((".", " "))
    assert len(hint) < 200


REFUSALS = [
    (f"OOM command not allowed {CANARY}", "OOM"),
    (f"-MISCONF Redis is configured to save {CANARY}", "MISCONF"),
    (f"SOMEWORD {CANARY}", "SOMEWORD"),
    (f"ERR something about {CANARY}", None),
    (f"something about {CANARY}", None),
    (f"unknown command '{CANARY}', with args", "UNKNOWN_COMMAND"),
    (f"Error running script (call to f_{CANARY}): @user_script: 1: -OOM command", "OOM"),
    (f"ACL failure in script: User {CANARY} has no permissions to run 'get'", "NOPERM"),
]


@pytest.mark.parametrize(("text", "code"), REFUSALS)
def test_of_a_refusal_its_word_is_kept_and_nothing_else(text: str, code: str | None) -> None:
    cause = explain(redis.ResponseError(text))
    assert cause.code == code
    assert CANARY not in str(cause)
    assert CANARY not in str(cause.fields())


def connecting(error: Exception) -> redis.ConnectionError:
    """An error as redis-py makes it of one of the socket's."""
    wrapped = redis.ConnectionError(f"Error connecting to {CANARY}:6379.")
    wrapped.__context__ = error
    return wrapped


@pytest.mark.parametrize("number", errno.errorcode)
def test_every_errno_has_its_name(number: int) -> None:
    cause = explain(connecting(OSError(number, CANARY)))
    # TimeoutError is a class of its own, whoever raised it.
    assert cause.code == {errno.ETIMEDOUT: "TIMEOUT"}.get(number, errno.errorcode[number])
    assert CANARY not in str(cause)


def test_every_way_of_dns_to_fail_has_its_name() -> None:
    for name in ("EAI_NONAME", "EAI_AGAIN", "EAI_FAIL"):
        cause = explain(connecting(socket.gaierror(getattr(socket, name), CANARY)))
        assert (cause.code, cause.hint) == (name, CAUSES["EAI"].hint)


def test_an_error_of_no_kind_we_know() -> None:
    expected = Cause("RedisError", None, explain(redis.ConnectionError("x")).hint, lasting=False)
    assert explain(redis.RedisError(CANARY)) == expected
    assert str(expected).endswith("(RedisError)")

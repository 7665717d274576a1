"""What is said of an error: its cause in words, and nothing of its text."""

from __future__ import annotations

import errno
import re
import socket
import ssl

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
    (f"ERR unknown subcommand '{CANARY}'. Try ACL HELP.", "UNKNOWN_COMMAND"),
    (f"ERR unknown redis command called from script {CANARY}", "UNKNOWN_COMMAND"),
    (f"ERR Error compiling script (new function): {CANARY}", "NO_FLAGS"),
    ("ERR max number of clients reached", "MAXCLIENTS"),
    ("max number of clients + cluster connections reached", "MAXCLIENTS"),
    ("ERR maximum number of clients exceeded", "MAXCLIENTS"),
    ("ERR DB index is out of range", "DATABASE"),
    ("ERR invalid DB index", "DATABASE"),
    ("ERR Script attempted to access a non local key in a cluster node", "CROSSSLOT"),
    ("ERR SELECT is not allowed in cluster mode", "CROSSSLOT"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "CROSSSLOT"),
    (f"ERR The user executing the script can't run this command {CANARY}", "NOPERM"),
    (f"NOPERM User {CANARY} has no permissions to run the 'get' command", "NOPERM"),
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


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((number, "CERTIFICATE_EXPIRED") for number in (9, 10)),
        *((number, "CERTIFICATE_HOST") for number in (62, 63, 64)),
        *((number, "CERTIFICATE_UNTRUSTED") for number in (18, 19, 20, 21)),
    ],
)
def test_a_certificate_is_refused_for_one_of_three_causes(number: int, code: str) -> None:
    error = ssl.SSLCertVerificationError(1, CANARY)
    error.verify_code = number
    assert explain(connecting(error)).code == code


LASTING = {
    *("TRYAGAIN", "CROSSSLOT", "MOVED", "ASK", "CLUSTERDOWN"),
    *("NOPERM", "UNKNOWN_COMMAND", "NO_FLAGS"),
}


@pytest.mark.parametrize("code", [code for code in CAUSES if code != "EAI"])
def test_a_start_is_stopped_by_what_stays_and_waits_for_what_passes(code: str) -> None:
    """A Redis that is loading, full or away is waited for; one that never will do is refused."""
    assert explain(redis.ResponseError("x", status_code=code)).lasting == (code in LASTING)

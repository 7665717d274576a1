"""What an error of Redis or of the network to it means, and what to do: one table, one function.

Its text may quote an address, a user or a value, and is never shown. What is shown cannot be
personal: the class, and Redis' own word, the name of an errno or what TLS says, which lead to a
sentence about what to look at.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import redis
from redis.exceptions import InvalidResponse, MaxConnectionsError


class UnsafeRedis(redis.RedisError):
    """This Redis may lose accepted events, or cannot do what is asked of it. The text says what to
    change."""


class _Row(NamedTuple):
    hint: str
    lasting: bool = False
    """Whether it stays until somebody changes Redis or a setting."""


_ADDRESS = "check host and port in REDIS_URL, and that Redis runs there"
_SETTINGS = "check user and password in REDIS_URL"
_CLUSTER = (
    "this Redis is a cluster, in which a script may use the keys of one slot only: use a Redis that"
    " is none"
)
_CUT = (
    "the connection was cut: does Redis restart, a proxy cut it, or does Redis expect TLS"
    " (rediss:// in REDIS_URL)?"
)
_CERTIFICATE = "the certificate of Redis is refused: "

CAUSES: dict[str, _Row] = {
    # Redis' own words (https://redis.io/docs/latest/develop/reference/protocol-spec/)
    "OOM": _Row("Redis is out of memory: raise maxmemory, or wait for events to settle"),
    "MISCONF": _Row("Redis cannot write its files: look into its log and at its disk"),
    "READONLY": _Row("a replica takes no writes: give REDIS_URL the primary's address"),
    "NOREPLICAS": _Row("Redis has fewer replicas than min-replicas-to-write asks for"),
    "LOADING": _Row("Redis has just started and reads its files: it takes a while"),
    "BUSY": _Row("a script blocks Redis: check what else uses it (SLOWLOG)"),
    "MASTERDOWN": _Row("this is a replica that has lost its primary: wait for the failover"),
    "NOSCRIPT": _Row("Redis forgot our scripts, as after a restart: they are loaded again"),
    "TRYAGAIN": _Row(_CLUSTER, lasting=True),
    "CROSSSLOT": _Row(_CLUSTER, lasting=True),
    "MOVED": _Row(_CLUSTER, lasting=True),
    "ASK": _Row(_CLUSTER, lasting=True),
    "CLUSTERDOWN": _Row(_CLUSTER, lasting=True),
    "NOAUTH": _Row(f"Redis asks for a password: {_SETTINGS}"),
    "WRONGPASS": _Row(f"Redis refuses the password: {_SETTINGS}"),
    "NOPERM": _Row(
        "the user of REDIS_URL may not run a command, or not on our keys:"
        " give it the rights of deploy/redis-acl.conf",
        lasting=True,
    ),
    "WRONGTYPE": _Row("a key of ours holds something else: does another application use it?"),
    "STALE": _Row("a command arrived after it had been repeated: check the network's latency"),
    # What Redis says without a word of its own
    "MAXCLIENTS": _Row("Redis takes no more connections: raise maxclients, or run fewer processes"),
    "UNKNOWN_COMMAND": _Row(
        "this server does not know a command that is needed: use Redis 7 or newer, or Valkey",
        lasting=True,
    ),
    "NO_FLAGS": _Row(
        "this server does not know flags of scripts: use Redis 7 or newer, or Valkey", lasting=True
    ),
    "DATABASE": _Row("there is no such database: check the number at the end of REDIS_URL"),
    "UNSAFE": _Row(
        "this Redis may lose events, or lacks what is needed: `python -m service check` says what"
    ),
    # The way there
    "POOL": _Row("no connection of this process's pool became free: check the latency of Redis"),
    "CLOSED": _Row(_CUT),
    "NOT_REDIS": _Row(f"what answers is not Redis, or expects TLS (rediss://): {_ADDRESS}"),
    "TIMEOUT": _Row(f"no answer in time: {_ADDRESS}, and what a firewall lets through"),
    "TLS_TIMEOUT": _Row("no TLS handshake in time: write redis:// if Redis uses no TLS"),
    "TLS": _Row("no TLS connection: does Redis speak TLS at this port, and of a version not old?"),
    "EAI": _Row("the name of the host cannot be resolved: check the host in REDIS_URL, and DNS"),
    "ECONNREFUSED": _Row(f"nothing listens there: {_ADDRESS}"),
    "ECONNRESET": _Row(_CUT),
    "EPIPE": _Row(_CUT),
    "EHOSTUNREACH": _Row(f"there is no way to the host: {_ADDRESS}, and the network"),
    "ENETUNREACH": _Row(f"there is no way to the host: {_ADDRESS}, and the network"),
    "ENOENT": _Row("a file that REDIS_URL names is not there: the socket, or a certificate"),
    "EACCES": _Row("a file that REDIS_URL names may not be read: the socket, or a certificate"),
    "EMFILE": _Row("this process has too many files open: raise its limit (ulimit -n)"),
    # What the certificate of Redis is refused for
    "CERTIFICATE_EXPIRED": _Row(f"{_CERTIFICATE}it has expired, or this machine's clock is wrong"),
    "CERTIFICATE_HOST": _Row(f"{_CERTIFICATE}it is for another name than REDIS_URL's host"),
    "CERTIFICATE_UNTRUSTED": _Row(
        f"{_CERTIFICATE}its issuer is not trusted. Name that one's certificate"
        " (?ssl_ca_certs=/path in REDIS_URL); REDIS_TLS_VERIFY=0 trusts any, as Heroku needs it"
    ),
}
"""What is shown of an error, and what it means."""

_UNKNOWN_REFUSAL = _Row("Redis refused a command")
_UNKNOWN_TROUBLE = _Row(f"Redis cannot be reached: {_ADDRESS}")

# What stands in a refusal that begins with no word of its own, or with another one.
_PHRASES = (
    (re.compile(r"max(imum)? number of clients", re.IGNORECASE), "MAXCLIENTS"),
    (re.compile(r"unknown (redis )?command|unknown subcommand", re.IGNORECASE), "UNKNOWN_COMMAND"),
    (re.compile(r"compiling script"), "NO_FLAGS"),
    (re.compile(r"no(t)? permission|ACL failure|executing the script can't"), "NOPERM"),
    (re.compile(r"non local key|in cluster mode|hash to the same slot"), "CROSSSLOT"),
    (re.compile(r"DB index is out of range|Invalid Database|invalid DB index"), "DATABASE"),
)
_WORD = re.compile(r"-?([A-Z]{3,20})\b")
_WITHIN = re.compile(r"(?<=-)[A-Z]{3,20}\b")  # Redis 6 quotes what a script ran into


@dataclass(frozen=True, slots=True)
class Cause:
    """What an error means.

    Attributes:
        error: the name of its class.
        code: Redis' word, the name of an errno, or what TLS says; None where there is none.
        hint: a sentence on what it means and what to look at.
        lasting: whether it stays until somebody changes Redis or a setting.
    """

    error: str
    code: str | None
    hint: str
    lasting: bool

    def __str__(self) -> str:
        return f"{self.hint} ({self.code or self.error})"

    def fields(self) -> dict[str, str | None]:
        """Return what a log line says of it."""
        return {"error": self.error, "code": self.code, "hint": self.hint}


def explain(error: BaseException) -> Cause:
    """Return what an error of redis-py means; also of what it stands for, such as an OSError."""
    code = code_of(error)
    row = CAUSES.get("EAI" if code and code.startswith("EAI_") else code or "")
    if row is None:
        is_refusal = isinstance(error, redis.ResponseError)
        row = _UNKNOWN_REFUSAL if is_refusal else _UNKNOWN_TROUBLE
    return Cause(type(error).__name__, code, row.hint, row.lasting)


def code_of(error: BaseException) -> str | None:
    """Return what may be shown of an error, or of what it came from; also of other connections."""
    if isinstance(error, MaxConnectionsError):
        return "POOL"
    for each in _chain(error):
        if code := _code_of_one(each):
            return code
    return "TIMEOUT" if isinstance(error, redis.TimeoutError) else None


def _code_of_one(error: BaseException) -> str | None:
    code: str | None = None
    match error:
        case ssl.SSLCertVerificationError():
            code = _OF_CERTIFICATES.get(error.verify_code, "CERTIFICATE_UNTRUSTED")
        case ssl.SSLError():
            code = "TLS"
        case socket.gaierror():
            code = _OF_NAMES.get(error.errno or 0, "EAI_FAIL")
        case TimeoutError():
            code = "TLS_TIMEOUT" if "handshake" in str(error) else "TIMEOUT"
        case OSError():
            code = errno.errorcode.get(error.errno or 0)
        case UnsafeRedis():
            code = "UNSAFE"
        case InvalidResponse():
            code = "NOT_REDIS"
        case redis.RedisError():
            code = _word_of(error)
    return code


def _word_of(error: redis.RedisError) -> str | None:
    """Return Redis' word for a refusal, or what we call one that has none."""
    text = str(error)
    for phrase, code in _PHRASES:
        if phrase.search(text):
            return code
    # redis-py cuts off the words that it has a class for, and keeps them beside the text.
    word = getattr(error, "status_code", None)
    if not isinstance(word, str) or word == "ERR":
        found = _WORD.match(text) or _WITHIN.search(text)
        word = found[0].lstrip("-") if found and isinstance(error, redis.ResponseError) else None
    if word in {None, "ERR"} and "closed by server" in text:
        return "CLOSED"
    return None if word == "ERR" else word


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: redis-py wraps the errors of sockets."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


_OF_NAMES = {getattr(socket, name): name for name in dir(socket) if name.startswith("EAI_")}
# X509_V_ERR_... of OpenSSL (https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/)
_OF_CERTIFICATES = {
    **dict.fromkeys((9, 10), "CERTIFICATE_EXPIRED"),
    **dict.fromkeys((62, 63, 64), "CERTIFICATE_HOST"),
}

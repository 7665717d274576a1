"""REDIS_URL, read once: what is in it is used, or refused by name. No connection is made here.

redis-py leaves out in silence what it cannot read (a path that is no number), and fails at the
first connection on options that it does not know.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from service import urls

SCHEMES = ("redis", "rediss", "unix")
OPTIONS = ("db", "family", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
"""Options that may stand behind the question mark. `family=0`, IPv4 or IPv6, is what platforms
write for other clients, and what happens anyway; so is `ssl_cert_reqs=required`."""

LONGEST_SOCKET = 107
"""Bytes of a socket's path, at most (unix(7))."""

_ENCODE = "the password needs percent-encoding, perhaps: # is %23, / is %2F, ? is %3F, @ is %40"
_INSTEAD = {
    "ssl_check_hostname": "REDIS_TLS_VERIFY=0 in its place trusts any certificate",
    "ssl": "a URL of rediss:// speaks TLS",
    "tls": "a URL of rediss:// speaks TLS",
    "host": "the host stands before the question mark",
    "port": "the port stands before the question mark",
    "username": "user and password stand before the host: redis://user:password@host",
    "password": "user and password stand before the host: redis://user:password@host",
}
_NAME = re.compile(r"[a-zA-Z][a-zA-Z_-]{0,30}\Z")


def parse(url: str) -> dict[str, Any]:
    """Return what a connection of redis-py is made with, its class among it.

    Raises:
        ValueError: in words, which quote nothing but the names of options.
    """
    if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        if "sentinel" in url.partition(":")[0].lower():
            raise ValueError(
                "names Sentinels: give it an address that leads to the primary, such as that of"
                " HAProxy (deploy/haproxy.cfg)"
            )
        raise ValueError("should start with redis://, rediss:// or unix://")
    try:
        parts = urls.split(url)
    except ValueError as fault:
        raise ValueError(f"cannot be read: {fault}, or {_ENCODE}") from None
    if parts.fragment or "#" in url or "@" in parts.query:
        raise ValueError(f"cannot be read: {_ENCODE}")
    options = _options(parts)
    made: dict[str, Any] = {}
    if parts.scheme == "unix":
        made |= {"connection_class": UnixDomainSocketConnection, "path": _socket(parts)}
        path = ""
    else:
        is_tls = parts.scheme == "rediss"
        made |= {"connection_class": SSLConnection if is_tls else Connection}
        if parts.netloc and not parts.hostname:
            raise ValueError("names no host: redis://user:password@host:port")
        made |= {"host": unquote(parts.hostname or "localhost"), "port": parts.port or 6379}
        path = parts.path.strip("/")
    made["db"] = _database(path, options.pop("db", ""))
    made |= {name: _decoded(value) for name, value in _who(parts).items() if value}
    return made | _files(options, parts.scheme)


def place(url: str) -> str:
    """Return which Redis and database an address leads to, without who asks there."""
    made = parse(url)
    return f"{made.get('path') or '{host}:{port}'.format(**made)}/{made['db']}"


def _socket(parts: SplitResult) -> str:
    if parts.hostname or parts.port:
        raise ValueError("has a host before the path of the socket: unix:///path/to/socket")
    path = _decoded(parts.path)
    if path in {"", "/"}:
        raise ValueError("names no socket: unix:///path/to/socket")
    if len(path.encode()) > LONGEST_SOCKET or "\0" in path:
        raise ValueError(f"names a path that no socket can have: {LONGEST_SOCKET} bytes at most")
    return path


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"holds what is no UTF-8 once it is decoded; {_ENCODE}") from None


def _options(parts: SplitResult) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if not _NAME.match(name):
            raise ValueError(f"has an option without a name, or {_ENCODE}")
        if name in given:
            raise ValueError(f"has the option {name} twice")
        if name not in OPTIONS:
            instead = _INSTEAD.get(name, "leave it out: this service sets it, or has no use for it")
            raise ValueError(f"has the option {name}: {instead}")
        given[name] = value
    if given.pop("family", "0") != "0":
        raise ValueError("has the option family, which may be 0: IPv4 or IPv6, whichever there is")
    verify = given.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if verify != "required":
        raise ValueError("has the option ssl_cert_reqs: REDIS_TLS_VERIFY=0 trusts any certificate")
    return given


def _database(path: str, option: str) -> int:
    numbers = [each for each in (path, option) if each]
    if not all(each.isdecimal() and each.isascii() for each in numbers):
        _refuse_database(path)
    if len(set(map(int, numbers))) > 1:
        raise ValueError("names two databases: at its end, and by the option db")
    return int(numbers[0]) if numbers else 0


def _refuse_database(path: str) -> NoReturn:
    fault = "names a database that is no number"
    raise ValueError(f"{fault}, or {_ENCODE}" if "@" in path else f"{fault}: redis://host:port/0")


def _who(parts: SplitResult) -> dict[str, str | None]:
    return {"username": parts.username, "password": parts.password}


def _files(options: dict[str, str], scheme: str) -> dict[str, str]:
    """Return the options that name files, once they can be read and hold what they should."""
    if options and scheme != "rediss":
        raise ValueError(f"has the option {next(iter(options))}, but only rediss:// speaks TLS")
    options.pop("ssl_cert_reqs", None)  # checked, and so anyway
    for name, path in options.items():
        try:
            Path(path).read_bytes()
        except (OSError, ValueError) as error:  # a ValueError: a path with a NUL
            kind = type(error).__name__
            raise ValueError(f"has the option {name}: the file cannot be read ({kind})") from None
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if key and not certificate:
        raise ValueError("has the option ssl_keyfile, but no ssl_certfile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "ssl_ca_certs" in options:
            context.load_verify_locations(options["ssl_ca_certs"])
        if certificate:
            context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        raise ValueError("names a file that holds no certificate, or not its key") from None
    return options
